//! xpool.toml as it is written.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::vm::{MemorySize, Network, VcpuCount};
use crate::nix::System;
use crate::pool::policy::{Forecasting, Reuse, Share};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) gateway: RawListen,
    pub(super) metrics: RawListen,
    pub(super) local: RawLocal,
    pub(super) store: RawStorePlace,
    pub(super) trace: RawTrace,
    pub(super) fetch: RawFetch,
    pub(super) budget: RawBudget,
    /// For every system.
    pub(super) pool: RawPool,
    pub(super) systems: RawSystems,
    /// By name.
    pub(super) keys: BTreeMap<toml::Spanned<String>, RawKey>,
}

impl RawConfig {
    /// What is said of a system's pool, by its own section or the one for all.
    pub(super) fn pool_of(&self, system: System) -> RawPool {
        let own = match system {
            System::Aarch64Linux => &self.systems.aarch64_linux,
            System::Riscv64Linux => &self.systems.riscv64_linux,
        };
        own.clone().or(&self.pool)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub(super) struct RawKey {
    pub(super) public_key: Option<toml::Spanned<String>>,
    pub(super) store: RawStore,
    pub(super) priority: Option<toml::Spanned<i32>>,
    pub(super) secrets: Option<bool>,
}

/// What fetches.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub(super) struct RawFetch {
    pub(super) ca_file: Option<toml::Spanned<String>>,
    pub(super) netrc_file: Option<toml::Spanned<String>>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub(super) struct RawStore {
    pub(super) share: Option<Share>,
}

impl RawStore {
    fn or(self, defaults: Self) -> Self {
        let share = self.share.or(defaults.share);
        Self { share }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub(super) struct RawListen {
    pub(super) listen: Option<toml::Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub(super) struct RawLocal {
    pub(super) group: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub(super) struct RawStorePlace {
    pub(super) root: Option<toml::Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub(super) struct RawBudget {
    pub(super) vcpus: Option<toml::Spanned<u32>>,
    pub(super) memory_mib: Option<toml::Spanned<u32>>,
    pub(super) memory_pressure: Option<toml::Spanned<u32>>,
    pub(super) cpu_pressure: Option<toml::Spanned<u32>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub(super) struct RawSystems {
    #[serde(rename = "aarch64-linux")]
    pub(super) aarch64_linux: RawPool,
    #[serde(rename = "riscv64-linux")]
    pub(super) riscv64_linux: RawPool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub(super) struct RawTrace {
    pub(super) file: Option<toml::Spanned<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub(super) struct RawPool {
    pub(super) min_vms: Option<toml::Spanned<u32>>,
    pub(super) max_vms: Option<toml::Spanned<u32>>,
    pub(super) slots_per_vm: Option<toml::Spanned<u32>>,
    pub(super) reuse: Option<Reuse>,
    pub(super) store: RawStore,
    pub(super) warm: Option<toml::Spanned<u32>>,
    pub(super) warm_max: Option<toml::Spanned<u32>>,
    pub(super) forecast: Option<Forecasting>,
    pub(super) template: Option<bool>,
    pub(super) pause: Option<bool>,
    pub(super) vcpus: Option<VcpuCount>,
    pub(super) memory_mib: Option<MemorySize>,
    pub(super) disk_gib: Option<toml::Spanned<u32>>,
    pub(super) network: Option<Network>,
    pub(super) build_machines: Option<toml::Spanned<u32>>,
    pub(super) cpu: Option<toml::Spanned<CpuModel>>,
    pub(super) features: Option<Vec<Word>>,
    pub(super) mandatory_features: Option<Vec<Word>>,
    pub(super) extra_platforms: Option<toml::Spanned<Vec<Word>>>,
    pub(super) experimental_features: Option<Vec<Word>>,
    pub(super) memory_estimate_mib: Option<toml::Spanned<u32>>,
    pub(super) memory_floor_mib: Option<toml::Spanned<u32>>,
    pub(super) lease: Option<HumanDuration>,
    pub(super) timeout: Option<HumanDuration>,
    pub(super) keep_failed: Option<HumanDuration>,
    pub(super) max_silent_time: Option<HumanDuration>,
    pub(super) idle_timeout: Option<HumanDuration>,
    pub(super) scale_down_delay: Option<HumanDuration>,
    pub(super) wait_timeout: Option<HumanDuration>,
    pub(super) boot_timeout: Option<HumanDuration>,
    pub(super) stop_grace: Option<HumanDuration>,
}

impl RawPool {
    /// This, and the defaults' values where this says nothing.
    pub(super) fn or(self, defaults: &Self) -> Self {
        Self {
            min_vms: self.min_vms.or_else(|| defaults.min_vms.clone()),
            max_vms: self.max_vms.or_else(|| defaults.max_vms.clone()),
            slots_per_vm: self.slots_per_vm.or_else(|| defaults.slots_per_vm.clone()),
            reuse: self.reuse.or(defaults.reuse),
            store: self.store.or(defaults.store),
            warm: self.warm.or_else(|| defaults.warm.clone()),
            warm_max: self.warm_max.or_else(|| defaults.warm_max.clone()),
            forecast: self.forecast.or(defaults.forecast),
            template: self.template.or(defaults.template),
            pause: self.pause.or(defaults.pause),
            vcpus: self.vcpus.or(defaults.vcpus),
            memory_mib: self.memory_mib.or(defaults.memory_mib),
            disk_gib: self.disk_gib.or_else(|| defaults.disk_gib.clone()),
            network: self.network.or(defaults.network),
            build_machines: self
                .build_machines
                .or_else(|| defaults.build_machines.clone()),
            cpu: self.cpu.or_else(|| defaults.cpu.clone()),
            features: self.features.or_else(|| defaults.features.clone()),
            mandatory_features: self
                .mandatory_features
                .or_else(|| defaults.mandatory_features.clone()),
            extra_platforms: self
                .extra_platforms
                .or_else(|| defaults.extra_platforms.clone()),
            experimental_features: self
                .experimental_features
                .or_else(|| defaults.experimental_features.clone()),
            memory_estimate_mib: self
                .memory_estimate_mib
                .or_else(|| defaults.memory_estimate_mib.clone()),
            memory_floor_mib: self
                .memory_floor_mib
                .or_else(|| defaults.memory_floor_mib.clone()),
            lease: self.lease.or(defaults.lease),
            timeout: self.timeout.or(defaults.timeout),
            keep_failed: self.keep_failed.or(defaults.keep_failed),
            max_silent_time: self.max_silent_time.or(defaults.max_silent_time),
            idle_timeout: self.idle_timeout.or(defaults.idle_timeout),
            scale_down_delay: self.scale_down_delay.or(defaults.scale_down_delay),
            wait_timeout: self.wait_timeout.or(defaults.wait_timeout),
            boot_timeout: self.boot_timeout.or(defaults.boot_timeout),
            stop_grace: self.stop_grace.or(defaults.stop_grace),
        }
    }
}

/// No time at all would make every wait fail.
const SHORTEST: Duration = Duration::from_secs(1);
/// Far beyond any use, and small enough to be added to any time.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// A duration as people write it: `90s`, `10m`, `1h 30m`.
#[derive(Clone, Copy, Debug)]
pub(super) struct HumanDuration(pub(super) Duration);

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match humantime::parse_duration(&text) {
            Ok(duration) if (SHORTEST..=LONGEST).contains(&duration) => Ok(Self(duration)),
            Ok(_) => Err(D::Error::custom(format!(
                "`{text}` must be from one second to 30 days"
            ))),
            Err(_) => Err(D::Error::custom(format!(
                "`{text}` is not a duration such as `90s`, `10m` or `1h 30m`"
            ))),
        }
    }
}

/// A name of Nix's: a feature or a platform.
#[derive(Clone, Debug)]
pub(super) struct Word(pub(super) String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let what =
            "the name of a feature or a platform, such as `gccarch-rv64gc` or `armv7l-linux`";
        text_of(deserializer, "+-._", what).map(Self)
    }
}

/// The value of QEMU's `-cpu`.
#[derive(Clone, Debug)]
pub(super) struct CpuModel(pub(super) String);

impl<'de> Deserialize<'de> for CpuModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let what = "a value of QEMU's `-cpu`, such as `rv64,v=true,sv57=off`";
        text_of(deserializer, "+-._,=", what).map(Self)
    }
}

/// A text of letters, digits and these characters.
fn text_of<'de, D: Deserializer<'de>>(
    deserializer: D,
    punctuation: &str,
    what: &str,
) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let is_fit = |c: char| c.is_ascii_alphanumeric() || punctuation.contains(c);
    if !text.is_empty() && text.chars().all(is_fit) {
        return Ok(text);
    }
    let text = text.escape_debug();
    Err(D::Error::custom(format!("`{text}` is not {what}")))
}
