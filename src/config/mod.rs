//! Configuration: xpool.toml and vm-configs, raw and then checked.

mod error;
mod raw;
pub mod vm;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

pub use error::ConfigError;
use raw::{RawConfig, RawPool};
use vm::{Network, VmProfile};

use crate::nix::System;
use crate::paths::{ConfigFile, Paths};
use crate::pool::policy::Policy;

/// Everything that can be configured, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the gateway listens.
    pub listen: SocketAddr,
    /// Each system's pool.
    pub systems: BTreeMap<System, SystemConfig>,
    /// Where programs are looked for: the value of PATH.
    pub search_path: OsString,
}

/// One system's pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemConfig {
    /// Limits and times.
    pub policy: Policy,
    /// How its VMs are laid out.
    pub profile: VmProfile,
    /// Whether its guests have a network device.
    pub network: Network,
    /// How many build machines, of one slot each, Nix is told of.
    pub build_machines: u32,
    /// How long a clean shutdown may take.
    pub stop_grace: Duration,
}

/// The gateway's address where none is configured.
pub const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 31022);

/// What the machine has, as far as defaults depend on it.
#[derive(Clone, Debug)]
pub struct Host {
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The value of PATH.
    pub search_path: OsString,
}

impl Host {
    /// This machine.
    pub fn this() -> Self {
        let cpus = std::thread::available_parallelism()
            .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total_kib = meminfo.lines().find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        });
        let memory_mib =
            total_kib.map_or(4096, |kib| u32::try_from(kib / 1024).unwrap_or(u32::MAX));
        let search_path = std::env::var_os("PATH").unwrap_or_default();
        Self {
            cpus,
            memory_mib,
            search_path,
        }
    }

    /// VMs that the machine can bear beside its other work: one per processor, in half of the memory.
    fn max_vms(&self, profile: &VmProfile) -> NonZeroU32 {
        let by_memory = self.memory_mib / 2 / profile.memory_mib.max(1);
        NonZeroU32::new(self.cpus.min(by_memory)).unwrap_or(NonZeroU32::MIN)
    }
}

impl Config {
    /// Reads the files that there are; without any, everything has a default.
    pub fn load(paths: &Paths, host: &Host) -> Result<Self, ConfigError> {
        let (file, text) = match paths.config() {
            ConfigFile::Named(file) => (file, Some(read(file)?)),
            ConfigFile::Usual(file) => (file, read_if_there(file)?),
        };
        let mut profiles = BTreeMap::new();
        for system in System::ALL {
            profiles.insert(system, load_profile(&paths.vm_profile(system), system)?);
        }
        Self::parse(file, text.as_deref().unwrap_or(""), profiles, host)
    }

    fn parse(
        file: &Path,
        text: &str,
        profiles: BTreeMap<System, VmProfile>,
        host: &Host,
    ) -> Result<Self, ConfigError> {
        let raw: RawConfig =
            toml::from_str(text).map_err(|error| ConfigError::toml(file, text, &error))?;
        let at = |value: &toml::Spanned<u32>, message: String| {
            ConfigError::value(file, text, value.span(), message)
        };
        let mut systems = BTreeMap::new();
        for (system, profile) in profiles {
            let own = match system {
                System::Aarch64Linux => &raw.systems.aarch64_linux,
                System::Riscv64Linux => &raw.systems.riscv64_linux,
            };
            let merged = own.clone().or(&raw.pool);
            systems.insert(system, check_pool(&merged, profile, host, at)?);
        }
        let listen = match &raw.gateway.listen {
            Some(listen) => parse_listen(listen.get_ref())
                .map_err(|message| ConfigError::value(file, text, listen.span(), message))?,
            None => DEFAULT_LISTEN,
        };
        Ok(Self {
            listen,
            systems,
            search_path: host.search_path.clone(),
        })
    }
}

