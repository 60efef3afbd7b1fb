//! Memory of the host: whether there is enough for another VM.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::policy::Policy;
use super::vm::{VmId, VmState};

/// How long until the host's memory is looked at again when it is short.
const RECHECK: Duration = Duration::from_secs(1);

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

/// What the pool knows of the host's memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget {
    /// In MiB; `None` when it is not known, which allows everything.
    available_mib: Option<u64>,
    held_back: Option<HeldBack>,
}

#[derive(Clone, Debug)]
struct HeldBack {
    shortage: Shortage,
    recheck_at: Instant,
}

impl Budget {
    /// Notes what the host has.
    pub(super) fn set_available(&mut self, available_mib: Option<u64>) {
        self.available_mib = available_mib;
    }

    /// What another VM lacks beside those that have not taken their memory yet; `None` when it may start.
    pub(super) fn lack(&self, growing: usize, policy: &Policy) -> Option<Shortage> {
        let available_mib = self.available_mib?;
        let needed_mib =
            estimate_mib(growing.saturating_add(1), policy).saturating_add(policy.memory_floor_mib);
        (available_mib < needed_mib).then_some(Shortage {
            available_mib,
            needed_mib,
        })
    }

    /// Notes whether a start that is wanted is held back.
    pub(super) fn hold_back(&mut self, now: Instant, lack: Option<Shortage>) {
        let before = self.shortage();
        self.held_back = lack.map(|lack| HeldBack {
            shortage: before
                .filter(|before| is_about(*before, lack))
                .unwrap_or(lack),
            recheck_at: now + RECHECK,
        });
    }

    /// What a start that is wanted lacks.
    pub(super) fn shortage(&self) -> Option<Shortage> {
        self.held_back.as_ref().map(|held_back| held_back.shortage)
    }

    /// When to look again.
    pub(super) fn recheck_at(&self) -> Option<Instant> {
        self.held_back
            .as_ref()
            .map(|held_back| held_back.recheck_at)
    }
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
