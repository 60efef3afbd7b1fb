//! One profile of vm-configs/: how a VM of a system is laid out in QEMU.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::nix::System;

/// Far beyond what pays under emulation.
const MOST_VCPUS: u32 = 64;

/// Memory of a VM: from what a guest boots with to a TiB.
const MEMORY_MIB: RangeInclusive<u32> = 256..=1 << 20;

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
    pub vcpus: VcpuCount,
    /// Memory of a VM in MiB. What its guest has not touched takes none of this machine's.
    pub memory_mib: MemorySize,
    /// Size of a VM's disk in GiB. What is not written takes no room.
    #[serde(default = "usual_disk_gib")]
    pub disk_gib: u32,
    /// Value of the kernel's `console=`.
    pub console: String,
    /// What is added to the image's kernel command line; may be empty.
    pub cmdline: String,
}

/// What a browser or a compiler of its own takes to build, and then some.
fn usual_disk_gib() -> u32 {
    64
}

/// How many processors a VM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuCount {
    /// All of the machine's where one VM is at work, fewer where many are.
    Auto,
    /// So many.
    Fixed(NonZeroU32),
}

const AUTO: &str = "auto";

impl Serialize for VcpuCount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Fixed(count) => count.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for VcpuCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VcpuVisitor)
    }
}

struct VcpuVisitor;

impl Visitor<'_> for VcpuVisitor {
    type Value = VcpuCount;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a number from 1 to {MOST_VCPUS}, or \"{AUTO}\"")
    }

    fn visit_i64<E: de::Error>(self, given: i64) -> Result<VcpuCount, E> {
        let count = u32::try_from(given)
            .ok()
            .filter(|count| *count <= MOST_VCPUS);
        let count = count.and_then(NonZeroU32::new).map(VcpuCount::Fixed);
        count.ok_or_else(|| E::invalid_value(Unexpected::Signed(given), &self))
    }

    fn visit_str<E: de::Error>(self, given: &str) -> Result<VcpuCount, E> {
        let auto = (given == AUTO).then_some(VcpuCount::Auto);
        auto.ok_or_else(|| E::invalid_value(Unexpected::Str(given), &self))
    }
}

/// How much memory a VM has, in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemorySize {
    /// A part of the machine's.
    Auto,
    /// So much.
    Fixed(u32),
}

impl Serialize for MemorySize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Fixed(mib) => mib.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for MemorySize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MemoryVisitor)
    }
}

struct MemoryVisitor;

impl Visitor<'_> for MemoryVisitor {
    type Value = MemorySize;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (least, most) = MEMORY_MIB.into_inner();
        write!(f, "a number from {least} to {most}, or \"{AUTO}\"")
    }

    fn visit_i64<E: de::Error>(self, given: i64) -> Result<MemorySize, E> {
        let mib = u32::try_from(given).ok();
        let mib = mib.filter(|mib| MEMORY_MIB.contains(mib));
        let size = mib.map(MemorySize::Fixed);
        size.ok_or_else(|| E::invalid_value(Unexpected::Signed(given), &self))
    }

    fn visit_str<E: de::Error>(self, given: &str) -> Result<MemorySize, E> {
        let auto = (given == AUTO).then_some(MemorySize::Auto);
        auto.ok_or_else(|| E::invalid_value(Unexpected::Str(given), &self))
    }
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
