//! What a pool has decided and what from, for people: the same figures wherever somebody asks why.

use serde::{Deserialize, Serialize};

use super::hold::Hold;
use super::vm::VmState;
use super::{Action, Pool, VmId, planner};

/// A decision, with the figures that it was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Decision {
    /// What was decided.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// What from.
    pub figures: Figures,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "decided")]
pub enum Verdict {
    /// VMs are missing, and start.
    Start {
        /// Which.
        vms: Vec<VmId>,
    },
    /// VMs are missing, and do not start.
    Wait {
        /// What holds them back.
        held: Hold,
    },
    /// VMs go that nobody needs any more.
    Stop {
        /// Which.
        vms: Vec<VmId>,
    },
    /// VMs that are of no use to those who wait go for them.
    MakeRoom {
        /// Which.
        vms: Vec<VmId>,
    },
}

/// What a pool goes by, just before it decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Figures {
    /// Sessions that have a VM or wait for one.
    pub demand: usize,
    /// Those of them that wait.
    pub waiting: usize,
    /// VMs that there should be: for sessions, and kept or warm. Not counted further than could ever matter, which is the limit
    /// beside those that there are.
    pub want: usize,
    /// VMs that there are, but for those that are stopping.
    pub have: usize,
    /// Those of them that are not ready yet.
    pub starting: usize,
    /// VMs at the most.
    pub limit: u32,
    /// VMs that a forecast would have kept warm, whether it does or not; `None` where it says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<u32>,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            demand,
            waiting,
            want,
            have,
            starting,
            limit,
            forecast,
        } = self;
        write!(
            f,
            "sessions: {demand}, {waiting} waiting; VMs: want {want}, have {have}, {starting} starting, limit {limit}"
        )?;
        forecast.map_or(Ok(()), |forecast| write!(f, ", forecast {forecast}"))
    }
}

impl Pool {
    /// What the last event has led to, that is new.
    pub fn decisions(&self) -> &[Decision] {
        &self.decisions
    }

    pub(super) fn figures(&self) -> Figures {
        Figures {
            demand: self.demand(),
            waiting: self.queue.len(),
            want: self.live_vms() + self.missing_count(),
            have: self.live_vms(),
            starting: planner::booting(&self.vms),
            limit: self.limit(),
            forecast: self.forecast.map(|said| said.min(self.policy.warm_max)),
        }
    }

    /// Notes starts and stops, and what holds a start back where that has changed.
    pub(super) fn note_decisions(
        &mut self,
        figures: Figures,
        before: Option<Hold>,
        scaled: &Scaled,
    ) {
        let boots = scaled.boots.iter().filter_map(|action| match action {
            Action::Boot(vm, _) => Some(*vm),
            _ => None,
        });
        let vms = boots.collect::<Vec<_>>();
        let held = self
            .held
            .map(|held| held.hold)
            .filter(|held| Some(*held) != before);
        let verdicts = [
            (!vms.is_empty()).then_some(Verdict::Start { vms }),
            stopped(&scaled.idle).map(|vms| Verdict::Stop { vms }),
            stopped(&scaled.room).map(|vms| Verdict::MakeRoom { vms }),
            held.map(|held| Verdict::Wait { held }),
        ];
        let verdicts = verdicts.into_iter().flatten();
        self.decisions = verdicts
            .map(|verdict| Decision { verdict, figures })
            .collect();
        if let Some(last) = self.decisions.last() {
            self.last_decision = Some(last.clone());
        }
    }
}

/// What one look at the pool's size has led to.
#[derive(Debug, Default)]
pub(super) struct Scaled {
    /// Starts.
    pub(super) boots: Vec<Action>,
    /// VMs that were idle for long.
    pub(super) idle: Vec<Action>,
    /// VMs that go for those who wait.
    pub(super) room: Vec<Action>,
}

fn stopped(actions: &[Action]) -> Option<Vec<VmId>> {
    let vms = actions.iter().filter_map(|action| match action {
        Action::PowerDown(vm) | Action::Kill(vm) => Some(*vm),
        _ => None,
    });
    let vms: Vec<VmId> = vms.collect();
    (!vms.is_empty()).then_some(vms)
}

/// Whether a VM serves, or will.
pub(super) fn is_live(vm: &VmState) -> bool {
    !matches!(vm, VmState::Stopping)
}
