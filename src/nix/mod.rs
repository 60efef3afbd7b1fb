//! What Nix calls things and how its protocol looks on the wire. No IO of its own.

pub mod abilities;
pub mod client;
pub mod conf;
pub mod handshake;
pub mod machines;
pub mod nar_walk;
pub mod nixos;
pub mod observe;
pub mod queries;
pub mod registrations;
pub mod slot;
pub mod stderr;
pub mod store_path;
pub mod walk;
pub mod wire;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A platform that xpool has guests for, as Nix names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum System {
    /// 64-bit Arm.
    #[serde(rename = "aarch64-linux")]
    Aarch64Linux,
    /// 64-bit RISC-V.
    #[serde(rename = "riscv64-linux")]
    Riscv64Linux,
}

impl System {
    /// Every system there is, in the order in which they are listed to people.
    pub const ALL: [Self; 2] = [Self::Riscv64Linux, Self::Aarch64Linux];

    /// Nix's name: `riscv64-linux`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aarch64Linux => "aarch64-linux",
            Self::Riscv64Linux => "riscv64-linux",
        }
    }

    /// The processor alone, as `uname -m` prints it and as VMs and slots are named: `riscv64`.
    pub fn cpu(self) -> &'static str {
        match self {
            Self::Aarch64Linux => "aarch64",
            Self::Riscv64Linux => "riscv64",
        }
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no system that xpool has guests for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown system `{given}`: {}", unknown_system_help(given))]
pub struct UnknownSystem {
    /// What was given.
    pub given: String,
}

fn unknown_system_help(given: &str) -> String {
    let known = System::ALL.map(System::cpu).join("` and `");
    let nearest = System::ALL
        .into_iter()
        .map(|system| (strsim::jaro_winkler(system.cpu(), given), system))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, system)) => format!("did you mean `{}`?", system.cpu()),
        None => format!("xpool has guests for `{known}`"),
    }
}

impl FromStr for System {
    type Err = UnknownSystem;

    /// Takes Nix's name or the processor alone: `riscv64-linux`, `riscv64`.
    fn from_str(given: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|system| given == system.name() || given == system.cpu())
            .ok_or_else(|| UnknownSystem {
                given: given.to_owned(),
            })
    }
}
