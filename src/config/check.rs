//! One system's section, checked: every value in its range, and values that do not fit together refused.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::raw::{CpuModel, HumanDuration, RawBudget, RawPool, Word};
use super::vm::VmProfile;
use super::{ConfigError, Host, MOST_BUILD_MACHINES, SystemConfig};
use crate::nix::abilities::Abilities;
use crate::pool::budget::MachineBudget;
use crate::pool::policy::{BuildLimits, Policy, Reuse, UP_LIMIT, WARM_MAX};

type Number = toml::Spanned<u32>;

/// The portable image's disk, which can grow and not shrink (images/portable/assemble.sh).
const LEAST_DISK_GIB: u32 = 16;
/// What its file system has tables for.
const MOST_DISK_GIB: u32 = 4096;

/// Where a value stands, for what is wrong with it.
struct Checker<E> {
    error: E,
}

impl<E: Fn(&Number, String) -> ConfigError> Checker<E> {
    fn within(
        &self,
        value: Option<&Number>,
        key: &str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, ConfigError> {
        let Some(number) = value else { return Ok(None) };
        let given = *number.get_ref();
        if range.contains(&given) {
            return Ok(Some(given));
        }
        let (least, most) = range.into_inner();
        let message = format!("`{key}` is {given} but must be from {least} to {most}");
        Err((self.error)(number, message))
    }

    fn mebibytes(
        &self,
        value: Option<&Number>,
        key: &str,
        least: u32,
    ) -> Result<Option<u32>, ConfigError> {
        self.within(value, key, least..=1 << 20)
    }

    fn slots_per_vm(&self, raw: &RawPool, reuse: Reuse) -> Result<NonZeroU32, ConfigError> {
        let slots = raw.slots_per_vm.as_ref();
        let given = non_zero(self.within(slots, "slots-per-vm", 1..=16)?);
        let slots_per_vm = given.unwrap_or(NonZeroU32::MIN);
        match slots {
            Some(slots) if slots_per_vm > NonZeroU32::MIN && reuse == Reuse::Never => {
                let message = format!(
                    "`slots-per-vm` is {slots_per_vm} but with `reuse = \"never\"` a VM has one build in its life"
                );
                let hint = "more than 1 needs `reuse = \"client\"` or `reuse = \"always\"`";
                Err((self.error)(slots, message).with_hint(hint))
            }
            _ => Ok(slots_per_vm),
        }
    }

    /// The limit of what is kept warm: what is configured, or what suits what else is.
    fn warm_max(&self, raw: &RawPool, warm: u32, most: u32) -> Result<u32, ConfigError> {
        let Some(warm_max) = self.within(raw.warm_max.as_ref(), "warm-max", 0..=most)? else {
            return Ok(warm.max(WARM_MAX.min(most)));
        };
        match &raw.warm {
            Some(number) if warm > warm_max => {
                let message = format!("`warm` is {warm} but `warm-max` is {warm_max}");
                let hint = "`warm-max` is the most that is kept warm, by a forecast too";
                Err((self.error)(number, message).with_hint(hint))
            }
            _ => Ok(warm_max),
        }
    }

    fn profile(&self, raw: &RawPool, mut profile: VmProfile) -> Result<VmProfile, ConfigError> {
        if let Some(vcpus) = raw.vcpus {
            profile.vcpus = vcpus;
        }
        profile.memory_mib = raw.memory_mib.unwrap_or(profile.memory_mib);
        if let Some(CpuModel(cpu)) = raw.cpu.as_ref().map(toml::Spanned::get_ref) {
            profile.cpu.clone_from(cpu);
        }
        let disk_gib = self.within(
            raw.disk_gib.as_ref(),
            "disk-gib",
            LEAST_DISK_GIB..=MOST_DISK_GIB,
        )?;
        profile.disk_gib = disk_gib.unwrap_or(profile.disk_gib);
        Ok(profile)
    }

    fn policy(
        &self,
        raw: &RawPool,
        profile: &VmProfile,
        host: &Host,
        budget_mib: Option<u64>,
    ) -> Result<Policy, ConfigError> {
        let defaults = Policy::default();
        let memory_mib = host.vm_memory_mib(profile.memory_mib, budget_mib);
        let configured = non_zero(self.within(raw.max_vms.as_ref(), "max-vms", 1..=1000)?);
        let max_vms = configured.unwrap_or_else(|| host.max_vms());
        let most = max_vms.get();
        let reuse = raw.reuse.unwrap_or_default();
        let min_vms = self.within(raw.min_vms.as_ref(), "min-vms", 0..=most)?;
        let warm = self.within(raw.warm.as_ref(), "warm", 0..=most)?;
        let warm = warm.unwrap_or(defaults.warm);
        let estimate = raw.memory_estimate_mib.as_ref();
        let estimate = self.mebibytes(estimate, "memory-estimate-mib", 1)?;
        let floor = self.mebibytes(raw.memory_floor_mib.as_ref(), "memory-floor-mib", 0)?;
        Ok(Policy {
            min_vms: min_vms.unwrap_or(defaults.min_vms),
            max_vms,
            // Who has set a limit means it; the default only keeps a pool that grows on its own from taking everything.
            up_limit: configured.unwrap_or(max_vms.max(UP_LIMIT)),
            slots_per_vm: self.slots_per_vm(raw, reuse)?,
            reuse,
            share: raw.store.share.unwrap_or(defaults.share),
            warm,
            forecast: raw.forecast.unwrap_or(defaults.forecast),
            warm_max: self.warm_max(raw, warm, most)?,
            lease: or(raw.lease, defaults.lease),
            vcpus: host.vcpus(profile.vcpus, memory_mib),
            memory_mib: u64::from(memory_mib),
            memory_estimate_mib: estimate.map_or(defaults.memory_estimate_mib, u64::from),
            memory_floor_mib: floor.map_or_else(|| host.memory_floor_mib(), u64::from),
            keep_failed: raw.keep_failed.map(|time| time.0),
            build_limits: BuildLimits {
                timeout: raw.timeout.map(|time| time.0),
                max_silent_time: raw.max_silent_time.map(|time| time.0),
            },
            idle_timeout: or(raw.idle_timeout, defaults.idle_timeout),
            scale_down_delay: or(raw.scale_down_delay, defaults.scale_down_delay),
            wait_timeout: raw.wait_timeout.map(|time| time.0),
            boot_timeout: or(raw.boot_timeout, defaults.boot_timeout),
            ..defaults
        })
    }
}

/// Checks one system's values and puts defaults where there are none; `budget_mib` is the memory that VMs of all systems may be given, and
/// `error` says where a value stands.
pub(super) fn pool(
    raw: &RawPool,
    profile: VmProfile,
    host: &Host,
    budget_mib: Option<u64>,
    error: impl Fn(&Number, String) -> ConfigError,
) -> Result<SystemConfig, ConfigError> {
    let checker = Checker { error };
    let profile = checker.profile(raw, profile)?;
    let build_machines = raw.build_machines.as_ref();
    Ok(SystemConfig {
        policy: checker.policy(raw, &profile, host, budget_mib)?,
        profile,
        template: raw.template.unwrap_or(true),
        pause: raw.pause.unwrap_or(true),
        network: raw.network.unwrap_or_default(),
        abilities: abilities(raw),
        usual_build_machines: host.build_machines(),
        build_machines: checker.within(
            build_machines,
            "build-machines",
            1..=MOST_BUILD_MACHINES,
        )?,
        // A clean shutdown of an emulated guest takes about two seconds on a quiet machine.
        stop_grace: or(raw.stop_grace, Duration::from_secs(20)),
    })
}

fn abilities(raw: &RawPool) -> Abilities {
    let words = |words: Option<&Vec<Word>>| {
        let words = words.into_iter().flatten();
        words.map(|Word(word)| word.clone()).collect::<Vec<_>>()
    };
    let platforms = raw.extra_platforms.as_ref();
    Abilities::new(
        words(raw.features.as_ref()),
        words(raw.mandatory_features.as_ref()),
        words(platforms.map(toml::Spanned::get_ref)),
        words(raw.experimental_features.as_ref()),
    )
}

/// Checks what VMs of all systems may have together.
pub(super) fn budget(
    raw: &RawBudget,
    error: impl Fn(&Number, String) -> ConfigError,
) -> Result<MachineBudget, ConfigError> {
    let checker = Checker { error };
    let percent = |value: Option<&Number>, key, default| {
        // All of the time is no limit.
        let given = checker.within(value, key, 1..=100)?.unwrap_or(default);
        Ok((given < 100).then_some(given))
    };
    let memory_mib = checker.mebibytes(raw.memory_mib.as_ref(), "memory-mib", 256)?;
    Ok(MachineBudget {
        vcpus: checker.within(raw.vcpus.as_ref(), "vcpus", 1..=4096)?,
        memory_mib: memory_mib.map(u64::from),
        memory_pressure: percent(raw.memory_pressure.as_ref(), "memory-pressure", 20)?,
        // No limit: with one emulated processor at work for each real one this was seen to be 97, and nothing else was there.
        cpu_pressure: percent(raw.cpu_pressure.as_ref(), "cpu-pressure", 100)?,
    })
}

fn non_zero(value: Option<u32>) -> Option<NonZeroU32> {
    value.and_then(NonZeroU32::new)
}

fn or(value: Option<HumanDuration>, default: Duration) -> Duration {
    value.map_or(default, |duration| duration.0)
}
