//! The machine, and the defaults that follow from it.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::Path;

use super::MOST_BUILD_MACHINES;
use super::vm::{MemorySize, VcpuCount};
use crate::cgroup;
use crate::package;
use crate::pool::policy::Policy;
use crate::pool::shape::Vcpus;

/// Where memory is short. Eight builds that are there at a time take 15 s with four slots and 10 s with eight or more, on two VMs: Nix tries
/// a build that has found no slot again after five seconds only.
const FEWEST_BUILD_MACHINES: u32 = 16;

/// This machine's memory for each slot, in MiB. A build that waits in one takes 7 MiB of it: Nix's hook 4.5, and xpool 2.8.
const MIB_PER_BUILD_MACHINE: u32 = 128;

/// What the machine has, as far as defaults depend on it.
#[derive(Clone, Debug)]
pub struct Host {
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB, as far as this process may have it.
    pub memory_mib: u32,
    /// Where programs are looked for, as in PATH.
    pub search_path: OsString,
}

/// What a compiler on each processor of a VM has at the least, of the memory that the VM is given.
const MIB_PER_VCPU: u32 = 512;

/// Memory of a VM whose size follows the machine's: enough for a small build, and not more than any known build takes.
const AUTO_MEMORY_MIB: RangeInclusive<u32> = 2048..=16384;

/// What it is a multiple of, so that a template fits after a change of the machine's memory by a few pages.
const MEMORY_STEP_MIB: u32 = 256;

impl Host {
    /// This machine.
    pub fn this() -> Self {
        Self::of(Path::new("/"))
    }

    /// The machine whose `proc` and `sys` are in this folder, with the processors and programs of this one.
    pub(super) fn of(root: &Path) -> Self {
        let cpus = std::thread::available_parallelism()
            .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
        let meminfo = std::fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
        let total_kib = meminfo.lines().find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        });
        let of_machine = total_kib.map_or(4096, |kib| kib / 1024);
        let groups = cgroup::limits(root).into_iter();
        let limits = groups.map(|group| group.limit >> 20);
        let memory_mib = limits.chain([of_machine]).min().unwrap_or(of_machine);
        let memory_mib = u32::try_from(memory_mib).unwrap_or(u32::MAX);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let search_path = package::THIS.search_path(&path);
        Self {
            cpus,
            memory_mib,
            search_path,
        }
    }

    /// A machine that has enough of everything, for a configuration that another one will have.
    #[must_use]
    pub fn with_plenty(self) -> Self {
        Self {
            cpus: 1 << 12,
            memory_mib: 1 << 30,
            ..self
        }
    }

    /// VMs that the machine can bear beside its other work: one per processor, with a GiB each in half of the memory.
    pub(super) fn max_vms(&self) -> NonZeroU32 {
        let by_memory = self.memory_mib / 2 / 1024;
        NonZeroU32::new(self.cpus.min(by_memory)).unwrap_or(NonZeroU32::MIN)
    }

    /// Memory that a VM is given, in MiB: a third of the machine's, or of the budget if that is less, where nothing else is
    /// configured. A VM takes what its guest touches, so two of them and the machine's own programs have room while each build may be
    /// large; and where they have not, a VM ends (`memory-floor-mib`).
    pub(super) fn vm_memory_mib(&self, size: MemorySize, budget_mib: Option<u64>) -> u32 {
        if let MemorySize::Fixed(mib) = size {
            return mib;
        }
        let budget_mib = budget_mib.map_or(u32::MAX, |mib| u32::try_from(mib).unwrap_or(u32::MAX));
        let third = self.memory_mib.min(budget_mib) / 3;
        let (least, most) = AUTO_MEMORY_MIB.into_inner();
        let rounded = third.clamp(least, most) / MEMORY_STEP_MIB * MEMORY_STEP_MIB;
        rounded.min(budget_mib)
    }

    /// Slots that Nix is told of where nothing else is configured.
    pub(super) fn build_machines(&self) -> u32 {
        let by_memory = self.memory_mib / MIB_PER_BUILD_MACHINE;
        by_memory.clamp(FEWEST_BUILD_MACHINES, MOST_BUILD_MACHINES)
    }

    /// Available memory that no start may touch where nothing else is configured: less in a small machine or container, where it would
    /// be all of it.
    pub(super) fn memory_floor_mib(&self) -> u64 {
        let eighth = u64::from(self.memory_mib / 8);
        Policy::default().memory_floor_mib.min(eighth)
    }

    /// Processors that VMs are given.
    pub(super) fn vcpus(&self, count: VcpuCount, memory_mib: u32) -> Vcpus {
        match count {
            VcpuCount::Fixed(count) => Vcpus::fixed(count),
            VcpuCount::Auto => {
                let most = self.cpus.min(memory_mib / MIB_PER_VCPU);
                let most = NonZeroU32::new(most).unwrap_or(NonZeroU32::MIN);
                Vcpus::following(most, self.cpus)
            }
        }
    }
}
