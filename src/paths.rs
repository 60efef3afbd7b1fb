//! The only place that knows names of files and folders.

use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;

use crate::nix::System;
use crate::nix::client::Form;

/// Where xpool's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    config: ConfigFile,
    state: PathBuf,
    cache: PathBuf,
}

/// Where the configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigFile {
    /// Somebody named it: it must be there.
    Named(PathBuf),
    /// The usual place, where it may be missing.
    Usual(PathBuf),
}

/// There is no home folder to put anything in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot tell where your home folder is: set HOME, or XPOOL_STATE_DIR and XPOOL_CACHE_DIR")]
pub struct NoHome;

impl Paths {
    /// The folders that were named, and XDG's for the rest.
    pub fn new(
        config: Option<PathBuf>,
        state: Option<PathBuf>,
        cache: Option<PathBuf>,
    ) -> Result<Self, NoHome> {
        let xdg = etcetera::base_strategy::Xdg::new().map_err(|_| NoHome)?;
        let config = match config {
            Some(named) => ConfigFile::Named(named),
            None => ConfigFile::Usual(xdg.config_dir().join("xpool/xpool.toml")),
        };
        let default_state = || {
            xdg.state_dir()
                .unwrap_or_else(|| xdg.data_dir())
                .join("xpool")
        };
        Ok(Self {
            config,
            state: state.map_or_else(default_state, absolute),
            cache: cache.map_or_else(|| xdg.cache_dir().join("xpool"), absolute),
        })
    }

    /// The same with another state folder.
    #[must_use]
    pub fn in_state(&self, state: PathBuf) -> Self {
        let (config, cache) = (self.config.clone(), self.cache.clone());
        Self {
            config,
            state,
            cache,
        }
    }

    /// xpool.toml.
    pub fn config(&self) -> &ConfigFile {
        &self.config
    }

    /// A profile of the user's own for a system, if there is one.
    pub fn vm_profile(&self, system: System) -> PathBuf {
        let (ConfigFile::Named(file) | ConfigFile::Usual(file)) = &self.config;
        file.with_file_name("vm-configs")
            .join(format!("{system}.toml"))
    }

    /// What belongs to one installation: keys, logs, the manager's socket. Private.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Held while a manager runs.
    pub fn lock(&self) -> PathBuf {
        self.state.join("manager.lock")
    }

    /// Held while a manager is being started in the background.
    pub fn start_lock(&self) -> PathBuf {
        self.state.join("start.lock")
    }

    /// How many sessions came in the last two weeks.
    pub fn forecast(&self) -> PathBuf {
        self.state.join("forecast.json")
    }

    /// Where the manager is spoken to.
    pub fn control_socket(&self) -> PathBuf {
        self.state.join("control.sock")
    }

    /// Where helpers of the local transport connect to.
    pub fn connect_socket(&self) -> PathBuf {
        self.state.join("connect.sock")
    }

    /// Where people come for shells.
    pub fn shell_socket(&self) -> PathBuf {
        self.state.join("shell.sock")
    }

    /// The gateway's host key and the clients' key.
    pub fn keys(&self) -> PathBuf {
        self.state.join("keys")
    }

    /// The piece of ssh configuration that leads Nix to the gateway.
    pub fn ssh_config(&self) -> PathBuf {
        self.state.join("ssh_config")
    }

    /// The lines of the build machines, while a manager runs: one file for each form, and the usual form's has no further
    /// name, so that who names it follows it.
    pub fn machines(&self, form: Form) -> PathBuf {
        if form == Form::default() {
            self.state.join("machines")
        } else {
            self.state.join(format!("machines-{}", form.name()))
        }
    }

    /// What Nix starts for each slot; see [`SlotLinks`](crate::slot_links::SlotLinks).
    pub fn slots(&self) -> PathBuf {
        self.state.join("slots")
    }

    /// Held while the machines files are written or removed.
    pub fn machines_lock(&self) -> PathBuf {
        self.state.join("machines.lock")
    }

    /// The gateway's host key, as ssh wants to know it.
    pub fn known_hosts(&self) -> PathBuf {
        self.state.join("known_hosts")
    }

    /// Log files: one of the manager, one of each VM's console.
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// What a manager in the background says.
    pub fn manager_log(&self) -> PathBuf {
        self.logs().join("manager.log")
    }

    /// A VM's console.
    pub fn console_log(&self, vm: &str) -> PathBuf {
        self.logs().join(format!("{vm}.log"))
    }

    /// What an image build says, kept when it fails.
    pub fn image_build_log(&self, system: System) -> PathBuf {
        self.logs().join(format!("image-{system}.log"))
    }

    /// The VMs' private folders.
    pub fn vms(&self) -> PathBuf {
        self.state.join("vms")
    }

    /// An empty folder, for VMs to see where this machine has no store yet.
    pub fn no_store(&self) -> PathBuf {
        self.state.join("no-store")
    }

    /// What can be made again: images and templates.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Images, by digest, and a link per system to the one in use.
    pub fn images(&self) -> PathBuf {
        self.cache.join("images")
    }

    /// Guests that were booted and saved.
    pub fn templates(&self) -> PathBuf {
        self.cache.join("templates")
    }
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}
