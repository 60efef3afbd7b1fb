//! The folder of templates: what is in it, what may go.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};

use super::TemplateFiles;
use super::key::Key;
use crate::image::Image;
use crate::nix::System;

/// How the name of a folder begins in which a template is being made.
pub(super) const MAKING: &str = ".making-";

/// How the name of a folder begins that is being removed.
const REMOVING: &str = ".removing-";

/// Longer than anybody takes for what is done without a lock, in a folder being made or removed.
const HOUR: Duration = Duration::from_secs(60 * 60);

/// In such a folder, the file that its maker holds a lock on.
pub(super) const LOCK: &str = "lock";

/// In a template's folder: changed when a manager has begun to use it.
const USED: &str = "used";

/// Templates of a system that are kept beside the newest one: for each number of processors there may be one with the host's
/// store and one without, and there are other configurations. The folder stays bounded.
const SPARE: usize = 7;

/// A template on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its folder's name: the system and 16 hex digits.
    pub name: String,
    /// Whose VMs are clones of it.
    pub system: System,
    /// Bytes it takes on the disk.
    pub bytes: u64,
    /// When a manager last began to use it.
    pub used: SystemTime,
    dir: PathBuf,
}

/// The templates in the folder `templates`, the one used last first.
pub fn list(templates: &Path) -> anyhow::Result<Vec<Listed>> {
    let mut found = Vec::new();
    for entry in entries(templates)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        let system = name
            .rsplit_once('-')
            .and_then(|(system, _)| system.parse().ok());
        let Some(system) = system.filter(|_| !name.starts_with('.')) else {
            continue;
        };
        let dir = entry.path();
        let bytes = TemplateFiles::new(dir.clone()).disk_usage();
        // Never used: from before the epoch, so that it goes first.
        let used = fs::metadata(dir.join(USED)).and_then(|meta| meta.modified());
        let used = used.unwrap_or(SystemTime::UNIX_EPOCH);
        found.push(Listed {
            name,
            system,
            bytes,
            used,
            dir,
        });
    }
    found.sort_by_key(|template| std::cmp::Reverse(template.used));
    Ok(found)
}

impl Listed {
    /// Whether it was made of this image. One that is damaged was made of none.
    pub fn is_of(&self, image: &Image) -> bool {
        let manifest = TemplateFiles::new(self.dir.clone()).manifest();
        manifest.is_ok_and(|manifest| manifest.is_some_and(|manifest| manifest.key.is_of(image)))
    }

    /// Removes it. Clones that run keep what they have open.
    pub fn remove(&self) -> anyhow::Result<()> {
        remove(&self.dir)
    }
}

/// Removes what managers that were killed have not finished making or removing. Gives the names.
pub fn clean(templates: &Path) -> anyhow::Result<Vec<String>> {
    let mut removed = Vec::new();
    for entry in entries(templates)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        let is_left = name.starts_with(MAKING) && is_abandoned(&path)
            || name.starts_with(REMOVING) && is_old(&path);
        if is_left {
            fs::remove_dir_all(&path).with_context(|| format!("removing `{}`", path.display()))?;
            removed.push(name);
        }
    }
    Ok(removed)
}

/// Whether nobody works in the folder. Its lock is made right after it, so without one its maker may just have begun.
fn is_abandoned(dir: &Path) -> bool {
    match File::open(dir.join(LOCK)) {
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(_) => is_old(dir),
    }
}

fn is_old(path: &Path) -> bool {
    let changed = fs::metadata(path).and_then(|meta| meta.modified());
    changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age > HOUR))
}

/// Removes the templates of a system that were not used for the longest time.
pub(super) fn prune(templates: &Path, system: System) -> anyhow::Result<()> {
    let of_system = list(templates)?
        .into_iter()
        .filter(|template| template.system == system);
    of_system.skip(1 + SPARE).try_for_each(|old| old.remove())
}

/// Why the template of a system that was used last is not the one with this key; `None` when there is none.
pub(super) fn why_not(templates: &Path, system: System, key: &Key) -> Option<&'static str> {
    let listed = list(templates).ok()?;
    let last = listed.iter().find(|template| template.system == system)?;
    let manifest = TemplateFiles::new(last.dir.clone()).manifest().ok()??;
    Some(manifest.key.difference(key))
}

/// Notes that a template is in use.
pub(super) fn mark_used(dir: &Path) -> io::Result<()> {
    File::create(dir.join(USED)).map(drop)
}

/// Removes a template: by its manifest first, so that there is never half of one.
pub(super) fn remove(dir: &Path) -> anyhow::Result<()> {
    let hidden = tempfile::Builder::new()
        .prefix(REMOVING)
        .tempdir_in(dir.parent().unwrap_or(dir))
        .with_context(|| format!("removing `{}`", dir.display()))?;
    match fs::rename(dir, hidden.path()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing `{}`", dir.display()))
        }
        _ => hidden
            .close()
            .with_context(|| format!("removing `{}`", dir.display())),
    }
}

/// What is in a folder; nothing when it is not there.
fn entries(dir: &Path) -> anyhow::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries
            .and_then(Iterator::collect)
            .with_context(|| format!("reading `{}`", dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: System = System::Riscv64Linux;

    fn template(dir: &Path, name: &str) {
        fs::create_dir(dir.join(name)).unwrap();
        mark_used(&dir.join(name)).unwrap();
        // Times of files are as coarse as the kernel's clock ticks.
        let later = SystemTime::now() + std::time::Duration::from_secs(name.len() as u64);
        let used = File::options()
            .write(true)
            .open(dir.join(name).join(USED))
            .unwrap();
        used.set_modified(later).unwrap();
    }

    #[test]
    fn the_templates_used_last_are_kept_and_those_of_other_systems() {
        let dir = tempfile::tempdir().unwrap();
        let name = |count: usize| format!("riscv64-linux-{}", "a".repeat(count));
        for count in 1..=10 {
            template(dir.path(), &name(count));
        }
        template(dir.path(), "aarch64-linux-b");
        prune(dir.path(), SYSTEM).unwrap();
        let listed = list(dir.path()).unwrap().into_iter();
        let names: Vec<String> = listed.map(|template| template.name).collect();
        let latest = (3..=10).rev().map(name);
        let expected: Vec<String> = latest.chain(["aarch64-linux-b".to_owned()]).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn only_what_nobody_works_on_is_removed_as_unfinished() {
        let dir = tempfile::tempdir().unwrap();
        template(dir.path(), "riscv64-linux-a");
        for name in [
            ".making-abandoned",
            ".making-begun",
            ".making-busy",
            ".removing-begun",
        ] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        for name in [".making-old", ".removing-old"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            let folder = File::open(dir.path().join(name)).unwrap();
            folder.set_modified(SystemTime::now() - 2 * HOUR).unwrap();
        }
        fs::write(dir.path().join(".making-abandoned/lock"), "").unwrap();
        let busy = File::create(dir.path().join(".making-busy/lock")).unwrap();
        flock(&busy, FlockOperation::NonBlockingLockExclusive).unwrap();
        let mut removed = clean(dir.path()).unwrap();
        removed.sort();
        assert_eq!(
            removed,
            [".making-abandoned", ".making-old", ".removing-old"]
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_empty_one() {
        let none = Path::new("/none/templates");
        assert_eq!(list(none).unwrap(), []);
        assert!(clean(none).unwrap().is_empty());
    }
}
