//! What each pool is told of the machine, which all of them share.

use std::time::{Duration, Instant};

use tracing::info;

use super::supervisor::VmCommand;
use super::system::ManagedSystem;
use super::{Manager, now};
use crate::nix::System;
use crate::pool::Event;
use crate::pool::budget::Machine;
use crate::vm::VmBackend;

/// How often the host is looked at while there are VMs: an emulated guest takes up to half a GiB in that time. The kernel
/// tells of pressure, and not of how much is left; nor of its sleep, to who has no right to keep it awake.
const HOST_LOOK: Duration = Duration::from_millis(500);

impl<B: VmBackend> Manager<B> {
    /// Does something to a system's pool, which first hears what the machine has for it now: any event may start a VM.
    pub(super) fn with_machine(&mut self, name: System, act: impl FnOnce(&mut ManagedSystem<B>)) {
        let machine = self.machine_for(name, now());
        if let Some(system) = self.systems.get_mut(&name) {
            system.pool.set_machine(machine);
            system.look_ahead(now());
            act(system);
        }
    }

    /// What the machine has for a system's VMs beside those of the others.
    fn machine_for(&mut self, name: System, now: Instant) -> Machine {
        let available = self.memory.available_mib();
        let pressure = self.pressure.pressure(&self.budget);
        let others = self.systems.iter().filter(|(other, _)| **other != name);
        let others: Vec<&ManagedSystem<B>> = others.map(|(_, system)| system).collect();
        let promised: u64 = others
            .iter()
            .map(|other| other.pool.promised_memory_mib(now))
            .sum();
        let taken = others.iter().map(|other| other.pool.given());
        let (vcpus, memory_mib) = taken.fold((0_u32, 0_u64), |sum, given| {
            (sum.0.saturating_add(given.0), sum.1.saturating_add(given.1))
        });
        Machine {
            available_mib: available.map(|mib| mib.saturating_sub(promised)),
            vcpus: self.budget.vcpus.map(|most| most.saturating_sub(vcpus)),
            memory_mib: self
                .budget
                .memory_mib
                .map(|most| most.saturating_sub(memory_mib)),
            pressure,
            others_wait: others.iter().any(|other| other.pool.lacks_room()),
            others_at_work: others.iter().map(|other| other.pool.at_work()).sum(),
        }
    }

    /// Has this machine looked at again soon, while there are VMs.
    pub(super) fn watch_host(&mut self, now: Instant) {
        let has_vms = self.systems.values().any(|system| !system.vms.is_empty());
        let look = self.host_look.unwrap_or(now + HOST_LOOK);
        self.host_look = has_vms.then_some(look);
    }

    /// Looks at this machine when it is time to: whether it has slept, and whether it has memory left.
    pub(super) fn look_at_host(&mut self, now: Instant) {
        if self.host_look.is_none_or(|look| look > now) {
            return;
        }
        self.host_look = None;
        if self.sleep.has_been() {
            info!("this machine has slept: the clocks of its guests are set");
            for system in self.systems.values() {
                system
                    .vms
                    .keys()
                    .for_each(|vm| system.command(*vm, VmCommand::SetClock));
            }
        }
        self.keep_memory_free(now);
    }

    /// Where the host has less than half of the floor left, nothing can be relied on any more, other programs included: the VM
    /// ends whose end loses least. One at a time, until there is memory again.
    fn keep_memory_free(&mut self, now: Instant) {
        let floors = self
            .systems
            .values()
            .map(|system| system.pool.policy().memory_floor_mib);
        let least = floors.max().unwrap_or_default() / 2;
        let Some(available) = self.memory.available_mib().filter(|mib| *mib < least) else {
            return;
        };
        let stopping = self
            .systems
            .values()
            .any(|system| system.pool.has_stopping());
        let firsts = self.systems.iter().filter(|_| !stopping);
        let firsts =
            firsts.filter_map(|(name, system)| Some((system.pool.first_for_memory()?, *name)));
        if let Some(((_, vm), name)) = firsts.min() {
            self.with_machine(name, |system| system.end_for_memory(now, vm, available));
        }
    }

    /// Where sessions of a system wait for room, an idle VM of another one goes: one at a time, until there is room.
    pub(super) fn make_room(&mut self) {
        let lacks = |system: &ManagedSystem<B>| system.pool.lacks_room();
        let lacking = self.systems.iter().find(|(_, system)| lacks(system));
        let Some(lacking) = lacking.map(|(name, _)| *name) else {
            return;
        };
        // There may be room by now.
        self.with_machine(lacking, |system| {
            system.handle(now(), Event::DeadlineReached);
        });
        let is_going = self
            .systems
            .values()
            .any(|system| system.pool.has_stopping());
        if is_going || !self.systems.get(&lacking).is_some_and(lacks) {
            return;
        }
        let idle = self.systems.iter().filter(|(name, _)| **name != lacking);
        let idle = idle.filter_map(|(name, system)| Some((system.pool.idle_for_others()?, *name)));
        if let Some((_, name)) = idle.min() {
            self.with_machine(name, |system| system.handle(now(), Event::MakeRoom));
        }
    }
}
