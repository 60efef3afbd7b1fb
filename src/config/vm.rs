//! One profile of vm-configs/: how a VM of a system is laid out in QEMU.

use serde::{Deserialize, Serialize};

use crate::nix::System;

/// How QEMU is started for one system; `vm-configs/<system>.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct VmProfile {
    /// The platform that the profile is for.
    pub system: System,
    /// QEMU's program: a name to look for in PATH, or an absolute path.
    pub qemu: String,
    /// Value of `-machine`.
    pub machine: String,
    /// Value of `-cpu` under emulation (TCG).
    pub cpu: String,
    /// Value of `-cpu` under KVM.
    pub cpu_kvm: String,
    /// vCPUs of a VM.
    pub vcpus: u32,
    /// Memory of a VM in MiB.
    pub memory_mib: u32,
    /// Value of the kernel's `console=`.
    pub console: String,
    /// What is added to the image's kernel command line; may be empty.
    pub cmdline: String,
}

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accel {
    /// The host's own processor.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

/// Whether a guest has a network device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// QEMU's user network: fixed-output derivations can fetch.
    #[default]
    Nat,
    /// No network device at all.
    None,
}
