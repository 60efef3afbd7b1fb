//! What Nix and ssh on this machine read: machines files while a manager serves, and an ssh configuration.
//!
//! The machines go away with the manager, and a system's while it goes down: Nix gives a build up when a machine that it
//! knows of does not answer. What a killed manager leaves, the next command that finds no manager takes away. Where there is
//! another manager for whoever comes, the machines stay.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::activation::Handover;
use crate::config::Config;
use crate::gateway::keys::GatewayKeys;
use crate::guarded;
use crate::manager::status::Status;
use crate::nix::System;
use crate::nix::client::Form;
use crate::nix::machines::{BuildMachine, Endpoint, UnfitPath, ssh_config, ssh_host};
use crate::paths::Paths;
use crate::pool::Mode;
use crate::slot_links::SlotLinks;
use crate::state;

/// How many machines of each system Nix is told of.
type Counts = BTreeMap<System, u32>;

/// The files of a manager that serves, which are removed when the value is dropped.
#[derive(Debug)]
pub struct ClientFiles {
    config: Config,
    paths: Paths,
    endpoint: Endpoint,
    told: Counts,
    handover: Handover,
}

impl ClientFiles {
    /// Writes all of them. The control socket is there already: nobody may take the files for a dead manager's.
    pub fn write(
        config: &Config,
        paths: &Paths,
        keys: &GatewayKeys,
        handover: Handover,
    ) -> Result<Self> {
        write_ssh(config.listen, paths, keys)?;
        write_links(config, paths)?;
        let files = Self {
            config: config.clone(),
            paths: paths.clone(),
            endpoint: endpoint(config.listen, paths, keys),
            told: counts(config, &Status::default()),
            handover,
        };
        files.write_machines(&files.told)?;
        Ok(files)
    }

    /// Keeps the machines as the pools are, until the manager ends.
    pub async fn follow(mut self, mut changes: watch::Receiver<Status>) {
        loop {
            let counts = counts(&self.config, &changes.borrow_and_update());
            // A manager that leaves clients to the next one has pools that go down, and the next one's do not.
            if counts != self.told && !self.handover.has_begun() {
                info!(?counts, "Nix is told of other machines");
                match self.write_machines(&counts) {
                    Ok(()) => self.told = counts,
                    // Tried again at the next change.
                    Err(error) => warn!("{error:#}"),
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn write_machines(&self, counts: &Counts) -> Result<()> {
        let _lock = state::lock(&self.paths.machines_lock())?;
        for form in Form::ALL {
            match lines(&self.config, &self.endpoint, form, counts) {
                Ok(lines) => state::write_atomically(&self.paths.machines(form), &lines)?,
                Err(unfit) if form == Form::default() => {
                    warn!("Nix is told of no machines: {unfit}");
                }
                Err(unfit) => debug!(form = form.name(), "no machines file: {unfit}"),
            }
        }
        Ok(())
    }
}

impl Drop for ClientFiles {
    fn drop(&mut self) {
        if self.handover.is_expected() {
            // What the next manager will say at first.
            let counts = counts(&self.config, &Status::default());
            if let Err(error) = self.write_machines(&counts) {
                warn!("{error:#}");
            }
            return;
        }
        let _lock = state::lock(&self.paths.machines_lock());
        remove_machines(&self.paths);
    }
}

/// What clients reach the manager of this state folder by.
pub fn endpoint(listen: SocketAddr, paths: &Paths, keys: &GatewayKeys) -> Endpoint {
    Endpoint {
        listen,
        key: keys.client_file(),
        host_key_base64: keys.machine_field(),
        slots: paths.slots(),
    }
}

/// Makes the links that Nix starts in place of ssh, to this program.
pub fn write_links(config: &Config, paths: &Paths) -> Result<()> {
    let program = std::env::current_exe().context("finding xpool's own program")?;
    let links = SlotLinks::new(config, paths.slots(), &program, paths.state());
    let _lock = state::lock(&paths.machines_lock())?;
    if links.are_there() {
        return Ok(());
    }
    links.write()
}

/// Writes what ssh has to know of the gateway. It stays when the manager ends: without machines, nobody asks ssh.
pub fn write_ssh(listen: SocketAddr, paths: &Paths, keys: &GatewayKeys) -> Result<()> {
    let known = paths.known_hosts();
    state::write_atomically(&known, &known_hosts(keys))?;
    let config = ssh_config(&System::ALL, listen, &keys.client_file(), &known);
    state::write_atomically(&paths.ssh_config(), &config)
}

/// The gateway by all its names, as ssh knows hosts.
pub fn known_hosts(keys: &GatewayKeys) -> String {
    let lines = System::ALL.map(|system| keys.known_hosts_line(&ssh_host(system)) + "\n");
    lines.concat()
}

/// Takes away the machines that a killed manager has left; nothing happens where one serves.
pub fn forget_dead(paths: &Paths) -> Result<()> {
    if !Form::ALL.iter().any(|form| paths.machines(*form).exists()) {
        return Ok(());
    }
    // What root opens in a folder of somebody else's may be a link to anywhere, and so may the folder.
    let is_own = state::owner(paths) == Some(rustix::process::geteuid().as_raw());
    if !is_own || guarded::is_led_by_others(paths.state()) {
        return Ok(());
    }
    let _lock = state::lock(&paths.machines_lock())?;
    // Asked under the lock: a manager has its socket before it writes its machines.
    match UnixStream::connect(paths.control_socket()) {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            remove_machines(paths);
        }
        _ => {}
    }
    Ok(())
}

fn remove_machines(paths: &Paths) {
    for form in Form::ALL {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(paths.machines(form));
    }
}

fn lines(
    config: &Config,
    endpoint: &Endpoint,
    form: Form,
    counts: &Counts,
) -> Result<String, UnfitPath> {
    let mut lines = String::new();
    for (system, count) in counts {
        let abilities = &config.systems[system].abilities;
        for machine in endpoint.machines(form, *system, abilities, *count)? {
            lines += &BuildMachine::line(&machine);
            lines.push('\n');
        }
    }
    Ok(lines)
}

/// As many as suit what may run by now, which `up` can raise; none of a system that goes down.
fn counts(config: &Config, status: &Status) -> Counts {
    let count = |system: &System| {
        let pool = &config.systems[system];
        match status
            .systems
            .iter()
            .find(|status| status.system == *system)
        {
            Some(status) if status.mode == Mode::Draining => 0,
            Some(status) => pool.build_machines(status.max_vms),
            None => pool.build_machines(pool.policy.max_vms.get()),
        }
    };
    config
        .systems
        .keys()
        .map(|system| (*system, count(system)))
        .collect()
}

#[cfg(test)]
mod tests;
