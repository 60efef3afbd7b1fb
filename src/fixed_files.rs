//! What Nix and ssh read whether a manager runs or not: files in a folder that the manager's user cannot write.
//!
//! Nix runs what a machines line names, and ssh what its configuration says. Where Nix is root's and the manager another user's,
//! that user must not write them. Nothing here names a file of the state folder, but for the socket that `xpool connect` finds
//! in it.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::client_files;
use crate::config::Config;
use crate::gateway::keys::GatewayKeys;
use crate::guarded;
use crate::nix::System;
use crate::nix::client::Form;
use crate::nix::machines::{BuildMachine, Endpoint, UnfitPath, ssh_config};
use crate::slot_links::{self, SlotLinks};
use crate::state;

const MACHINES: &str = "machines";
const SSH_CONFIG: &str = "ssh_config";
const KNOWN_HOSTS: &str = "known_hosts";
const CLIENT_KEY: &str = "client_ed25519";
const SLOTS: &str = "slots";

/// One of them, or a directory of links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedFile {
    /// Where it is.
    pub path: PathBuf,
    content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    /// A file with this in it, and its mode.
    Bytes(Vec<u8>, u32),
    /// A directory of links.
    Links(SlotLinks),
}

/// The machines file in a folder.
pub fn machines(dir: &Path) -> PathBuf {
    dir.join(MACHINES)
}

/// The piece of ssh configuration in a folder.
pub fn ssh_piece(dir: &Path) -> PathBuf {
    dir.join(SSH_CONFIG)
}

/// The files for Nixes that start the helper, in the order in which they name one another.
pub fn of_local(
    config: &Config,
    state: &Path,
    program: &Path,
    dir: &Path,
) -> Result<Vec<FixedFile>> {
    let endpoint = Endpoint {
        listen: config.listen,
        // Of ssh only.
        key: PathBuf::new(),
        host_key_base64: String::new(),
        slots: dir.join(SLOTS),
    };
    let lines = lines(config, &endpoint, Form::Local)?;
    let slots = SlotLinks::new(config, dir.join(SLOTS), program, state);
    let slots = FixedFile {
        path: slots.dir().to_owned(),
        content: Content::Links(slots),
    };
    Ok(vec![slots, file(dir, MACHINES, lines, 0o644)])
}

/// The files for Nixes that come by ssh, in the order in which they name one another.
pub fn of_ssh(
    config: &Config,
    keys: &GatewayKeys,
    form: Form,
    dir: &Path,
) -> Result<Vec<FixedFile>> {
    let key = dir.join(CLIENT_KEY);
    let ssh = ssh_config(&System::ALL, config.listen, &key, &dir.join(KNOWN_HOSTS));
    let endpoint = Endpoint {
        listen: config.listen,
        key,
        host_key_base64: keys.machine_field(),
        // Of the local transport only.
        slots: PathBuf::new(),
    };
    let lines = lines(config, &endpoint, form)?;
    Ok(vec![
        file(dir, CLIENT_KEY, keys.client_text()?, 0o600),
        file(dir, KNOWN_HOSTS, client_files::known_hosts(keys), 0o644),
        file(dir, SSH_CONFIG, ssh, 0o644),
        file(dir, MACHINES, lines, 0o644),
    ])
}

/// This very program, for Nix to run it from there.
pub fn program(path: &Path) -> Result<FixedFile> {
    guarded::check(path)?;
    // Not by its name, which may be another program's by now.
    let content = fs::read("/proc/self/exe").context("reading xpool's own program")?;
    Ok(FixedFile {
        path: path.to_owned(),
        content: Content::Bytes(content, 0o755),
    })
}

fn file(dir: &Path, name: &str, text: String, mode: u32) -> FixedFile {
    FixedFile {
        path: dir.join(name),
        content: Content::Bytes(text.into_bytes(), mode),
    }
}

/// As many slots of each system as are configured.
fn lines(config: &Config, endpoint: &Endpoint, form: Form) -> Result<String, UnfitPath> {
    let mut lines = String::new();
    for (system, pool) in &config.systems {
        let count = pool.build_machines(pool.policy.max_vms.get());
        for machine in endpoint.machines(form, *system, &pool.abilities, count)? {
            lines += &BuildMachine::line(&machine);
            lines.push('\n');
        }
    }
    Ok(lines)
}

impl FixedFile {
    /// Whether it is already as it should be.
    pub fn is_there(&self) -> bool {
        let (content, mode) = match &self.content {
            Content::Bytes(content, mode) => (content, *mode),
            Content::Links(links) => return links.are_there(),
        };
        let us = rustix::process::geteuid().as_raw();
        let is_as_wanted = |metadata: Metadata| {
            metadata.is_file() && metadata.uid() == us && metadata.mode() & 0o7777 == mode
        };
        self.path.symlink_metadata().is_ok_and(is_as_wanted)
            && fs::read(&self.path).is_ok_and(|present| present == *content)
    }

    /// Writes it, and makes its folder if there is none.
    pub fn write(&self) -> Result<()> {
        state::make_open_dir(self.path.parent().unwrap_or(Path::new("/")))?;
        match &self.content {
            Content::Bytes(content, mode) => state::write_with_mode(&self.path, content, *mode),
            Content::Links(links) => links.write(),
        }
    }
}

/// All that may have been written into a folder and is there.
pub fn present(dir: &Path) -> Vec<PathBuf> {
    let all = [MACHINES, SLOTS, SSH_CONFIG, KNOWN_HOSTS, CLIENT_KEY].map(|name| dir.join(name));
    let is_there = |path: &PathBuf| path.symlink_metadata().is_ok();
    all.into_iter().filter(is_there).collect()
}

/// Removes one of those.
pub fn remove(path: &Path) -> Result<()> {
    if path.is_dir() {
        return slot_links::remove(path);
    }
    fs::remove_file(path).with_context(|| format!("removing `{}`", path.display()))
}
