//! What a policy would make of a trace: the manager's own planner in simulated time, beside machines that are always
//! there. Pure: no IO, no clock; the machine's memory is not simulated either.

mod always;
mod course;
pub mod report;
pub mod trace;
mod world;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use course::Course;
use report::{Comparison, Figures, Report};
use trace::Trace;
pub use world::Stuck;
use world::World;

use crate::nix::System;
use crate::pool::policy::Policy;

/// How a system is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its limits and times.
    pub policy: Policy,
    /// The slots that each client knows of; more of its builds at a time wait with the client, as Nix has them wait.
    pub slots: u32,
    /// How long starts and ends of its VMs take.
    pub times: Times,
}

/// How long it takes to do what the planner says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// From a VM's start until it is ready.
    pub start: Duration,
    /// A clean shutdown.
    pub power_down: Duration,
    /// A VM's sudden end.
    pub kill: Duration,
}

impl Times {
    /// What was measured where the README's figures come from: copies of templates under TCG.
    pub fn measured(system: System) -> Self {
        let start = match system {
            System::Riscv64Linux => Duration::from_millis(800),
            System::Aarch64Linux => Duration::from_secs(1),
        };
        Self {
            start,
            power_down: Duration::from_secs(2),
            // Nothing is shut down: QEMU is killed, reaped, and its folder removed.
            kill: Duration::from_millis(100),
        }
    }
}

/// Runs a trace under these plans, one for each system that it names, and with machines that are always there; `origin` is any
/// moment to count from.
pub fn simulate(
    trace: &Trace,
    plans: &BTreeMap<System, Plan>,
    origin: Instant,
) -> Result<Report, Stuck> {
    let configured = World::new(trace, plans.clone(), origin).run()?;
    let always = |count: &dyn Fn(&Policy) -> NonZeroU32| {
        let machines = plans
            .iter()
            .map(|(system, Plan { policy, .. })| (*system, (count(policy), policy.slots_per_vm)));
        always::course(trace, &machines.collect())
    };
    let always_max = always(&|policy| policy.max_vms);
    let always_one = always(&|_| NonZeroU32::MIN);
    let compare = |figures: &dyn Fn(&Course) -> Figures| Comparison {
        configured: figures(&configured),
        always_max: figures(&always_max),
        always_one: figures(&always_one),
    };
    let systems = plans.keys().map(|system| {
        let one = |course: &Course| course.systems.get(system).map(Figures::of);
        (*system, compare(&|course| one(course).unwrap_or_default()))
    });
    Ok(Report {
        trace: trace.summary(),
        start_times_s: plans
            .iter()
            .map(|(system, plan)| (*system, plan.times.start.as_secs_f64()))
            .collect(),
        systems: systems.collect(),
        all: compare(&|course| Figures::of(&course.all())),
    })
}
