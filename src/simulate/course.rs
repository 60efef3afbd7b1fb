//! What is counted while a trace takes its course.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::nix::System;

/// What is counted of one system, or of all.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Of builds that got a VM.
    pub(super) waits: Vec<Duration>,
    pub(super) vm_time: Duration,
    pub(super) starts: u64,
    pub(super) peak: usize,
    pub(super) rejected: u64,
    pub(super) lost: u64,
}

/// How it went.
#[derive(Debug)]
pub(super) struct Course {
    pub(super) systems: BTreeMap<System, Tally>,
    /// VMs of all systems at a time.
    pub(super) peak: usize,
}

impl Course {
    /// All systems taken together.
    pub(super) fn all(&self) -> Tally {
        let mut all = Tally::default();
        for tally in self.systems.values() {
            all.waits.extend_from_slice(&tally.waits);
            all.vm_time += tally.vm_time;
            all.starts += tally.starts;
            all.rejected += tally.rejected;
            all.lost += tally.lost;
        }
        all.peak = self.peak;
        all
    }
}
