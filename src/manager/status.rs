//! What the manager shows of itself: pools, VMs, sessions.

#[cfg(test)]
pub(crate) mod example;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::counters::Counters;
use super::report::BuildProgress;
use crate::forecast::ForecastStatus;
use crate::nix::System;
use crate::nix::store_path::StorePath;
use crate::pool::Mode;
use crate::pool::budget::Shortage;
use crate::pool::decision::{Decision, Figures};
use crate::pool::hold::Hold;
use crate::pool::policy::{Reuse, Share};
use crate::pool::status::VmStage;

/// Everything at one moment; the JSON of `xpool status --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// Each system's pool.
    pub systems: Vec<SystemStatus>,
    /// Builds that run and the last that ended, in the order of their begins. Told when the status is asked for, and not
    /// with its changes.
    #[serde(default)]
    pub builds: Vec<BuildView>,
}

/// One build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BuildView {
    /// Its number.
    pub id: u64,
    /// The session that it is, or was, a part of.
    pub session: u64,
    /// The system that it is for.
    pub system: System,
    /// The VM that it runs on.
    pub vm: String,
    /// The slot that the session came in by.
    pub slot: String,
    /// Whose session it is.
    pub client: String,
    /// The derivation, as the client named it.
    pub derivation: String,
    /// Its outputs, of those whose paths are known before the build.
    pub outputs: Vec<StorePath>,
    /// How far it has come.
    #[serde(flatten)]
    pub progress: BuildProgress,
    /// When it began, in seconds since the epoch.
    pub began: u64,
    /// When it ended.
    pub ended: Option<u64>,
    /// How it ended.
    pub outcome: Option<BuildOutcome>,
    /// The processor time that it took, where the guest's Nix has told.
    pub cpu: Option<CpuTime>,
}

/// How a build ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum BuildOutcome {
    /// It worked.
    Built,
    /// It did not.
    Failed {
        /// Why.
        because: String,
    },
}

/// Processor time of a build in the guest, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuTime {
    /// In user mode.
    pub user_ms: u64,
    /// In the kernel.
    pub system_ms: u64,
}

/// One system's pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SystemStatus {
    /// Which one.
    pub system: System,
    /// Whether it serves.
    pub mode: Mode,
    /// VMs at the most, as things are.
    pub max_vms: u32,
    /// VMs that `up` may ask for.
    pub up_limit: u32,
    /// VMs that are kept even when nothing waits: what `up` asked for, or the configured minimum.
    pub kept: u32,
    /// Which sessions a VM takes after its first one.
    pub reuse: Reuse,
    /// What VMs see of this machine's store, where the session's key does not ask for less.
    pub share: Share,
    /// VMs that nobody has used yet, kept beside those that are wanted, by a forecast too.
    pub warm: u32,
    /// What the forecast says; `None` where there is none.
    #[serde(default)]
    pub forecast: Option<ForecastStatus>,
    /// How inputs come into its VMs.
    pub inputs: InputsWay,
    /// Its VMs, oldest first.
    pub vms: Vec<VmView>,
    /// Its sessions, in the order of their arrival.
    pub sessions: Vec<SessionView>,
    /// What its size is decided from.
    #[serde(default)]
    pub figures: Figures,
    /// What was decided last.
    #[serde(default)]
    pub decision: Option<Decision>,
    /// Failed starts in a row.
    pub start_failures: u32,
    /// Whether so many failed that builds are refused at once, until one works.
    #[serde(default)]
    pub degraded: bool,
    /// Why the last start failed, if it did.
    pub start_failure: Option<String>,
    /// Whole seconds until the next start is tried, while one is held back.
    pub retry_in_s: Option<u64>,
    /// What the host's memory lacks for another VM, while that holds one back.
    pub shortage: Option<Shortage>,
    /// What keeps a VM that is wanted from being started, whatever it is.
    #[serde(default)]
    pub held: Option<Hold>,
    /// What has happened since the manager began.
    #[serde(default)]
    pub counters: Counters,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmView {
    /// Its name: `riscv64-1`.
    pub name: String,
    /// What it sees of this machine's store.
    pub share: Share,
    /// The processors that it is given.
    #[serde(default)]
    pub vcpus: u32,
    /// Where it is in its life.
    pub state: VmStage,
    /// What it is waiting for while it boots.
    pub stage: String,
    /// Whole seconds since its start.
    pub age_s: u64,
    /// How long its start took, in milliseconds, once it was ready.
    pub boot_ms: Option<u64>,
    /// Whole seconds since it last served, when it is idle.
    pub idle_s: Option<u64>,
    /// How many sessions it serves.
    pub sessions: usize,
    /// Whether its processors are stopped, because nothing wants it now.
    pub paused: bool,
    /// The process that runs it, once it is ready.
    pub pid: Option<u32>,
    /// What it takes of the host's memory, in MiB, with its part of what it shares with others. Measured when the status is
    /// asked for, and not told with its changes.
    pub memory_mib: Option<u64>,
    /// Its console log.
    pub console_log: PathBuf,
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SessionView {
    /// Its number.
    pub id: u64,
    /// The slot it came in by: `riscv64-03`.
    pub slot: String,
    /// Who it is.
    pub client: String,
    /// The VM that serves it; none while it waits.
    pub vm: Option<String>,
    /// How many are served before it, of those that wait for any VM; `None` for one that has a VM or waits for a certain one.
    #[serde(default)]
    pub ahead: Option<usize>,
    /// What it does, or what it waits for.
    pub activity: String,
    /// Which of its inputs are shared; `None` where that was not asked.
    pub inputs: Option<InputsView>,
    /// Whole seconds since it came.
    pub age_s: u64,
}

/// How inputs come into a pool's VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "are")]
pub enum InputsWay {
    /// VMs see those that this machine's store has; clients copy the others.
    Shared,
    /// Clients copy all of them.
    Copied {
        /// Why.
        because: String,
    },
}

/// What a session asked for and did not have to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InputsView {
    /// Paths that it asked for.
    pub asked: usize,
    /// Those of them that its VM sees in this machine's store.
    pub shared: usize,
}
