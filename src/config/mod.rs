//! Configuration: xpool.toml and vm-configs, raw and then checked.

mod check;
pub mod client;
pub mod environment;
mod error;
mod host;
pub mod keys;
mod overrides;
mod raw;
pub mod vm;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::ConfigError;
pub use host::Host;
use keys::ClientKey;
pub use overrides::{NoOverride, Overrides};
use raw::RawConfig;
use vm::{Network, VmProfile};

use crate::nix::System;
use crate::nix::abilities::Abilities;
use crate::paths::{ConfigFile, Paths};
use crate::pool::budget::MachineBudget;
use crate::pool::policy::Policy;

/// Everything that can be configured, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the gateway listens.
    pub listen: SocketAddr,
    /// Whether that is what xpool.toml says, and not the default.
    pub is_listen_set: bool,
    /// Where metrics are served, if they are.
    pub metrics: Option<SocketAddr>,
    /// The group whose members may use the local transport, beside who runs the manager and root.
    pub local_group: Option<String>,
    /// The folder that has the `/nix` of the store that VMs see, where that is not the root.
    pub store_root: Option<PathBuf>,
    /// Certificates that fixed-output derivations trust, where they are not those of this machine's Nix.
    pub ca_file: Option<PathBuf>,
    /// What they log in by, if they may.
    pub netrc_file: Option<PathBuf>,
    /// Where what is built when is recorded, if it is.
    pub trace: Option<PathBuf>,
    /// What VMs of all systems may have together.
    pub budget: MachineBudget,
    /// Each system's pool.
    pub systems: BTreeMap<System, SystemConfig>,
    /// Who may log in beside clients on this machine, by name.
    pub keys: Vec<ClientKey>,
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
    /// Whether its VMs start as copies of one that has booted.
    pub template: bool,
    /// Whether a VM is paused while nobody uses it.
    pub pause: bool,
    /// Whether its guests have a network device.
    pub network: Network,
    /// What its builders can do.
    pub abilities: Abilities,
    /// How many build machines, of one slot each, Nix is told of, where that is configured.
    pub build_machines: Option<u32>,
    /// How many where it is not, however few VMs there may be.
    pub usual_build_machines: u32,
    /// How long a clean shutdown may take.
    pub stop_grace: Duration,
}

/// Slots have names of two digits, and Nix looks at every one of them for each build.
const MOST_BUILD_MACHINES: u32 = 64;

impl SystemConfig {
    /// How many build machines Nix is told of while so many VMs may run: twice what they can build at a time at the least, so that
    /// xpool sees what waits.
    pub fn build_machines(&self, max_vms: u32) -> u32 {
        let twice = max_vms
            .saturating_mul(self.policy.slots_per_vm.get())
            .saturating_mul(2);
        self.build_machines
            .unwrap_or_else(|| twice.clamp(self.usual_build_machines, MOST_BUILD_MACHINES))
    }

    /// How many slots sessions may come in by: as many as Nix is ever told of.
    pub fn slots(&self) -> u32 {
        self.build_machines(u32::MAX)
    }
}

/// The gateway's address where none is configured.
pub const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 31022);

/// An address that metrics could be served at.
const METRICS_EXAMPLE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 31023);

impl Config {
    /// Reads the files that there are; without any, everything has a default.
    pub fn load(paths: &Paths, host: &Host) -> Result<Self, ConfigError> {
        Self::load_with(paths, host, &Overrides::default())
    }

    /// The same, with other values for every system's pool.
    pub fn load_with(
        paths: &Paths,
        host: &Host,
        overrides: &Overrides,
    ) -> Result<Self, ConfigError> {
        let (file, text) = match paths.config() {
            ConfigFile::Named(file) => (file, Some(read(file)?)),
            ConfigFile::Usual(file) => (file, read_if_there(file)?),
        };
        let mut profiles = BTreeMap::new();
        for system in System::ALL {
            profiles.insert(system, load_profile(&paths.vm_profile(system), system)?);
        }
        let text = text.as_deref().unwrap_or("");
        let config = Self::parse(file, text, profiles.clone(), host)?;
        // What is wrong in the file is known by now: whatever is, is so by what overrides it.
        let budget_mib = config.budget.memory_mib;
        let overridden = overrides.systems(&raw(file, text)?, profiles, host, budget_mib)?;
        Ok(Self {
            systems: overridden.unwrap_or(config.systems),
            ..config
        })
    }

