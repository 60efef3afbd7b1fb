//! What a pool shows of itself.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::budget::Shortage;
use super::decision::{Decision, Figures};
use super::hold::Hold;
use super::policy::{Reuse, Share};
use super::vm::VmState;
use super::{Mode, Pool, SessionId, VmId};

/// A pool at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PoolStatus {
    /// Whether it serves.
    pub mode: Mode,
    /// VMs at the most, as things are.
    pub max_vms: u32,
    /// VMs that `up` may ask for.
    pub up_limit: u32,
    /// VMs that are kept even when nothing waits.
    pub kept: u32,
    /// Which sessions a VM takes after its first one.
    pub reuse: Reuse,
    /// What VMs see of this machine's store, where the session does not ask for less.
    pub share: Share,
    /// VMs that nobody has used yet, kept beside those that are wanted, by a forecast too.
    pub warm: u32,
    /// Sessions that have a VM or wait for one.
    pub demand: usize,
    /// The VMs, oldest first.
    pub vms: Vec<VmStatus>,
    /// Sessions that wait: those for one certain VM, and then the others in the order in which they are served.
    pub queued: Vec<QueuedStatus>,
    /// What it goes by.
    pub figures: Figures,
    /// What it has decided last.
    pub decision: Option<Decision>,
    /// Failed starts since the last good one.
    pub start_failures: u32,
    /// Whether so many failed in a row that who comes is told so at once, until one works: a start is tried as often as the
    /// back-off allows while somebody wants a VM.
    pub degraded: bool,
    /// Why the last start failed, if it did.
    pub start_failure: Option<String>,
    /// How long until another start is tried, if one is being held back, in whole seconds.
    pub retry_in_s: Option<u64>,
    /// What the host's memory lacks for another VM, while that holds one back.
    pub shortage: Option<Shortage>,
    /// What keeps a VM that is wanted from being started, whatever it is.
    pub held: Option<Hold>,
}

/// A session that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct QueuedStatus {
    /// Which one.
    pub session: SessionId,
    /// What its VM is to see of this machine's store.
    pub share: Share,
    /// The VM that it has named, or that has what it comes to fetch; none for a session that any VM may serve.
    pub home: Option<VmId>,
}

/// A VM at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmStatus {
    /// Which one.
    pub id: VmId,
    /// Where it is in its life.
    pub state: VmStage,
    /// The sessions it serves.
    pub sessions: Vec<SessionId>,
    /// For how many whole seconds it has been idle.
    pub idle_s: Option<u64>,
}

/// Where a VM is in its life, as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmStage {
    /// It is not ready yet.
    Booting,
    /// It serves, or could.
    Ready,
    /// It only waits for outputs to be fetched from it.
    Leased,
    /// It is for who names it.
    Pinned,
    /// It serves to the end of its sessions and then stops.
    Draining,
    /// It was told to stop.
    Stopping,
}

impl VmStage {
    /// Every one there is, in the order of a life.
    pub const ALL: [Self; 6] = [
        Self::Booting,
        Self::Ready,
        Self::Leased,
        Self::Pinned,
        Self::Draining,
        Self::Stopping,
    ];

    /// Its name, as it is shown to people and other programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Leased => "leased",
            Self::Pinned => "pinned",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
        }
    }
}

impl Pool {
    /// The pool at the moment `now`.
    pub fn status(&self, now: Instant) -> PoolStatus {
        let until = |at: Instant| at.saturating_duration_since(now);
        PoolStatus {
            mode: self.mode,
            max_vms: self.limit(),
            up_limit: self.policy.up_limit.get(),
            kept: self.kept(),
            reuse: self.policy.reuse,
            share: self.policy.share,
            warm: self.warm_wanted(),
            demand: self.demand(),
            vms: self
                .vms
                .iter()
                .map(|(id, vm)| self.vm_status(*id, vm, now))
                .collect(),
            queued: self
                .queue
                .bound()
                .chain(self.queue.in_order())
                .map(|(session, waiting)| QueuedStatus {
                    session,
                    share: waiting.claim.share,
                    home: waiting.home,
                })
                .collect(),
            figures: self.figures(),
            decision: self.last_decision.clone(),
            start_failures: self.backoff.failures(),
            degraded: self.is_degraded(),
            start_failure: self.backoff.reason().map(str::to_owned),
            retry_in_s: self.retry_deadline().map(|at| whole_seconds(until(at))),
            shortage: match self.held.map(|held| held.hold) {
                Some(Hold::Memory(shortage)) => Some(shortage),
                _ => None,
            },
            held: self.held.map(|held| held.hold),
        }
    }

    fn vm_status(&self, id: VmId, vm: &VmState, now: Instant) -> VmStatus {
        let state = match (vm, self.mode) {
            (VmState::Booting { .. }, _) => VmStage::Booting,
            (VmState::Ready(vm), _) if vm.is_draining() => VmStage::Draining,
            (VmState::Ready(vm), _) if vm.is_leased() => VmStage::Leased,
            (VmState::Ready(vm), Mode::Open) if vm.is_pinned => VmStage::Pinned,
            (VmState::Ready(_), Mode::Open) => VmStage::Ready,
            (VmState::Ready(_), Mode::Draining) => VmStage::Draining,
            (VmState::Stopping, _) => VmStage::Stopping,
        };
        let idle = vm
            .idle_since()
            .map(|since| now.saturating_duration_since(since));
        VmStatus {
            id,
            state,
            sessions: vm.sessions().collect(),
            idle_s: idle.map(|idle| idle.as_secs()),
        }
    }
}

/// Rounded up, so that a wait that is not over is never shown as none.
pub(super) fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
