//! A VM as the pool sees it: its state and what follows from it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::SessionId;
use super::claim::{Claim, Purpose, Seat};
use super::policy::{Policy, Reuse, Share};
use super::unfetched::Unfetched;
use crate::nix::store_path::StorePath;

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
    Booting {
        deadline: Instant,
        share: Share,
        /// The client that has named it, if one has.
        pinned_by: Option<String>,
    },
    /// It can serve.
    Ready(ReadyVm),
    /// It was told to stop.
    Stopping,
}

/// A VM that can serve: whom it serves, whom it has served, and what it is kept for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReadyVm {
    pub(super) share: Share,
    pub(super) sessions: BTreeMap<SessionId, Visit>,
    pub(super) idle_since: Instant,
    /// When it was given its latest session; when it became ready, before its first one.
    pub(super) used_since: Instant,
    /// The clients that it was given to so far; none before its first session.
    pub(super) clients: BTreeSet<String>,
    /// Whether a client has named it: then it is for who does so.
    pub(super) is_pinned: bool,
    /// Seats whose outputs are still to be fetched here. Each keeps a slot free.
    pub(super) leases: BTreeMap<Seat, Lease>,
    /// Whether it was of use to anybody.
    pub(super) has_worked: bool,
    /// Whether it takes further sessions.
    pub(super) service: Service,
    /// Until when it is kept for who wants to look at a build that has failed in it.
    pub(super) kept_until: Option<Instant>,
}

/// Whether a VM takes further sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Open,
    /// None; and it stays as long as it is kept for something.
    Retired,
    /// None; and it is not kept for who wants to look at a failed build, since somebody has asked for its end.
    Drained,
}

/// A session on a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Visit {
    pub(super) claim: Claim,
    /// What its seat has built here and not fetched.
    pub(super) unfetched: Unfetched,
    /// Whether nothing is kept for its seat when it ends.
    pub(super) leaves_nothing: bool,
    /// Since when it is there, its waiting included.
    pub(super) since: Instant,
    /// Since when it has the VM.
    pub(super) admitted: Instant,
    /// Whether it has built something.
    pub(super) has_built: bool,
    /// Whether its client has gone and nothing is kept for it: the slot is about to be free.
    pub(super) is_closing: bool,
}

/// A seat's outputs that are waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    /// The session whose end it began with.
    pub(super) session: SessionId,
    pub(super) until: Instant,
    pub(super) unfetched: Unfetched,
}

/// Why a VM that was named cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// It is not there, or will not be for long.
    Gone,
    /// It sees more or less than the client's sessions do.
    OtherKind,
    /// It serves another client, or has served one.
    OtherClients,
}

impl VmState {
    /// A VM that has just become ready.
    pub(super) fn ready(now: Instant, share: Share, pinned_by: Option<String>) -> Self {
        Self::Ready(ReadyVm {
            share,
            sessions: BTreeMap::new(),
            idle_since: now,
            used_since: now,
            is_pinned: pinned_by.is_some(),
            clients: pinned_by.into_iter().collect(),
            leases: BTreeMap::new(),
            has_worked: false,
            service: Service::Open,
            kept_until: None,
        })
    }

    /// Whether a client may reach it by its name.
    pub(super) fn may_be_reached(&self, claim: &Claim) -> Result<(), Unreachable> {
        let client = &claim.seat.client;
        let (share, is_others) = match self {
            Self::Stopping => return Err(Unreachable::Gone),
            Self::Ready(vm) if vm.is_draining() => return Err(Unreachable::Gone),
            Self::Booting {
                share, pinned_by, ..
            } => (*share, pinned_by.as_ref().is_some_and(|by| by != client)),
            Self::Ready(vm) => (vm.share, !vm.is_only(client)),
        };
        if is_others {
            return Err(Unreachable::OtherClients);
        }
        let is_alike = share == claim.share;
        is_alike.then_some(()).ok_or(Unreachable::OtherKind)
    }

    /// Gives it to a client that has named it.
    pub(super) fn pin(&mut self, claim: &Claim) -> Result<(), Unreachable> {
        self.may_be_reached(claim)?;
        let client = claim.seat.client.clone();
        match self {
            Self::Stopping => {}
            Self::Booting { pinned_by, .. } => *pinned_by = Some(client),
            Self::Ready(vm) => {
                vm.is_pinned = true;
                vm.clients.insert(client);
            }
        }
        Ok(())
    }

    /// A VM that was just started.
    pub(super) fn booting(deadline: Instant, share: Share) -> Self {
        Self::Booting {
            deadline,
            share,
            pinned_by: None,
        }
    }

