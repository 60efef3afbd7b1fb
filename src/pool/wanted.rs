//! How many VMs were wanted in the last minutes: a VM that was needed a moment ago is about to be needed again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The number of VMs that are wanted, now and before.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    now: usize,
    /// Higher ones, and until when each was wanted: falling numbers at rising times, so no more than there may be VMs.
    before: VecDeque<(Instant, usize)>,
}

/// How long a number of VMs is wanted yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// As long as things are as they are.
    Changed,
    /// Until then.
    Time(Instant),
    /// It is not.
    Past,
}

impl Wanted {
    /// Notes how many are wanted from now on; what is further back than `delay` is forgotten.
    pub(super) fn note(&mut self, now: Instant, wanted: usize, delay: Duration) {
        if wanted < self.now {
            self.before.push_back((now, self.now));
        }
        self.now = wanted;
        while self
            .before
            .front()
            .is_some_and(|(at, _)| *at + delay <= now)
        {
            self.before.pop_front();
        }
        while let Some((_, fewer)) = self.before.back().copied()
            && fewer <= wanted
        {
            self.before.pop_back();
        }
        self.drop_covered();
    }

    /// How many are wanted.
    pub(super) fn now(&self) -> usize {
        self.now
    }

    /// How long this many are to be there, with so much delay.
    pub(super) fn until(&self, count: usize, delay: Duration) -> Until {
        if self.now >= count {
            return Until::Changed;
        }
        let last = self.before.iter().rfind(|(_, wanted)| *wanted >= count);
        last.map_or(Until::Past, |(at, _)| Until::Time(*at + delay))
    }

    /// What came later and was higher says all that an earlier, lower number does.
    fn drop_covered(&mut self) {
        if let Some(last) = self.before.pop_back() {
            while self
                .before
                .back()
                .is_some_and(|(_, wanted)| *wanted <= last.1)
            {
                self.before.pop_back();
            }
            self.before.push_back(last);
        }
    }
}
