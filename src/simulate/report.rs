//! What a simulation found, as figures.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::course::Tally;
use crate::nix::System;

/// How much a trace is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TraceSummary {
    /// Builds in it.
    pub builds: usize,
    /// Who wanted them.
    pub clients: usize,
    /// From when the first build was wanted to when the last one was, in seconds.
    pub span_s: f64,
    /// The work of all, in seconds.
    pub work_s: f64,
}

/// What a simulation found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// What was simulated.
    pub trace: TraceSummary,
    /// How long starts were said to take, in seconds.
    pub start_times_s: BTreeMap<System, f64>,
    /// Each system of the trace.
    pub systems: BTreeMap<System, Comparison>,
    /// All of them.
    pub all: Comparison,
}

/// The policy that is configured beside two that never start or stop anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Comparison {
    /// As it is configured.
    pub configured: Figures,
    /// `max-vms` VMs all the time.
    pub always_max: Figures,
    /// One VM all the time.
    pub always_one: Figures,
}

/// How a policy did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Figures {
    /// Half of the builds that got a VM waited no longer than this, in seconds.
    pub wait_p50_s: f64,
    /// 95 of 100 builds that got a VM waited no longer than this, in seconds.
    pub wait_p95_s: f64,
    /// The longest that a build waited, in seconds.
    pub wait_max_s: f64,
    /// The time of all VMs, from when the first build was wanted to the end of the last one, starts and ends of VMs included.
    pub vm_seconds: f64,
    /// VMs that were started.
    pub starts: u64,
    /// VMs that were there at a time.
    pub peak_vms: usize,
    /// Builds that got no VM.
    pub rejected: u64,
    /// Builds that lost their VM.
    pub lost: u64,
}

impl Figures {
    /// Counts up what was noted.
    pub(super) fn of(tally: &Tally) -> Self {
        let mut waits = tally.waits.clone();
        waits.sort_unstable();
        let seconds = |percent| quantile(&waits, percent).as_secs_f64();
        Self {
            wait_p50_s: seconds(50),
            wait_p95_s: seconds(95),
            wait_max_s: seconds(100),
            vm_seconds: tally.vm_time.as_secs_f64(),
            starts: tally.starts,
            peak_vms: tally.peak,
            rejected: tally.rejected,
            lost: tally.lost,
        }
    }
}

/// The least value that `percent` of 100 values do not exceed; nothing of nothing.
fn quantile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values: Vec<Duration> = (1..=20).map(Duration::from_secs).collect();
        let at = |percent| quantile(&values, percent).as_secs();
        assert_eq!([at(50), at(95), at(100)], [10, 19, 20]);
        assert_eq!(quantile(&values[..1], 50), values[0]);
        assert_eq!(quantile(&[], 95), Duration::ZERO);
    }
}
