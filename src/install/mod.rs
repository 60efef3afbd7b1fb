//! The only part that changes files of a user's Nix and ssh, and only for `xpool machines --install` and `--uninstall`.
//!
//! It adds a marked block to each, and takes it out again; the machines themselves are in a file of the manager's, or of root's.

mod block;
mod change;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use block::Place;
pub use change::{Access, Change, MadeElsewhere, apply, check};

use crate::config::client::{ClientPlaces, SshPlace};
use crate::nix::conf;

/// The setting of nix.conf that names build machines.
const BUILDERS: &str = "builders";

/// What is to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The machines file that nix.conf is to name.
    pub machines: PathBuf,
    /// The piece of ssh configuration that ssh is to read, where Nix needs it.
    pub ssh_config: Option<PathBuf>,
}

/// The machine's ssh configuration does not read the folder in which each program has a file of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` does not include `{}`", by.display(), file.display())]
pub struct NotIncluded {
    /// The configuration.
    pub by: PathBuf,
    /// The file that it would have to include.
    pub file: PathBuf,
}

/// The marks around what was added are not as they were written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` has `# begin xpool` without its `# end xpool`, or more than one of them", file.display())]
pub struct DamagedBlock {
    /// The file.
    pub file: PathBuf,
}

/// What has to be changed so that exactly what is wanted is there; nothing is wanted to uninstall.
pub fn changes(places: &ClientPlaces, wanted: Option<&Wanted>) -> Result<Vec<Change>> {
    let nix = nix_conf(places, wanted.map(|wanted| wanted.machines.as_path()))?;
    let ssh = ssh_config(
        &places.ssh,
        wanted.and_then(|wanted| wanted.ssh_config.as_deref()),
    )?;
    let mut all = vec![nix, ssh];
    for file in &places.formerly {
        all.push(without_machines(file)?);
    }
    let is_change = |change: &Change| change.before != change.after;
    Ok(all.into_iter().filter(is_change).collect())
}

fn nix_conf(places: &ClientPlaces, machines: Option<&Path>) -> Result<Change> {
    let file = &places.nix_conf;
    let before = change::read(file)?;
    let rest = without_block(file, before.as_deref())?;
    let after = match machines {
        Some(machines) => {
            let in_force = builders(places, rest.as_deref().unwrap_or_default());
            let line = format!("builders = {}\n", conf::with_machines(&in_force, machines));
            // At the end, where it wins over what is set before.
            Some(block::put_in(rest.as_deref(), Place::End, &line))
        }
        None => rest,
    };
    Ok(Change {
        path: file.clone(),
        before,
        after,
        access: Access::All,
    })
}

/// A file that is to have none of xpool's machines, whatever was installed earlier.
fn without_machines(file: &Path) -> Result<Change> {
    let before = change::read(file)?;
    Ok(Change {
        path: file.to_owned(),
        after: without_block(file, before.as_deref())?,
        before,
        access: Access::All,
    })
}

/// The value of `builders` without what xpool adds.
fn builders(places: &ClientPlaces, own: &str) -> String {
    let mut read = |path: &Path| {
        let text = std::fs::read_to_string(path).ok()?;
        // One of them may include the other.
        let may_have_block =
            path == places.nix_conf || places.formerly.iter().any(|file| file == path);
        match block::take_out(&text) {
            Ok(rest) if may_have_block => rest,
            _ => Some(text),
        }
    };
    let folder = places.nix_conf.parent().unwrap_or(&places.nix);
    let machine = places.nix.join("nix.conf");
    let of_machine = |read: &mut dyn FnMut(&Path) -> Option<String>| {
        let text = read(&machine).filter(|_| machine != places.nix_conf)?;
        conf::value(BUILDERS, &text, &places.nix, &mut |path| read(path))
    };
    conf::value(BUILDERS, own, folder, &mut read)
        .or_else(|| of_machine(&mut read))
        // Nix's own default.
        .unwrap_or_else(|| format!("@{}", places.nix.join("machines").display()))
}

fn ssh_config(place: &SshPlace, piece: Option<&Path>) -> Result<Change> {
    let file = place.file();
    let before = change::read(file)?;
    let rest = without_block(file, before.as_deref())?;
    let after = match piece {
        Some(piece) => {
            check_included(place)?;
            let line = format!("Include \"{}\"\n", piece.display());
            // At the top: further down it would belong to the host that is configured before it.
            Some(block::put_in(rest.as_deref(), Place::Top, &line))
        }
        None => rest,
    };
    let access = match place {
        SshPlace::Machine { .. } => Access::All,
        SshPlace::User(_) => Access::Owner,
    };
    Ok(Change {
        path: file.to_owned(),
        before,
        after,
        access,
    })
}

fn check_included(place: &SshPlace) -> Result<()> {
    let SshPlace::Machine { file, by } = place else {
        return Ok(());
    };
    let text = change::read(by)?.unwrap_or_default();
    let folder = file.parent().and_then(Path::file_name).unwrap_or_default();
    let includes = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let is_include = words
            .next()
            .is_some_and(|word| word.eq_ignore_ascii_case("include"));
        is_include
            && words.any(|word| {
                Path::new(word)
                    .components()
                    .any(|part| part.as_os_str() == folder)
            })
    };
    if text.lines().any(includes) {
        return Ok(());
    }
    let (by, file) = (by.clone(), file.clone());
    Err(NotIncluded { by, file }.into())
}

fn without_block(file: &Path, text: Option<&str>) -> Result<Option<String>> {
    let taken = text.map(block::take_out).transpose();
    let file = file.to_owned();
    taken
        .map(Option::flatten)
        .map_err(|block::Damaged| DamagedBlock { file })
        .context("looking for what xpool has added")
}
