//! What has happened in a system's pool since the manager began, in numbers that only grow: for metrics.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::status::{BuildOutcome, BuildView};

/// Everything that is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Counters {
    /// Sessions that wanted a VM.
    pub sessions: u64,
    /// Those of them that were told they get none.
    pub sessions_rejected: u64,
    /// How long sessions waited for theirs.
    pub waits: Times,
    /// VMs that were started.
    pub vm_starts: u64,
    /// VMs that ended otherwise than by being told to, before they could serve or after.
    pub vm_failures: u64,
    /// How long VMs took until they could serve.
    pub starts: Times,
    /// Paths that sessions asked for as inputs.
    pub inputs_asked: u64,
    /// Those of them that their VMs saw in this machine's store.
    pub inputs_shared: u64,
    /// Builds that have ended.
    pub builds: BuildCounters,
}

/// Builds that have ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct BuildCounters {
    /// Those that worked.
    pub built: u64,
    /// Those that did not, for whatever reason.
    pub failed: u64,
    /// The processor time that they took in guests, in milliseconds, as far as the guests' Nix has told.
    pub cpu_ms: u64,
    /// How long they took, inputs and outputs not counted. Each is known to a second.
    pub took: Times,
}

impl BuildCounters {
    /// Counts one that has ended.
    pub(super) fn note(&mut self, build: &BuildView) {
        match build.outcome {
            Some(BuildOutcome::Built) => self.built += 1,
            Some(BuildOutcome::Failed { .. }) | None => self.failed += 1,
        }
        let cpu = build
            .cpu
            .map(|cpu| cpu.user_ms.saturating_add(cpu.system_ms));
        self.cpu_ms = self.cpu_ms.saturating_add(cpu.unwrap_or_default());
        // A clock that was set back in between makes it nothing.
        let ended = build.ended.unwrap_or(build.began);
        self.took
            .add(Duration::from_secs(ended.saturating_sub(build.began)));
    }
}

/// The upper bounds that times are counted by, in milliseconds; there is one more count, of those beyond the last. A copy
/// of a template starts in less than a second, a build may take hours.
pub const BOUNDS_MS: [u64; 13] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 900_000, 3_600_000,
    14_400_000,
];

/// How often what took how long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Times {
    /// How many were within each of [`BOUNDS_MS`] and beyond the one before it.
    pub counts: [u64; BOUNDS_MS.len() + 1],
    /// All of them together, in milliseconds.
    pub sum_ms: u64,
}

impl Times {
    /// Counts one.
    pub fn add(&mut self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.counts[BOUNDS_MS.partition_point(|bound| *bound < ms)] += 1;
        self.sum_ms = self.sum_ms.saturating_add(ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_by_the_first_bound_that_it_is_within() {
        let mut times = Times::default();
        for ms in [0, 100, 101, 14_400_000, 14_400_001] {
            times.add(Duration::from_millis(ms));
        }
        assert_eq!(times.counts[0], 2);
        assert_eq!(times.counts[1], 1);
        assert_eq!(times.counts[12], 1);
        assert_eq!(times.counts[13], 1);
        assert_eq!(times.sum_ms, 28_800_202);
    }
}
