//! The links that machines lines of the local transport name: one for each slot, and each of them is xpool.
//!
//! Nix runs `DIRECTORY/03@xpool-riscv64 --stdio`. That name says which slot it is, and the link `state` beside it says whose
//! manager serves it. So the URI that Nix shows for each build is short, and nix-output-monitor, which takes what follows the
//! first `@` of a URI for the host, shows `xpool-riscv64`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::config::Config;
use crate::nix::slot::{Slot, SlotName};
use crate::state;

#[cfg(test)]
mod tests;

/// The link to the state folder.
const STATE: &str = "state";

/// A directory of links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotLinks {
    dir: PathBuf,
    /// What each of them leads to, by its name.
    links: BTreeMap<String, PathBuf>,
}

impl SlotLinks {
    /// Links to this program for every slot that is configured, of the manager in this state folder.
    pub fn new(config: &Config, dir: PathBuf, program: &Path, state: &Path) -> Self {
        let mut links = BTreeMap::from([(STATE.to_owned(), state.to_owned())]);
        for (system, pool) in &config.systems {
            for number in 0..pool.slots() {
                let slot = Slot::Number(number);
                let name = SlotName {
                    system: *system,
                    slot,
                };
                links.extend(name.link().map(|link| (link, program.to_owned())));
            }
        }
        Self { dir, links }
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether all of them are there, this process's user's, and no others.
    pub fn are_there(&self) -> bool {
        let us = rustix::process::geteuid().as_raw();
        let is_ours = |path: &Path| {
            path.symlink_metadata()
                .is_ok_and(|metadata| metadata.uid() == us)
        };
        let is_right = |(name, target): (&String, &PathBuf)| {
            let link = self.dir.join(name);
            is_ours(&link) && fs::read_link(&link).is_ok_and(|present| present == *target)
        };
        let count = fs::read_dir(&self.dir).map_or(0, Iterator::count);
        let is_open = self
            .dir
            .metadata()
            .is_ok_and(|metadata| metadata.mode() & 0o7777 == 0o755);
        is_open
            && is_ours(&self.dir)
            && count == self.links.len()
            && self.links.iter().all(is_right)
    }

    /// Makes those that are missing or lead elsewhere, and removes what else is in the directory. At no time is a link missing that
    /// was there and stays.
    pub fn write(&self) -> Result<()> {
        state::make_open_dir(&self.dir)?;
        // Whoever may enter the folder that it is in: members of the `[local]` group start xpool by these links, too.
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("setting the mode of `{}`", self.dir.display()))?;
        for (name, target) in &self.links {
            let link = self.dir.join(name);
            if fs::read_link(&link).is_ok_and(|present| present == *target) {
                continue;
            }
            replace(&link, target).with_context(|| format!("linking `{}`", link.display()))?;
        }
        let reading = || format!("reading `{}`", self.dir.display());
        for entry in fs::read_dir(&self.dir).with_context(reading)? {
            let entry = entry.with_context(reading)?;
            let is_known = |name: &str| self.links.contains_key(name);
            if !entry.file_name().to_str().is_some_and(is_known) {
                let path = entry.path();
                fs::remove_file(&path).with_context(|| format!("removing `{}`", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Removes a directory of links.
pub fn remove(dir: &Path) -> Result<()> {
    let removing = || format!("removing `{}`", dir.display());
    for entry in fs::read_dir(dir).with_context(removing)? {
        fs::remove_file(entry.with_context(removing)?.path()).with_context(removing)?;
    }
    fs::remove_dir(dir).with_context(removing)
}

fn replace(link: &Path, target: &Path) -> std::io::Result<()> {
    let mut new = link.as_os_str().to_owned();
    new.push(".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, &new)?;
    fs::rename(&new, link)
}

/// The command line that this process was started with. A name that is a link's stands for `xpool connect` of its slot.
pub fn command_line(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = given.into_iter().collect();
    let Some((slot, dir)) = words.first().and_then(|name| slot_of(name)) else {
        return words;
    };
    let link = dir.join(STATE);
    // Where there is none, nobody serves there, and that is what is said.
    let state = fs::read_link(&link).unwrap_or(link);
    let as_if = [
        OsStr::new("connect"),
        OsStr::new("--state-dir"),
        state.as_os_str(),
        OsStr::new(&slot),
    ];
    words.splice(1..1, as_if.map(OsStr::to_owned));
    words
}

/// The slot that a program's name stands for, and the directory of that name.
fn slot_of(name: &OsStr) -> Option<(String, &Path)> {
    let path = Path::new(name);
    let slot = SlotName::of_link(path.file_name()?.to_str()?)?;
    Some((slot.to_string(), path.parent()?))
}
