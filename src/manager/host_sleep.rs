//! Whether this machine has slept: its guests' clocks have stood still then, and nobody else tells them.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// What clocks are apart by reading one after the other, and then some.
const NOTABLE: Duration = Duration::from_secs(1);

/// How long this machine has slept since it was booted.
type Asleep = dyn Fn() -> Duration + Send;

/// Notes how long it has slept.
pub(super) struct HostSleep {
    asleep: Box<Asleep>,
    known: Duration,
}

impl HostSleep {
    /// By the kernel's clocks: one goes on while the machine sleeps, and the other does not.
    pub(super) fn of_machine() -> Self {
        Self::by(asleep)
    }

    /// The same, as something else tells.
    pub(super) fn by(asleep: impl Fn() -> Duration + Send + 'static) -> Self {
        let known = asleep();
        let asleep = Box::new(asleep);
        Self { asleep, known }
    }

    /// Whether it has slept since it was asked before.
    pub(super) fn has_been(&mut self) -> bool {
        let asleep = (self.asleep)();
        let before = std::mem::replace(&mut self.known, asleep);
        asleep > before + NOTABLE
    }
}

fn asleep() -> Duration {
    let read = |clock| {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
        let seconds = Duration::from_secs(u64::try_from(tv_sec).unwrap_or(0));
        seconds + Duration::from_nanos(u64::try_from(tv_nsec).unwrap_or(0))
    };
    read(ClockId::Boottime).saturating_sub(read(ClockId::Monotonic))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn each_sleep_is_told_once() {
        let seconds = Arc::new(AtomicU64::new(500));
        let told = seconds.clone();
        let mut sleep = HostSleep::by(move || Duration::from_secs(told.load(Ordering::Relaxed)));
        assert!(!sleep.has_been());
        seconds.store(600, Ordering::Relaxed);
        assert!(sleep.has_been());
        assert!(!sleep.has_been());
    }

    #[test]
    fn this_machine_does_not_sleep_in_between() {
        let mut sleep = HostSleep::of_machine();
        assert!(!sleep.has_been());
    }
}
