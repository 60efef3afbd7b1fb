//! The machine: whether there is enough of it for another VM.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::hold::{Held, Hold, Pressure};
use super::policy::Policy;
use super::vm::{VmId, VmState};

/// How long until the machine is looked at again when something is short.
pub(super) const RECHECK: Duration = Duration::from_secs(1);

/// How long after a session was given a VM its memory is not counted upon as taken: by then a build has unpacked and
/// compiles, so that the host's available memory shows what it takes.
const GROWTH: Duration = Duration::from_secs(60);

/// How much the available memory has to change until who waits is told another figure; it changes all the time.
const NOTABLE_MIB: u64 = 128;

/// There is too little memory for another VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Shortage {
    /// What the host has, in MiB, roughly, without what VMs of other pools will still take.
    pub available_mib: u64,
    /// What it has to have for another VM to start, in MiB; VMs that are there and have not taken their memory yet included.
    pub needed_mib: u64,
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "not enough memory for another VM: {} MiB available, {} MiB needed",
            self.available_mib, self.needed_mib
        )
    }
}

/// What the machine has for one pool. What is not known holds nothing back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// What the host has available, in MiB, without what VMs of other pools will still take.
    pub available_mib: Option<u64>,
    /// Processors that this pool's VMs may have in all: of the budget, what others' VMs leave.
    pub vcpus: Option<u32>,
    /// Memory that this pool's VMs may be given in all, in MiB, likewise.
    pub memory_mib: Option<u64>,
    /// What the machine is short of just now.
    pub pressure: Option<Pressure>,
    /// Whether sessions of another pool wait for room: then nothing starts here that nobody waits for.
    pub others_wait: bool,
    /// VMs of other pools that are at work, or wanted by those who wait.
    pub others_at_work: usize,
}

/// What of the machine VMs of all systems may have together; checked configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineBudget {
    /// Processors; `None` is no limit.
    pub vcpus: Option<u32>,
    /// Memory that they are given, in MiB.
    pub memory_mib: Option<u64>,
    /// The part of the last ten seconds, in percent, in which some program waited for memory, from which nothing is started.
    pub memory_pressure: Option<u32>,
    /// Likewise of processors.
    pub cpu_pressure: Option<u32>,
}

/// What VMs are there, for what another one would need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Census {
    /// Those that have not taken their memory yet.
    pub(super) growing: usize,
    /// All of them.
    pub(super) all: usize,
    /// The processors that they are given.
    pub(super) vcpus: u32,
}

impl Machine {
    /// What another VM lacks; `None` when it may start.
    pub(super) fn lack(&self, census: Census, policy: &Policy) -> Option<Hold> {
        // Pressure last: it does not hold for everybody.
        self.budget_lack(census, policy)
            .or_else(|| self.memory_lack(census.growing, policy).map(Hold::Memory))
            .or_else(|| self.pressure_on(census.all))
    }

    /// Whether pressure holds back another VM. Where processors are short, one VM runs all the same: a machine that is busy
    /// for hours builds nothing otherwise.
    fn pressure_on(&self, vms: usize) -> Option<Hold> {
        let is_held = |pressure: &Pressure| *pressure == Pressure::Memory || vms > 0;
        self.pressure.filter(is_held).map(Hold::Pressure)
    }

    /// Processors that may still be given, where there is a limit.
    pub(super) fn vcpus_left(&self, census: Census) -> Option<u32> {
        self.vcpus.map(|vcpus| vcpus.saturating_sub(census.vcpus))
    }

    fn budget_lack(&self, census: Census, policy: &Policy) -> Option<Hold> {
        let vms = u64::try_from(census.all).unwrap_or(u64::MAX);
        let given_mib = vms.saturating_mul(policy.memory_mib);
        let needed = policy.vcpus.least();
        let left = self.vcpus_left(census);
        if let Some(left) = left.filter(|left| *left < needed) {
            return Some(Hold::CpuBudget { left, needed });
        }
        let needed_mib = policy.memory_mib;
        let left_mib = self.memory_mib.map(|mib| mib.saturating_sub(given_mib));
        let left_mib = left_mib.filter(|left| *left < needed_mib)?;
        Some(Hold::MemoryBudget {
            left_mib,
            needed_mib,
        })
    }

    fn memory_lack(&self, growing: usize, policy: &Policy) -> Option<Shortage> {
        let available_mib = self.available_mib?;
        let needed_mib =
            estimate_mib(growing.saturating_add(1), policy).saturating_add(policy.memory_floor_mib);
        (available_mib < needed_mib).then_some(Shortage {
            available_mib,
            needed_mib,
        })
    }
}

/// What is told of a start that is held back: the same figures as before, while they are about right.
pub(super) fn told(before: Option<Held>, start: Held) -> Held {
    let hold = match (before.map(|before| before.hold), start.hold) {
        (Some(Hold::Memory(told)), Hold::Memory(lack)) if is_about(told, lack) => {
            Hold::Memory(told)
        }
        (_, other) => other,
    };
    Held { hold, ..start }
}

/// How many VMs have not taken the memory yet that they will take: those that boot, those that nobody uses (a copy that is
/// ready has a fourth of it), and those whose session has just begun.
pub(super) fn growing(vms: &BTreeMap<VmId, VmState>, now: Instant) -> usize {
    let is_growing = |vm: &&VmState| match vm {
        VmState::Booting { .. } => true,
        VmState::Ready(vm) => vm.sessions.is_empty() || now < vm.used_since + GROWTH,
        VmState::Stopping => false,
    };
    vms.values().filter(is_growing).count()
}

/// What this many VMs take, in MiB.
pub(super) fn estimate_mib(vms: usize, policy: &Policy) -> u64 {
    let vms = u64::try_from(vms).unwrap_or(u64::MAX);
    vms.saturating_mul(policy.memory_estimate_mib)
}

fn is_about(before: Shortage, now: Shortage) -> bool {
    before.needed_mib == now.needed_mib
        && before.available_mib.abs_diff(now.available_mib) < NOTABLE_MIB
}
