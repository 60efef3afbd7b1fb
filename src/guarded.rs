//! Whether anybody but this process's user and root can change what a path leads to. Looks, and changes nothing.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt::{self, Display, Formatter};
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// What Nix has built, and root's Nix executes. Nix lets the group of its build users write in this folder, and nobody in what
/// is in it.
const NIX_STORE: &str = "/nix/store";

/// As many links as the kernel follows.
const MOST_LINKS: u32 = 40;

/// Somebody else can change what a path leads to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not safe: {by} can change `{}`", path.display(), part.display())]
pub struct Changeable {
    /// The path.
    pub path: PathBuf,
    /// What on the way is somebody else's: the path itself, or a folder.
    pub part: PathBuf,
    /// Who that is.
    pub by: Writer,
}

/// Who can write something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// Its owner.
    User(u32),
    /// Members of its group.
    Group(u32),
    /// Everybody. A sticky folder is everybody's, too: one in it may be made anew by anybody once it is gone.
    Everybody,
}

impl Display for Writer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user {user}"),
            Self::Group(group) => write!(f, "group {group}"),
            Self::Everybody => write!(f, "everybody"),
        }
    }
}

/// Fails with [`Changeable`] if somebody else can. What is not there yet is safe if the folder is in which it would be made.
pub fn check(path: &Path) -> Result<()> {
    for part in parts(path)? {
        let metadata =
            fs::metadata(&part).with_context(|| format!("looking at `{}`", part.display()))?;
        if let Some(by) = writer(&part, &metadata) {
            let path = path.to_owned();
            return Err(Changeable { path, part, by }.into());
        }
    }
    Ok(())
}

/// Whether a link of somebody else's leads to a path: it may lead anywhere by the time that something is made or removed there.
pub fn is_led_by_others(path: &Path) -> bool {
    let us = rustix::process::geteuid().as_raw();
    let is_others = |part: &Path| {
        let metadata = fs::symlink_metadata(part).ok();
        metadata.is_some_and(|metadata| metadata.is_symlink() && ![0, us].contains(&metadata.uid()))
    };
    path.ancestors().any(is_others)
}

/// All folders that lead to what is at a path, and that itself, as far as they are there; those that links lead through as well.
fn parts(path: &Path) -> Result<Vec<PathBuf>> {
    let mut at = PathBuf::from("/");
    let mut parts = vec![at.clone()];
    let mut rest = names(path);
    let mut n_links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let shown = next.display();
        let metadata = match fs::symlink_metadata(&next) {
            Err(error) if error.kind() == ErrorKind::NotFound => break,
            metadata => metadata.with_context(|| format!("looking at `{shown}`"))?,
        };
        if metadata.is_symlink() {
            n_links += 1;
            ensure!(n_links <= MOST_LINKS, "`{shown}` is one link too many");
            let target = fs::read_link(&next).with_context(|| format!("reading `{shown}`"))?;
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            names(&target)
                .into_iter()
                .rev()
                .for_each(|name| rest.push_front(name));
        } else {
            parts.push(next.clone());
            at = next;
        }
    }
    Ok(parts)
}

fn names(path: &Path) -> VecDeque<OsString> {
    let is_name =
        |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    let names = path.components().filter(is_name);
    names.map(|part| part.as_os_str().to_owned()).collect()
}

/// Who beside us and root can write something.
fn writer(part: &Path, metadata: &Metadata) -> Option<Writer> {
    let us = rustix::process::geteuid().as_raw();
    let mode = metadata.mode();
    if ![0, us].contains(&metadata.uid()) {
        Some(Writer::User(metadata.uid()))
    } else if mode & 0o002 != 0 {
        Some(Writer::Everybody)
    } else if mode & 0o020 != 0 && part != Path::new(NIX_STORE) {
        Some(Writer::Group(metadata.gid()))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_sticky_folder_makes_nothing_in_it_safe() {
        let error = check(Path::new("/tmp/nobody/has/made/this")).unwrap_err();
        let text = "`/tmp/nobody/has/made/this` is not safe: everybody can change `/tmp`";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn what_the_group_or_everybody_can_write_is_not_ours_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let group = fs::metadata(path).unwrap().gid();
        for (mode, expected) in [
            (0o755, None),
            (0o775, Some(Writer::Group(group))),
            (0o777, Some(Writer::Everybody)),
            (0o1777, Some(Writer::Everybody)),
        ] {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
            let metadata = fs::metadata(path).unwrap();
            assert_eq!(writer(path, &metadata), expected, "{mode:o}");
        }
        // Build users of Nix are its group.
        fs::set_permissions(path, Permissions::from_mode(0o1775)).unwrap();
        let store = fs::metadata(path).unwrap();
        assert_eq!(writer(Path::new(NIX_STORE), &store), None);
    }

    #[test]
    fn folders_that_links_lead_through_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        for folder in ["one", "two", "three/below"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        symlink(dir.join("two/link"), dir.join("one/link")).unwrap();
        symlink("../three/below", dir.join("two/link")).unwrap();
        let before = dir.ancestors().count();
        let found = parts(&dir.join("one/link/file/is/missing")).unwrap();
        let below = |part: &PathBuf| part.strip_prefix(&dir).map(Path::to_owned).ok();
        let found: Vec<PathBuf> = found[before..].iter().filter_map(below).collect();
        let expected = ["one", "", "two", "three", "three/below"];
        // A link from the root passes the folders that lead to it again.
        assert_eq!(found, expected.map(PathBuf::from));
    }

    #[test]
    fn a_link_of_somebody_elses_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (link, below) = (dir.path().join("link"), dir.path().join("link/state"));
        symlink("/etc", &link).unwrap();
        assert!(!is_led_by_others(&below));
        // Only root can give one away.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(&link, Some(65534), None).unwrap();
            assert!(is_led_by_others(&below) && is_led_by_others(&link));
        }
    }

    #[test]
    fn a_circle_of_links_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink(&link, &link).unwrap();
        let error = parts(&link).unwrap_err().to_string();
        assert!(error.contains("is one link too many"), "{error}");
    }
}
