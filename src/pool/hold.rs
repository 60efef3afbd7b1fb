//! What keeps a VM that is wanted from being started, and when to look again.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::budget::Shortage;

/// What keeps a VM that is wanted from being started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum Hold {
    /// There are as many as may be.
    MaxVms {
        /// How many that is.
        limit: u32,
    },
    /// The last start failed, and the next one is not due yet or under way.
    BackOff,
    /// The host has too little memory.
    Memory(Shortage),
    /// VMs of all systems have been given the memory that they may have together.
    MemoryBudget {
        /// What is left of the budget, in MiB.
        left_mib: u64,
        /// What another VM is given, in MiB.
        needed_mib: u64,
    },
    /// VMs of all systems have the processors that they may have together.
    CpuBudget {
        /// What is left of the budget.
        left: u32,
        /// What another VM is given.
        needed: u32,
    },
    /// Other programs wait for what the machine is short of.
    Pressure(Pressure),
    /// Sessions of another system wait for what a VM that nobody waits for would take.
    Others,
    /// Many were started just now.
    Rate,
}

/// What the machine is short of, by the kernel's pressure stall information.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pressure {
    /// Memory: programs wait for pages.
    Memory,
    /// Processors: programs wait for their turn.
    Cpu,
}

impl Hold {
    /// Whether it is something of the machine that is short, which a VM of any system that ends makes room for.
    pub fn is_for_want_of_room(self) -> bool {
        match self {
            Self::Memory(_) | Self::MemoryBudget { .. } | Self::CpuBudget { .. } => true,
            Self::MaxVms { .. } | Self::BackOff | Self::Pressure(_) | Self::Others | Self::Rate => {
                false
            }
        }
    }
}

impl std::fmt::Display for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MaxVms { limit: 1 } => write!(f, "one VM may be there at a time"),
            Self::MaxVms { limit } => write!(f, "{limit} VMs may be there at a time"),
            Self::BackOff => write!(f, "the last start failed"),
            Self::Memory(shortage) => shortage.fmt(f),
            Self::MemoryBudget {
                left_mib,
                needed_mib,
            } => write!(
                f,
                "the memory budget has no room for another VM: {left_mib} MiB left, {needed_mib} MiB needed"
            ),
            Self::CpuBudget { left, needed } => write!(
                f,
                "the budget of processors has no room for another VM: {left} left, {needed} needed"
            ),
            Self::Pressure(Pressure::Memory) => {
                write!(f, "the machine is short of memory: programs wait for it")
            }
            Self::Pressure(Pressure::Cpu) => {
                write!(
                    f,
                    "the machine is short of processor time: programs wait for it"
                )
            }
            Self::Others => write!(f, "builds of another system wait for room"),
            Self::Rate => write!(f, "many VMs were started just now"),
        }
    }
}

/// A start that is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) hold: Hold,
    /// When to look again; `None` where an event tells.
    pub(super) look_again: Option<Instant>,
}