fn check_pool(
    raw: &RawPool,
    mut profile: VmProfile,
    host: &Host,
    error: impl Fn(&toml::Spanned<u32>, String) -> ConfigError,
) -> Result<SystemConfig, ConfigError> {
    let within = |value: &Option<toml::Spanned<u32>>, key: &str, least: u32, most: u32| match value
    {
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
    let non_zero = |value: Option<u32>| value.and_then(NonZeroU32::new);
    let defaults = Policy::default();
    let max_vms = non_zero(within(&raw.max_vms, "max-vms", 1, 1000)?)
        .unwrap_or_else(|| host.max_vms(&profile));
    let slots_per_vm =
        non_zero(within(&raw.slots_per_vm, "slots-per-vm", 1, 16)?).unwrap_or(NonZeroU32::MIN);
    // Twice what can run, so that Nix's queue is seen by xpool; from 4 so that a small pool has a queue at all.
    let capacity = max_vms.get().saturating_mul(slots_per_vm.get());
    let build_machines = within(
        &raw.build_machines,
        "build-machines",
        1,
        MOST_BUILD_MACHINES,
    )?
    .unwrap_or_else(|| capacity.saturating_mul(2).clamp(4, MOST_BUILD_MACHINES));
    let policy = Policy {
        min_vms: within(&raw.min_vms, "min-vms", 0, max_vms.get())?.unwrap_or(defaults.min_vms),
        max_vms,
        slots_per_vm,
        idle_timeout: raw
            .idle_timeout
            .map_or(defaults.idle_timeout, |duration| duration.0),
        boot_timeout: raw
            .boot_timeout
            .map_or(defaults.boot_timeout, |duration| duration.0),
        ..defaults
    };
    Ok(SystemConfig {
        policy,
        profile,
        network: raw.network.unwrap_or_default(),
        build_machines,
        // A clean shutdown of an emulated guest takes about two seconds on a quiet machine.
        stop_grace: raw
            .stop_grace
            .map_or(Duration::from_secs(20), |duration| duration.0),
    })
}

/// Slots have names of two digits.
const MOST_BUILD_MACHINES: u32 = 64;

fn parse_listen(given: &str) -> Result<SocketAddr, String> {
    let wrong = |why: &str| format!("`listen` is `{given}` but {why}, such as `{DEFAULT_LISTEN}`");
    let (_, port) = given
        .rsplit_once(':')
        .ok_or_else(|| wrong("must be an address with a port"))?;
    match port.parse::<u32>() {
        Ok(1..=65535) => given
            .parse()
            .map_err(|_| wrong("must be an IP address with a port")),
        _ => Err(wrong("its port must be from 1 to 65535")),
    }
}

fn load_profile(own: &Path, system: System) -> Result<VmProfile, ConfigError> {
    let (file, text) = match read_if_there(own)? {
        Some(text) => (own, text),
        None => (
            Path::new("vm-configs (compiled in)"),
            built_in_profile(system).to_owned(),
        ),
    };
    let profile: VmProfile =
        toml::from_str(&text).map_err(|error| ConfigError::toml(file, &text, &error))?;
    if profile.system != system {
        let message = format!(
            "`system` is `{}` but the file is named after `{system}`",
            profile.system
        );
        return Err(ConfigError::value(file, &text, 0..0, message));
    }
    Ok(profile)
}

fn built_in_profile(system: System) -> &'static str {
    match system {
        System::Aarch64Linux => include_str!("../../vm-configs/aarch64-linux.toml"),
        System::Riscv64Linux => include_str!("../../vm-configs/riscv64-linux.toml"),
    }
}

fn read(file: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(file).map_err(|error| ConfigError::unreadable(file, &error))
}

