//! The limits and times that a pool keeps.

use std::num::NonZeroU32;
use std::time::Duration;

/// What a pool may do; checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// VMs that are kept even when nothing waits.
    pub min_vms: u32,
    /// VMs that there are at the most, those that are stopping included.
    pub max_vms: NonZeroU32,
    /// Sessions that one VM serves at a time.
    pub slots_per_vm: NonZeroU32,
    /// How long a VM without a session is kept.
    pub idle_timeout: Duration,
    /// How long a VM may take to get ready before it is given up.
    pub boot_timeout: Duration,
    /// Sessions that may wait at a time; a further one is rejected.
    pub max_queued: usize,
    /// Starts that may fail in a row before the sessions that wait are rejected with the reason.
    pub max_start_failures: u32,
    /// The pause after a first failed start; each further one is half as long again.
    pub retry_first: Duration,
    /// The longest pause between starts.
    pub retry_max: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            min_vms: 0,
            // Overridden from the machine's size unless configured; see `config`.
            max_vms: NonZeroU32::MIN,
            // One build per VM: Nix's own parallelism is what the vCPUs are for.
            slots_per_vm: NonZeroU32::MIN,
            // Buildkite's, ARC's and cluster-autoscaler's figure: starting costs seconds, idling costs memory only.
            idle_timeout: Duration::from_secs(10 * 60),
            // An emulated boot takes 4 s on a quiet machine and was seen to take 40 s on one that is overloaded.
            boot_timeout: Duration::from_secs(5 * 60),
            // Far above any client's slots; bounds memory when something goes round in circles.
            max_queued: 1000,
            max_start_failures: 3,
            retry_first: Duration::from_secs(10),
            retry_max: Duration::from_secs(5 * 60),
        }
    }
}
