//! How fast VMs may be started: a bucket of starts, so that clients that come and go do not keep the machine busy with them.
//! A VM that has worked gives its start back, so the work itself is never slowed.

use std::time::{Duration, Instant};

/// How long until there is one start more.
const REFILL: Duration = Duration::from_secs(1);

/// The starts that have been taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Starts {
    taken: u32,
    /// Since when the next one comes back, while any is taken.
    since: Option<Instant>,
}

impl Starts {
    /// Notes what has come back by now.
    pub(super) fn refill(&mut self, now: Instant) {
        while self.taken > 0
            && let Some(at) = self.next_at().filter(|at| *at <= now)
        {
            self.taken -= 1;
            self.since = Some(at);
        }
        if self.taken == 0 {
            self.since = None;
        }
    }

    /// How many are left of so many.
    pub(super) fn left(&self, burst: u32) -> u32 {
        burst.saturating_sub(self.taken)
    }

    /// A VM is started.
    pub(super) fn take(&mut self, now: Instant) {
        self.since.get_or_insert(now);
        self.taken = self.taken.saturating_add(1);
    }

    /// A VM has worked.
    pub(super) fn give_back(&mut self) {
        self.taken = self.taken.saturating_sub(1);
    }

    /// When one more comes back.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.since.map(|since| since + REFILL)
    }
}
