//! Machines that are always there, never start or stop, and are used again by everybody: what a policy is compared with. First
//! come, first served; no planner is asked.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::num::NonZeroU32;
use std::time::Duration;

use super::course::{Course, Tally};
use super::trace::{Build, Trace};
use crate::nix::System;

/// One system's machines.
struct Machines {
    count: u32,
    /// When each slot is free, as far as slots were used.
    free: BinaryHeap<Reverse<Duration>>,
    slots: usize,
    waits: Vec<Duration>,
}

impl Machines {
    fn new(count: NonZeroU32, slots_each: NonZeroU32) -> Self {
        let slots = count.get().saturating_mul(slots_each.get());
        Self {
            count: count.get(),
            free: BinaryHeap::new(),
            slots: slots as usize,
            waits: Vec::new(),
        }
    }

    /// Takes the next build; when it is done.
    fn take(&mut self, build: &Build) -> Duration {
        let free = if self.free.len() < self.slots {
            None
        } else {
            self.free.pop()
        };
        let begin = free.map_or(build.at, |Reverse(free)| free.max(build.at));
        self.waits.push(begin.saturating_sub(build.at));
        let end = begin + build.work;
        self.free.push(Reverse(end));
        end
    }
}

/// How a trace goes with so many machines of each system, of so many slots each.
pub(super) fn course(
    trace: &Trace,
    machines: &BTreeMap<System, (NonZeroU32, NonZeroU32)>,
) -> Course {
    let machines = machines
        .iter()
        .map(|(system, (count, slots))| (*system, Machines::new(*count, *slots)));
    let mut machines: BTreeMap<System, Machines> = machines.collect();
    let mut end = Duration::ZERO;
    for build in trace.builds() {
        if let Some(machines) = machines.get_mut(&build.system) {
            end = end.max(machines.take(build));
        }
    }
    let tally = |machines: Machines| Tally {
        waits: machines.waits,
        vm_time: end * machines.count,
        starts: u64::from(machines.count),
        peak: machines.count as usize,
        ..Tally::default()
    };
    let peak = machines.values().map(|machines| machines.count as usize);
    Course {
        peak: peak.sum(),
        systems: machines
            .into_iter()
            .map(|(system, machines)| (system, tally(machines)))
            .collect(),
    }
}