    /// Whether it was started and is not ready yet.
    pub(super) fn is_booting(&self) -> bool {
        matches!(self, Self::Booting { .. })
    }

    /// Whether it can serve and was given to nobody yet.
    pub(super) fn is_unused(&self) -> bool {
        self.as_ready().is_some_and(|vm| vm.clients.is_empty())
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
    /// Whether it takes no further sessions.
    pub(super) fn is_draining(&self) -> bool {
        self.service != Service::Open
    }

    /// Takes it out of service, unless it is.
    pub(super) fn retire(&mut self) {
        if self.service == Service::Open {
            self.service = Service::Retired;
        }
    }

    /// Whether nobody uses it, nobody is expected to fetch from it, and it is kept for nobody.
    pub(super) fn is_idle(&self) -> bool {
        self.sessions.is_empty() && self.leases.is_empty() && self.kept_until.is_none()
    }

    /// Since when it does what would be lost with it: the oldest of its sessions, or the last one that it had.
    pub(super) fn at_work_since(&self) -> Instant {
        let admitted = self.sessions.values().map(|visit| visit.admitted);
        admitted.min().unwrap_or(self.used_since)
    }

    /// Whether it only waits for outputs to be fetched.
    pub(super) fn is_leased(&self) -> bool {
        self.sessions.is_empty() && !self.leases.is_empty()
    }

    /// Whether it could serve any newcomer.
    pub(super) fn is_spare(&self, policy: &Policy) -> bool {
        let is_clean = self.clients.is_empty() || policy.reuse == Reuse::Always;
        self.is_idle() && is_clean && !self.is_pinned && !self.is_draining()
    }

    /// Whether it has done all that it may do.
    pub(super) fn is_spent(&self, policy: &Policy) -> bool {
        self.is_idle() && self.has_had_its_build(policy) && !self.is_pinned
    }

    /// Whether nothing may be built on it any more, but by who has named it. Counted by sessions: what the first one does is
    /// not known here.
    pub(super) fn has_had_its_build(&self, policy: &Policy) -> bool {
        !self.clients.is_empty() && policy.reuse == Reuse::Never
    }

    /// How many slots it has that nobody uses and that are kept for nobody.
    pub(super) fn free_slots(&self, policy: &Policy) -> usize {
        let taken = self.sessions.len() + self.leases.len();
        (policy.slots_per_vm.get() as usize).saturating_sub(taken)
    }

    /// Whether it has one.
    pub(super) fn has_free_slot(&self, policy: &Policy) -> bool {
        self.free_slots(policy) > 0
    }

    /// Whether nobody but this client has had it so far.
    fn is_only(&self, client: &str) -> bool {
        self.clients.iter().all(|other| other == client)
    }

    /// Gives it to a session that is there since then, with what its seat has left here.
    pub(super) fn admit(&mut self, now: Instant, session: SessionId, claim: Claim, since: Instant) {
        let lease = self.leases.remove(&claim.seat);
        self.clients.insert(claim.seat.client.clone());
        self.used_since = now;
        let visit = Visit {
            unfetched: lease.map(|lease| lease.unfetched).unwrap_or_default(),
            leaves_nothing: matches!(claim.purpose, Purpose::Pinned(_)),
            since,
            admitted: now,
            has_built: false,
            is_closing: false,
            claim,
        };
        self.sessions.insert(session, visit);
    }

    /// What each seat has here that it has not fetched.
    pub(super) fn unfetched(&self) -> impl Iterator<Item = (&Seat, &Unfetched)> {
        let visits = self.sessions.values();
        let visits = visits.map(|visit| (&visit.claim.seat, &visit.unfetched));
        let leases = self.leases.iter();
        visits.chain(leases.map(|(seat, lease)| (seat, &lease.unfetched)))
    }

    /// A client has fetched this from it. A seat that has all keeps it no longer.
    pub(super) fn fetched(&mut self, client: &str, path: &StorePath) {
        let visits = self.sessions.values_mut();
        let visits = visits.map(|visit| (&visit.claim.seat, &mut visit.unfetched));
        let leases = self.leases.iter_mut();
        let leases = leases.map(|(seat, lease)| (seat, &mut lease.unfetched));
        for (_, unfetched) in visits
            .chain(leases)
            .filter(|(seat, _)| seat.client == client)
        {
            unfetched.fetched(path);
        }
        self.leases.retain(|_, lease| !lease.unfetched.is_done());
    }
}
