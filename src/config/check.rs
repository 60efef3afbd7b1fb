//! One system's section, checked: every value in its range, and values that do not fit together refused.

use std::num::NonZeroU32;
use std::time::Duration;

use super::raw::{HumanDuration, RawPool};
use super::vm::VmProfile;
use super::{ConfigError, Host, SystemConfig};
use crate::pool::policy::{BuildLimits, Policy, Reuse, UP_LIMIT};

type Number = toml::Spanned<u32>;

/// Slots have names of two digits.
const MOST_BUILD_MACHINES: u32 = 64;

/// As many as a small pool needs to have a queue, and to use what `up` adds to it.
const FEWEST_BUILD_MACHINES: u32 = 16;

/// Checks one system's values and puts defaults where there are none; `error` says where a value stands.
pub(super) fn pool(
    raw: &RawPool,
    mut profile: VmProfile,
    host: &Host,
    error: impl Fn(&Number, String) -> ConfigError,
) -> Result<SystemConfig, ConfigError> {
    let within = |value: &Option<Number>, key: &str, least: u32, most: u32| match value {
        Some(number) if (least..=most).contains(number.get_ref()) => Ok(Some(*number.get_ref())),
        Some(number) => {
            let given = number.get_ref();
            Err(error(
                number,
                format!("`{key}` is {given} but must be from {least} to {most}"),
            ))
        }
        None => Ok(None),
    };
    if let Some(vcpus) = within(&raw.vcpus, "vcpus", 1, 64)? {
        profile.vcpus = vcpus;
    }
    if let Some(memory_mib) = within(&raw.memory_mib, "memory-mib", 256, 1 << 20)? {
        profile.memory_mib = memory_mib;
    }
    let defaults = Policy::default();
    let configured = non_zero(within(&raw.max_vms, "max-vms", 1, 1000)?);
    let max_vms = configured.unwrap_or_else(|| host.max_vms(&profile));
    let slots_per_vm =
        non_zero(within(&raw.slots_per_vm, "slots-per-vm", 1, 16)?).unwrap_or(NonZeroU32::MIN);
    let reuse = raw.reuse.unwrap_or_default();
    if let Some(slots) = &raw.slots_per_vm
        && slots_per_vm > NonZeroU32::MIN
        && reuse == Reuse::Never
    {
        let message = format!(
            "`slots-per-vm` is {slots_per_vm} but with `reuse = \"never\"` a VM has one build in its life"
        );
        let hint = "more than 1 needs `reuse = \"client\"` or `reuse = \"always\"`";
        return Err(error(slots, message).with_hint(hint));
    }
    let most = max_vms.get();
    let mebibytes = |value: &Option<Number>, key, least| within(value, key, least, 1 << 20);
    let estimate = mebibytes(&raw.memory_estimate_mib, "memory-estimate-mib", 1)?;
    let floor = mebibytes(&raw.memory_floor_mib, "memory-floor-mib", 0)?;
    let policy = Policy {
        min_vms: within(&raw.min_vms, "min-vms", 0, most)?.unwrap_or(defaults.min_vms),
        max_vms,
        // Who has set a limit means it; the default only keeps a pool that grows on its own from taking everything.
        up_limit: configured.unwrap_or(max_vms.max(UP_LIMIT)),
        slots_per_vm,
        reuse,
        share: raw.store.share.unwrap_or(defaults.share),
        warm: within(&raw.warm, "warm", 0, most)?.unwrap_or(defaults.warm),
        lease: or(raw.lease, defaults.lease),
        memory_estimate_mib: estimate.map_or(defaults.memory_estimate_mib, u64::from),
        memory_floor_mib: floor.map_or(defaults.memory_floor_mib, u64::from),
        build_limits: BuildLimits {
            timeout: raw.timeout.map(|time| time.0),
            max_silent_time: raw.max_silent_time.map(|time| time.0),
        },
        idle_timeout: or(raw.idle_timeout, defaults.idle_timeout),
        boot_timeout: or(raw.boot_timeout, defaults.boot_timeout),
        ..defaults
    };
    // Twice what can run, so that Nix's queue is seen by xpool.
    let wanted = max_vms
        .get()
        .saturating_mul(slots_per_vm.get())
        .saturating_mul(2);
    let key = "build-machines";
    let build_machines = within(&raw.build_machines, key, 1, MOST_BUILD_MACHINES)?
        .unwrap_or_else(|| wanted.clamp(FEWEST_BUILD_MACHINES, MOST_BUILD_MACHINES));
    Ok(SystemConfig {
        policy,
        profile,
        template: raw.template.unwrap_or(true),
        pause: raw.pause.unwrap_or(true),
        network: raw.network.unwrap_or_default(),
        build_machines,
        // A clean shutdown of an emulated guest takes about two seconds on a quiet machine.
        stop_grace: or(raw.stop_grace, Duration::from_secs(20)),
    })
}

fn non_zero(value: Option<u32>) -> Option<NonZeroU32> {
    value.and_then(NonZeroU32::new)
}

fn or(value: Option<HumanDuration>, default: Duration) -> Duration {
    value.map_or(default, |duration| duration.0)
}
