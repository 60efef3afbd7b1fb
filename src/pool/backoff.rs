//! Failed starts: when the next one is allowed.

use std::time::{Duration, Instant};

use super::policy::Policy;

/// The failed starts in a row, and what follows from them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    last: Option<Failure>,
    failures: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    reason: String,
    retry_at: Instant,
}

impl Backoff {
    /// Notes a failed start.
    pub(super) fn failed(&mut self, now: Instant, reason: String, policy: &Policy) {
        self.failures = self.failures.saturating_add(1);
        let retry_at = now + pause(self.failures, policy);
        self.last = Some(Failure { reason, retry_at });
    }

    /// Notes a start that went well: all is forgotten.
    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Failed starts since the last one that went well.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Why the last start failed.
    pub(super) fn reason(&self) -> Option<&str> {
        self.last.as_ref().map(|failure| failure.reason.as_str())
    }

    /// When the next start is allowed; `None` when one is allowed at any time.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.last.as_ref().map(|failure| failure.retry_at)
    }
}

/// The pause after the `failures`-th failure in a row: `retry_first` × 1.5 to the power of one less, at most `retry_max`.
fn pause(failures: u32, policy: &Policy) -> Duration {
    let mut pause = policy.retry_first;
    for _ in 1..failures {
        if pause >= policy.retry_max {
            break;
        }
        pause = pause * 3 / 2;
    }
    pause.min(policy.retry_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_by_half_up_to_the_longest() {
        let policy = Policy::default();
        let seconds: Vec<u64> = (1..=12).map(|n| pause(n, &policy).as_secs()).collect();
        assert_eq!(
            seconds,
            [10, 15, 22, 33, 50, 75, 113, 170, 256, 300, 300, 300]
        );
        assert_eq!(pause(u32::MAX, &policy), policy.retry_max);
    }

    #[test]
    fn a_good_start_forgets_the_failures() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        let now = Instant::now();
        let mut backoff = Backoff::default();
        backoff.failed(now, "no memory".to_owned(), &Policy::default());
        assert_eq!(
            (backoff.failures(), backoff.reason()),
            (1, Some("no memory"))
        );
        assert_eq!(backoff.retry_at(), Some(now + Duration::from_secs(10)));
        backoff.succeeded();
        assert_eq!(backoff, Backoff::default());
    }
}