    /// Checks a text without any file; for the fuzz targets.
    #[doc(hidden)]
    pub fn of_text(text: &str, host: &Host) -> Result<Self, ConfigError> {
        let nowhere = Path::new("/nonexistent");
        let profiles = System::ALL.map(|system| Ok((system, load_profile(nowhere, system)?)));
        let profiles = profiles.into_iter().collect::<Result<_, _>>()?;
        Self::parse(Path::new("xpool.toml"), text, profiles, host)
    }

    fn parse(
        file: &Path,
        text: &str,
        profiles: BTreeMap<System, VmProfile>,
        host: &Host,
    ) -> Result<Self, ConfigError> {
        let raw = raw(file, text)?;
        let error_at = |span, message| ConfigError::value(file, text, span, message);
        let at = |value: &toml::Spanned<u32>, message| error_at(value.span(), message);
        let cpu = raw.pool.cpu.as_ref().map(toml::Spanned::span);
        let platforms = raw.pool.extra_platforms.as_ref();
        let platforms = platforms.map(toml::Spanned::span);
        for (key, span) in [("cpu", cpu), ("extra-platforms", platforms)] {
            let message = format!(
                "`{key}` cannot be the same for all systems: move it to a section such as `[systems.aarch64-linux]`"
            );
            span.map_or(Ok(()), |span| Err(error_at(span, message)))?;
        }
        let budget = check::budget(&raw.budget, at)?;
        let mut systems = BTreeMap::new();
        for (system, profile) in profiles {
            let merged = raw.pool_of(system);
            let pool = check::pool(&merged, profile, host, budget.memory_mib, at)?;
            systems.insert(system, pool);
        }
        let listen = |given: &Option<toml::Spanned<String>>, such_as: SocketAddr| {
            let parse = |listen: &toml::Spanned<String>| {
                parse_listen(listen.get_ref(), such_as)
                    .map_err(|message| error_at(listen.span(), message))
            };
            given.as_ref().map(parse).transpose()
        };
        let gateway = listen(&raw.gateway.listen, DEFAULT_LISTEN)?;
        let root = raw.store.root.as_ref().map(|root| {
            parse_root(root.get_ref())
                .map_err(|message| ConfigError::value(file, text, root.span(), message))
        });
        let absolute = |key: &str, given: &Option<toml::Spanned<String>>| {
            let Some(given) = given else { return Ok(None) };
            let path = PathBuf::from(given.get_ref());
            if path.is_absolute() {
                return Ok(Some(path));
            }
            let message = format!(
                "`{key}` is `{}` but must be an absolute path",
                path.display()
            );
            Err(error_at(given.span(), message))
        };
        Ok(Self {
            listen: gateway.unwrap_or(DEFAULT_LISTEN),
            is_listen_set: gateway.is_some(),
            metrics: listen(&raw.metrics.listen, METRICS_EXAMPLE)?,
            local_group: raw.local.group,
            store_root: root.transpose()?.flatten(),
            ca_file: absolute("ca-file", &raw.fetch.ca_file)?,
            netrc_file: absolute("netrc-file", &raw.fetch.netrc_file)?,
            trace: absolute("file", &raw.trace.file)?,
            budget,
            systems,
            keys: keys::check(&raw.keys, error_at)?,
            search_path: host.search_path.clone(),
        })
    }
}

fn raw(file: &Path, text: &str) -> Result<RawConfig, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::toml(file, text, &error))
}

fn parse_root(given: &str) -> Result<Option<PathBuf>, String> {
    let root = PathBuf::from(given);
    if root.as_os_str() == "/" {
        Ok(None)
    } else if root.is_absolute() {
        Ok(Some(root))
    } else {
        Err(format!(
            "`root` is `{given}` but must be an absolute path, the one that Nix is given as `--store`"
        ))
    }
}

fn parse_listen(given: &str, such_as: SocketAddr) -> Result<SocketAddr, String> {
    let wrong = |why: &str| format!("`listen` is `{given}` but {why}, such as `{such_as}`");
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
