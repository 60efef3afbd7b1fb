//! A VM as the pool sees it: its state and what follows from it.

use std::collections::BTreeSet;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::SessionId;

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
    Booting { deadline: Instant },
    /// It can serve.
    Ready {
        sessions: BTreeSet<SessionId>,
        idle_since: Instant,
    },
    /// It was told to stop.
    Stopping,
}

impl VmState {
    /// A VM that has just become ready.
    pub(super) fn ready(now: Instant) -> Self {
        Self::Ready {
            sessions: BTreeSet::new(),
            idle_since: now,
        }
    }

    /// Whether it serves, or will.
    pub(super) fn is_supply(&self) -> bool {
        matches!(self, Self::Booting { .. } | Self::Ready { .. })
    }

    /// The sessions it serves.
    pub(super) fn sessions(&self) -> impl Iterator<Item = SessionId> + '_ {
        let sessions = match self {
            Self::Ready { sessions, .. } => Some(sessions),
            Self::Booting { .. } | Self::Stopping => None,
        };
        sessions.into_iter().flatten().copied()
    }

    /// Since when it is ready and serves nobody.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        match self {
            Self::Ready {
                sessions,
                idle_since,
            } if sessions.is_empty() => Some(*idle_since),
            _ => None,
        }
    }
}