fn read_if_there(file: &Path) -> Result<Option<String>, ConfigError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ConfigError::unreadable(file, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host {
        cpus: 2,
        memory_mib: 24 * 1024,
        search_path: OsString::new(),
    };

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let profiles =
            System::ALL.map(|system| (system, toml::from_str(built_in_profile(system)).unwrap()));
        Config::parse(Path::new("xpool.toml"), text, profiles.into(), &HOST)
    }

    #[track_caller]
    fn refused(text: &str) -> String {
        let error = parse(text).unwrap_err();
        match error.hint() {
            Some(hint) => format!("{error}; {hint}"),
            None => error.to_string(),
        }
    }

    #[test]
    fn nothing_configured_suits_the_machine() {
        let config = parse("").unwrap();
        assert_eq!(config.listen, DEFAULT_LISTEN);
        let riscv64 = &config.systems[&System::Riscv64Linux];
        assert_eq!(
            (riscv64.policy.max_vms.get(), riscv64.build_machines),
            (2, 4)
        );
        let small = Host {
            cpus: 8,
            memory_mib: 2048,
            ..HOST
        };
        assert_eq!(small.max_vms(&riscv64.profile).get(), 1);
    }

    #[test]
    fn a_systems_own_value_wins_over_the_one_for_all() {
        let config = parse(
            "[pool]\nmax-vms = 3\nidle-timeout = \"90s\"\n[systems.riscv64-linux]\nmax-vms = 5\nvcpus = 1\nnetwork = \"none\"\n",
        )
        .unwrap();
        let (riscv64, aarch64) = (
            &config.systems[&System::Riscv64Linux],
            &config.systems[&System::Aarch64Linux],
        );
        assert_eq!(
            (riscv64.policy.max_vms.get(), aarch64.policy.max_vms.get()),
            (5, 3)
        );
        assert_eq!((riscv64.profile.vcpus, aarch64.profile.vcpus), (1, 2));
        assert_eq!(riscv64.policy.idle_timeout, Duration::from_secs(90));
        assert_eq!(
            (riscv64.network, aarch64.network),
            (Network::None, Network::Nat)
        );
        assert_eq!(riscv64.build_machines, 10);
    }

    #[test]
    fn unknown_keys_are_named_with_their_line_and_the_nearest_known_one() {
        assert_eq!(
            refused("[pool]\n\nmax-vm = 3\n"),
            "xpool.toml:3: unknown key `max-vm`; did you mean `max-vms`?"
        );
        assert_eq!(
            refused("[gatway]\n"),
            "xpool.toml:1: unknown key `gatway`; did you mean `gateway`?"
        );
        assert_eq!(
            refused("[systems.riscv64]\n"),
            "xpool.toml:1: unknown key `riscv64`; did you mean `riscv64-linux`?"
        );
        assert_eq!(
            refused("[gateway]\nxyz = 1\n"),
            "xpool.toml:2: unknown key `xyz`; known keys are `listen`"
        );
    }

    #[test]
    fn values_out_of_range_are_named_with_their_line_and_their_range() {
        assert_eq!(
            refused("[pool]\nmax-vms = 0\n"),
            "xpool.toml:2: `max-vms` is 0 but must be from 1 to 1000"
        );
        assert_eq!(
            refused("[gateway]\nlisten = \"127.0.0.1:99999\"\n"),
            "xpool.toml:2: `listen` is `127.0.0.1:99999` but its port must be from 1 to 65535, such as `127.0.0.1:31022`"
        );
        assert_eq!(
            refused("[pool]\nidle-timeout = \"soon\"\n"),
            "xpool.toml:2: `soon` is not a duration such as `90s`, `10m` or `1h 30m`"
        );
    }

    #[test]
    fn durations_and_minimums_have_ranges() {
        assert_eq!(
            refused("[pool]\nboot-timeout = \"0s\"\n"),
            "xpool.toml:2: `0s` must be from one second to 30 days"
        );
        assert_eq!(
            refused("[pool]\nidle-timeout = \"1000y\"\n"),
            "xpool.toml:2: `1000y` must be from one second to 30 days"
        );
        assert_eq!(
            refused("[pool]\nmax-vms = 2\nmin-vms = 3\n"),
            "xpool.toml:3: `min-vms` is 3 but must be from 0 to 2"
        );
    }

    #[test]
    fn the_example_in_the_readme_is_a_configuration() {
        let readme = include_str!("../../README.md");
        let example = readme
            .split("```toml\n")
            .nth(1)
            .unwrap()
            .split("```")
            .next()
            .unwrap();
        let config = parse(example).unwrap();
        assert_eq!(config.listen, DEFAULT_LISTEN);
        assert_eq!(config.systems[&System::Riscv64Linux].profile.vcpus, 1);
    }

    #[test]
    fn the_compiled_in_profiles_parse_and_are_for_their_system() {
        for system in System::ALL {
            let profile = load_profile(Path::new("/nonexistent"), system).unwrap();
            assert_eq!(profile.system, system);
        }
    }
}
