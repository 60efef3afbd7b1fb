//! Where the Nix and the ssh of this user read their configuration, by the environment.

use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;

use crate::paths::NoHome;

/// Where root has what Nix and ssh read of a manager that is another user's.
pub const FIXED_FILES: &str = "/etc/xpool";

/// Where root has xpool for Nix to run, if the program itself could be changed by somebody else.
pub const FIXED_PROGRAM: &str = "/usr/local/libexec/xpool";

/// The files that `xpool machines --install` changes, and what it has to look at for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientPlaces {
    /// The folder of this machine's Nix: nix.conf and machines.
    pub nix: PathBuf,
    /// The nix.conf that is to have the machines, or the file that it includes for such settings.
    pub nix_conf: PathBuf,
    /// Files that had them if another installation of Nix was here.
    pub formerly: Vec<PathBuf>,
    /// The ssh configuration that is to have the gateway.
    pub ssh: SshPlace,
}

/// An ssh configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SshPlace {
    /// A file of its own, which the machine's configuration must include.
    Machine {
        /// The file.
        file: PathBuf,
        /// What includes it.
        by: PathBuf,
    },
    /// The user's configuration.
    User(PathBuf),
}

impl SshPlace {
    /// The file that is changed.
    pub fn file(&self) -> &Path {
        match self {
            Self::Machine { file, .. } | Self::User(file) => file,
        }
    }
}

impl ClientPlaces {
    /// This machine's for root, and the user's own for everybody else.
    pub fn this() -> Result<Self, NoHome> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let nix = variable("NIX_CONF_DIR").map_or_else(|| PathBuf::from("/etc/nix"), PathBuf::from);
        if rustix::process::geteuid().is_root() {
            let (nix_conf, formerly) = of_machine(&nix);
            return Ok(Self {
                nix_conf,
                formerly: vec![formerly],
                nix,
                ssh: SshPlace::Machine {
                    file: "/etc/ssh/ssh_config.d/xpool.conf".into(),
                    by: "/etc/ssh/ssh_config".into(),
                },
            });
        }
        let xdg = etcetera::base_strategy::Xdg::new().map_err(|_| NoHome)?;
        // Nix reads these instead of its usual file; the first one wins over the others.
        let named = variable("NIX_USER_CONF_FILES");
        let named = named.and_then(|files| std::env::split_paths(&files).next());
        Ok(Self {
            nix,
            nix_conf: named.unwrap_or_else(|| xdg.config_dir().join("nix/nix.conf")),
            formerly: Vec::new(),
            ssh: SshPlace::User(xdg.home_dir().join(".ssh/config")),
        })
    }
}

/// The file of the machine's Nix that may be changed, and the other one. Determinate Nix replaces nix.conf at each start, and has it
/// include a file for everybody else's settings (DeterminateSystems/nix-installer#1648).
fn of_machine(nix: &Path) -> (PathBuf, PathBuf) {
    const CUSTOM: &str = "nix.custom.conf";
    let conf = nix.join("nix.conf");
    let text = std::fs::read_to_string(&conf).unwrap_or_default();
    let custom = nix.join(CUSTOM);
    let is_included = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        matches!(words[..], ["include" | "!include", file] if nix.join(file) == custom)
    };
    if text.lines().any(is_included) {
        (custom, conf)
    } else {
        (conf, custom)
    }
}
