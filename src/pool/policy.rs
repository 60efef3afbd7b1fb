//! The limits and times that a pool keeps.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::claim::Claim;
use super::shape::Vcpus;

/// VMs that `up` may ask for where no maximum is configured: as many as a system has slots.
pub const UP_LIMIT: NonZeroU32 = NonZeroU32::new(64).expect("64 is not zero");

/// VMs that a forecast may have kept warm where no maximum is configured: idling costs memory, and one more is started as soon as
/// one of them is taken.
pub const WARM_MAX: u32 = 2;

/// Which sessions a VM takes after its first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reuse {
    /// None: a VM has one build in its life, and nothing of it reaches the next one.
    #[default]
    Never,
    /// Those of the same client.
    Client,
    /// Everybody's.
    Always,
}

impl Reuse {
    /// As it is written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Client => "client",
            Self::Always => "always",
        }
    }
}

/// What of this machine's Nix store a VM sees. Fixed when it starts: it has the store's device or it has not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Share {
    /// All of it.
    #[default]
    Host,
    /// Nothing.
    None,
}

impl Share {
    /// As it is written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::None => "none",
        }
    }

    /// What both allow.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Host, Self::Host) => Self::Host,
            _ => Self::None,
        }
    }
}

/// What becomes of a forecast of how many sessions are about to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forecasting {
    /// There is none.
    Off,
    /// It is made and shown, and changes nothing.
    #[default]
    Observe,
    /// More VMs are kept warm by it.
    On,
}

/// How long a build may take. Nix tells a build machine nothing of its own limits (ssh-ng sends no options), and the pool's core
/// has nothing to do with them: sessions keep them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BuildLimits {
    /// From its begin to its end.
    pub timeout: Option<Duration>,
    /// Without a line in its log.
    pub max_silent_time: Option<Duration>,
}

/// What a pool may do; checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// VMs that are kept even when nothing waits.
    pub min_vms: u32,
    /// VMs that there are at the most, those that are stopping included.
    pub max_vms: NonZeroU32,
    /// VMs that `up` may ask for, beyond `max_vms` where that is only a default.
    pub up_limit: NonZeroU32,
    /// Sessions that one VM serves at a time.
    pub slots_per_vm: NonZeroU32,
    /// Which sessions a VM takes after its first one.
    pub reuse: Reuse,
    /// What VMs see of this machine's store, where the session does not ask for less: those that are kept and warm do.
    pub share: Share,
    /// VMs that nobody has used yet, kept beside those that are wanted, so that a session waits for nothing.
    pub warm: u32,
    /// What becomes of a forecast.
    pub forecast: Forecasting,
    /// VMs that nobody has used yet at the most, `warm` and what a forecast asks for: it never asks for fewer than `warm`.
    pub warm_max: u32,
    /// How long a VM is kept for outputs that are still to be fetched from it.
    pub lease: Duration,
    /// Processors that a VM is given.
    pub vcpus: Vcpus,
    /// Memory that a VM is given, in MiB.
    pub memory_mib: u64,
    /// What a VM takes of the host's memory, in MiB.
    pub memory_estimate_mib: u64,
    /// What of the host's available memory no start may touch, in MiB.
    pub memory_floor_mib: u64,
    /// How long the VM of a failed build is kept, for who wants to look at what is left in it; none where it is not.
    pub keep_failed: Option<Duration>,
    /// How long its builds may take.
    pub build_limits: BuildLimits,
    /// How long a VM without a session is kept.
    pub idle_timeout: Duration,
    /// How long as many VMs stay as were wanted at a time.
    pub scale_down_delay: Duration,
    /// How long a session may wait for a VM.
    pub wait_timeout: Option<Duration>,
    /// How long a VM may take to get ready before it is given up.
    pub boot_timeout: Duration,
    /// Sessions that may wait at a time; a further one is rejected.
    pub max_queued: usize,
    /// Clients that are served before others, or after them: the higher, the sooner. Who is not in it has 0.
    pub priorities: BTreeMap<String, i32>,
    /// Starts that may fail in a row before the sessions that wait are rejected with the reason.
    pub max_start_failures: u32,
    /// The pause after a first failed start; each further one is half as long again.
    pub retry_first: Duration,
    /// The longest pause between starts.
    pub retry_max: Duration,
}

impl Policy {
    /// Whether a client is served before others: the higher, the sooner.
    pub(super) fn priority_of(&self, claim: &Claim) -> i32 {
        let priority = self.priorities.get(&claim.seat.client);
        priority.copied().unwrap_or_default()
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            min_vms: 0,
            // Overridden from the machine's size unless configured; see `config`.
            max_vms: NonZeroU32::MIN,
            up_limit: UP_LIMIT,
            // One build per VM: Nix's own parallelism is what the vCPUs are for.
            slots_per_vm: NonZeroU32::MIN,
            reuse: Reuse::Never,
            share: Share::Host,
            warm: 0,
            forecast: Forecasting::Observe,
            warm_max: WARM_MAX,
            // A client that fetches each output by a session of its own opens the next one within milliseconds; this is
            // for one whose machine is overloaded.
            lease: Duration::from_secs(10),
            // Overridden from the profile.
            vcpus: Vcpus::fixed(NonZeroU32::MIN),
            memory_mib: 2048,
            // A copy shares its template's pages: 120 MiB when idle, and it grows with what is built.
            memory_estimate_mib: 512,
            memory_floor_mib: 1024,
            keep_failed: None,
            build_limits: BuildLimits::default(),
            // Buildkite's, ARC's and cluster-autoscaler's figure: starting costs seconds, idling costs memory only.
            idle_timeout: Duration::from_secs(10 * 60),
            // Kubernetes' figure.
            scale_down_delay: Duration::from_secs(5 * 60),
            // Builds queue for hours.
            wait_timeout: None,
            // An emulated boot takes 4 s on a quiet machine and was seen to take 40 s on one that is overloaded.
            boot_timeout: Duration::from_secs(5 * 60),
            // Far above any client's slots; bounds memory when something goes round in circles.
            max_queued: 4096,
            priorities: BTreeMap::new(),
            max_start_failures: 3,
            retry_first: Duration::from_secs(10),
            retry_max: Duration::from_secs(5 * 60),
        }
    }
}
