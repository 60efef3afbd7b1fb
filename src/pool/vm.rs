//! A VM as the pool sees it: its state and what follows from it.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::SessionId;
use super::claim::{Claim, Seat};
use super::policy::{Policy, Reuse, Share};

/// A VM of one pool, numbered from 1 in the order of their starts; numbers are not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VmId(pub u32);

/// Where a VM is in its life.
///
/// ```text
/// Booting ──▶ Ready ──▶ Stopping ──▶ (gone)
///    └───────────┴── ended by itself ──▶ (gone)
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum VmState {
    /// It was started and is not ready yet. Given up at the deadline.
    Booting { deadline: Instant, share: Share },
    /// It can serve.
    Ready(ReadyVm),
    /// It was told to stop.
    Stopping,
}

/// A VM that can serve: whom it serves, whom it has served, and what it is kept for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReadyVm {
    pub(super) share: Share,
    pub(super) sessions: BTreeMap<SessionId, Claim>,
    pub(super) idle_since: Instant,
    /// When it was given its latest session; when it became ready, before its first one.
    pub(super) used_since: Instant,
    /// The client that had it last; none before its first session.
    pub(super) owner: Option<String>,
    /// Seats whose outputs are still to be fetched here, and until when they are waited for. Each keeps a slot free.
    pub(super) leases: BTreeMap<Seat, Instant>,
}

impl VmState {
    /// A VM that has just become ready.
    pub(super) fn ready(now: Instant, share: Share) -> Self {
        Self::Ready(ReadyVm {
            share,
            sessions: BTreeMap::new(),
            idle_since: now,
            used_since: now,
            owner: None,
            leases: BTreeMap::new(),
        })
    }

    /// Whether it was started and is not ready yet.
    pub(super) fn is_booting(&self) -> bool {
        matches!(self, Self::Booting { .. })
    }

    /// The VM, if it can serve.
    pub(super) fn as_ready(&self) -> Option<&ReadyVm> {
        match self {
            Self::Ready(vm) => Some(vm),
            Self::Booting { .. } | Self::Stopping => None,
        }
    }

    /// The VM, if it can serve, to be changed.
    pub(super) fn as_ready_mut(&mut self) -> Option<&mut ReadyVm> {
        match self {
            Self::Ready(vm) => Some(vm),
            Self::Booting { .. } | Self::Stopping => None,
        }
    }

    /// The sessions it serves.
    pub(super) fn sessions(&self) -> impl Iterator<Item = SessionId> + '_ {
        let sessions = self.as_ready().map(|vm| vm.sessions.keys());
        sessions.into_iter().flatten().copied()
    }

    /// Since when it is ready and serves nobody.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        self.as_ready()
            .filter(|vm| vm.sessions.is_empty())
            .map(|vm| vm.idle_since)
    }
}

impl ReadyVm {
    /// Whether nobody uses it and nobody is expected to fetch from it.
    pub(super) fn is_idle(&self) -> bool {
        self.sessions.is_empty() && self.leases.is_empty()
    }

    /// Whether it only waits for outputs to be fetched.
    pub(super) fn is_leased(&self) -> bool {
        self.sessions.is_empty() && !self.leases.is_empty()
    }

    /// Whether it could serve any newcomer.
    pub(super) fn is_spare(&self, policy: &Policy) -> bool {
        self.is_idle() && (self.owner.is_none() || policy.reuse == Reuse::Always)
    }

    /// Whether it has done all that it may do.
    pub(super) fn is_spent(&self, policy: &Policy) -> bool {
        self.is_idle() && self.has_had_its_build(policy)
    }

    /// Whether nothing may be built on it any more. Counted by sessions: what the first one does is not known here.
    pub(super) fn has_had_its_build(&self, policy: &Policy) -> bool {
        self.owner.is_some() && policy.reuse == Reuse::Never
    }

    /// Whether it has a slot that nobody uses and that is kept for nobody.
    pub(super) fn has_free_slot(&self, policy: &Policy) -> bool {
        self.sessions.len() + self.leases.len() < policy.slots_per_vm.get() as usize
    }

    /// Whether a new build may run on it: it shows what the session may see, and what has run on it before is no hindrance.
    pub(super) fn may_take(&self, claim: &Claim, policy: &Policy) -> bool {
        let is_clean_enough = match (policy.reuse, &self.owner) {
            (Reuse::Always, _) | (_, None) => true,
            (Reuse::Client, Some(owner)) => *owner == claim.seat.client,
            (Reuse::Never, Some(_)) => false,
        };
        self.share == claim.share && is_clean_enough
    }

    /// The last session of a seat on it that came before another session.
    pub(super) fn last_session_before(&self, session: SessionId, seat: &Seat) -> Option<SessionId> {
        self.sessions
            .range(..session)
            .rfind(|(_, claim)| claim.seat == *seat)
            .map(|(earlier, _)| *earlier)
    }
}
