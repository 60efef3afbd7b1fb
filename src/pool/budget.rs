//! Memory of the host: whether there is enough for another VM.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::policy::Policy;

/// How long until the host's memory is looked at again when it is short.
const RECHECK: Duration = Duration::from_secs(1);

/// How much the available memory has to change until who waits is told another figure; it changes all the time.
const NOTABLE_MIB: u64 = 128;

/// There is too little memory for another VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Shortage {
    /// What the host has, in MiB, roughly.
    pub available_mib: u64,
    /// What it has to have for another VM to start, in MiB.
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

    /// What another VM lacks beside `booting` ones, whose memory is not taken yet; `None` when it may start.
    pub(super) fn lack(&self, booting: usize, policy: &Policy) -> Option<Shortage> {
        let available_mib = self.available_mib?;
        let starts = u64::try_from(booting).unwrap_or(u64::MAX).saturating_add(1);
        let needed_mib = policy
            .memory_estimate_mib
            .saturating_mul(starts)
            .saturating_add(policy.memory_floor_mib);
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

fn is_about(before: Shortage, now: Shortage) -> bool {
    before.needed_mib == now.needed_mib
        && before.available_mib.abs_diff(now.available_mib) < NOTABLE_MIB
}
