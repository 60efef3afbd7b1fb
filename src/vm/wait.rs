//! How this module waits: each wait has a name and a deadline, and polls only what nobody announces.

use std::future::Future;
use std::time::Duration;

/// Nothing happened in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("waited {} in vain for {what}", humantime::format_duration(*limit))]
pub(super) struct TimedOut {
    what: &'static str,
    limit: Duration,
}

/// Waits for `future`, which is called `what`, for `limit` at most.
pub(super) async fn within<T>(
    what: &'static str,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Result<T, TimedOut> {
    tokio::time::timeout(limit, future)
        .await
        .map_err(|_| TimedOut { what, limit })
}

/// The growing intervals of a poll: quick at first, cheap later.
#[derive(Debug)]
pub(super) struct Pace {
    next: Duration,
    longest: Duration,
}

impl Pace {
    /// Intervals from `first` on, each half as long again as the one before it, up to `longest`.
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self {
            next: first,
            longest,
        }
    }

    /// Lets one interval pass.
    pub(super) async fn pause(&mut self) {
        let interval = self.next;
        self.next = (interval * 3 / 2).min(self.longest);
        tokio::time::sleep(interval).await;
    }
}
