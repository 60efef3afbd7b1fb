//! What is counted while a trace takes its course.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::nix::System;

/// What is counted of one system, or of all.
#[derive(Clone, Debug, Default)]
pub(in crate::simulate) struct Tally {
    /// Of builds that got a VM.
    pub(in crate::simulate) waits: Vec<Duration>,
    pub(in crate::simulate) vm_time: Duration,
    pub(in crate::simulate) starts: u64,
    pub(in crate::simulate) peak: usize,
    pub(in crate::simulate) rejected: u64,
    pub(in crate::simulate) lost: u64,
}

/// How it went.
#[derive(Debug)]
pub(in crate::simulate) struct Course {
    pub(in crate::simulate) systems: BTreeMap<System, Tally>,
    /// VMs of all systems at a time.
    pub(super) peak: usize,
}

impl Course {
    /// All systems taken together.
    pub(in crate::simulate) fn all(&self) -> Tally {
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
