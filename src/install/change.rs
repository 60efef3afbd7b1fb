//! Changing files as a whole or not at all: all of them are made ready beside the old ones, then put in place; when one
//! cannot be, those before it are put back.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tempfile::NamedTempFile;

/// A file that is to have another text, or is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The file.
    pub path: PathBuf,
    /// Its text; none where there is no file.
    pub before: Option<String>,
    /// What is to be its text; none where it is to go.
    pub after: Option<String>,
    /// Who may read it where it is made.
    pub access: Access,
}

/// Who may read a new file and its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    All,
    /// Its owner, as ssh wants it.
    Owner,
}

/// A file that something else makes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is a link to `{}`, so something else makes it and would undo a change", path.display(), target.display())]
pub struct MadeElsewhere {
    /// The file.
    pub path: PathBuf,
    /// Where it leads.
    pub target: PathBuf,
    /// The lines that it should have.
    pub lines: Vec<String>,
}

impl Change {
    /// The lines that go and come, as `- line` and `+ line`.
    pub fn difference(&self) -> Vec<String> {
        let lines = |text: &Option<String>| -> Vec<String> {
            let text = text.as_deref().unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        };
        let (before, after) = (lines(&self.before), lines(&self.after));
        let same = before
            .iter()
            .zip(&after)
            .take_while(|(a, b)| a == b)
            .count();
        let (before, after) = (&before[same..], &after[same..]);
        let ends = before.iter().rev().zip(after.iter().rev());
        let same = ends.take_while(|(a, b)| a == b).count();
        let gone = before[..before.len() - same].iter();
        let come = after[..after.len() - same].iter();
        gone.map(|line| format!("- {line}"))
            .chain(come.map(|line| format!("+ {line}")))
            .collect()
    }
}

/// Finds what no change may be made to, without trying.
pub fn check(changes: &[Change]) -> Result<()> {
    changes
        .iter()
        .try_for_each(|change| plain_file(change).map(drop))
}

/// Makes all changes or none.
pub fn apply(changes: &[Change]) -> Result<()> {
    let mut folders = Vec::new();
    let staged = stage(changes, &mut folders);
    let done = staged.and_then(commit);
    if done.is_err() {
        for folder in folders.iter().rev() {
            // Somebody may have put something in.
            let _ = fs::remove_dir(folder);
        }
    }
    done
}

/// A change that is ready to be put in place.
struct Staged<'a> {
    change: &'a Change,
    /// What the file was, to put it back.
    metadata: Option<Metadata>,
    /// The new file beside it; none where it is to go.
    file: Option<NamedTempFile>,
}

/// Finds out all that may be in the way, and changes nothing but that folders are made, which are noted.
fn stage<'a>(changes: &'a [Change], folders: &mut Vec<PathBuf>) -> Result<Vec<Staged<'a>>> {
    let mut staged = Vec::new();
    for change in changes {
        let metadata = plain_file(change)?;
        let folder = change.path.parent().unwrap_or(Path::new("."));
        make_folder(folder, change.access, folders)?;
        // Also where the file is to go: a folder that lets nothing be made lets nothing be removed either.
        let text = change.after.as_deref().unwrap_or_default();
        let file = written(&change.path, text, metadata.as_ref(), change.access)?;
        staged.push(Staged {
            change,
            metadata,
            file: change.after.is_some().then_some(file),
        });
    }
    Ok(staged)
}

fn plain_file(change: &Change) -> Result<Option<Metadata>> {
    let path = &change.path;
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("looking at `{}`", path.display()));
        }
    };
    if metadata.is_symlink() {
        let added = |line: &String| line.strip_prefix("+ ").map(str::to_owned);
        return Err(MadeElsewhere {
            path: path.clone(),
            target: fs::read_link(path).unwrap_or_default(),
            lines: change.difference().iter().filter_map(added).collect(),
        }
        .into());
    }
    if !metadata.is_file() {
        bail!("`{}` is not a file", path.display());
    }
    Ok(Some(metadata))
}

fn make_folder(folder: &Path, access: Access, new: &mut Vec<PathBuf>) -> Result<()> {
    let missing: Vec<&Path> = folder
        .ancestors()
        .take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        .collect();
    let mode = match access {
        Access::All => 0o755,
        Access::Owner => 0o700,
    };
    for folder in missing.into_iter().rev() {
        let create = DirBuilder::new().mode(mode).create(folder);
        create.with_context(|| format!("creating `{}`", folder.display()))?;
        new.push(folder.to_owned());
    }
    Ok(())
}

/// A new file beside `path`, with the mode and the owner of the old one.
fn written(
    path: &Path,
    text: &str,
    like: Option<&Metadata>,
    access: Access,
) -> Result<NamedTempFile> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mode = match (like, access) {
        (Some(like), _) => like.mode() & 0o7777,
        (None, Access::All) => 0o644,
        (None, Access::Owner) => 0o600,
    };
    let write = || -> io::Result<NamedTempFile> {
        let mut file = tempfile::Builder::new()
            .prefix(".xpool-")
            .tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        let own = file.as_file().metadata()?;
        if let Some(like) = like
            && (like.uid(), like.gid()) != (own.uid(), own.gid())
        {
            fchown(file.as_file(), Some(like.uid()), Some(like.gid()))?;
        }
        // After the owner: a change of owner takes bits away.
        file.as_file()
            .set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        Ok(file)
    };
    write().with_context(|| format!("writing `{}`", path.display()))
}

fn commit(staged: Vec<Staged<'_>>) -> Result<()> {
    let mut done: Vec<(&Change, Option<Metadata>)> = Vec::new();
    for Staged {
        change,
        metadata,
        file,
    } in staged
    {
        if let Err(error) = put_in_place(change, file) {
            let undone = done
                .iter()
                .rev()
                .try_for_each(|(change, metadata)| put_back(change, metadata.as_ref()));
            return Err(match undone {
                Ok(()) => error.context("nothing was changed"),
                Err(undo) => {
                    error.context(format!("putting back what was changed before: {undo:#}"))
                }
            });
        }
        done.push((change, metadata));
    }
    Ok(())
}

fn put_in_place(change: &Change, file: Option<NamedTempFile>) -> Result<()> {
    let path = &change.path;
    if read(path)? != change.before {
        bail!(
            "`{}` was changed by somebody else just now; try again",
            path.display()
        );
    }
    let placed = match file {
        Some(file) => file.persist(path).map(drop).map_err(|error| error.error),
        None => fs::remove_file(path),
    };
    placed.with_context(|| format!("replacing `{}`", path.display()))
}

fn put_back(change: &Change, metadata: Option<&Metadata>) -> Result<()> {
    let path = &change.path;
    match &change.before {
        Some(before) => {
            let file = written(path, before, metadata, change.access)?;
            file.persist(path).map(drop).map_err(|error| error.error)
        }
        None => fs::remove_file(path),
    }
    .with_context(|| format!("replacing `{}`", path.display()))
}

/// The text of a file; none where there is no file.
pub(super) fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading `{}`", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: PathBuf, before: Option<&str>, after: Option<&str>) -> Change {
        Change {
            path,
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
            access: Access::Owner,
        }
    }

    #[test]
    fn a_file_keeps_its_mode_and_a_new_one_is_as_its_access_says() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("deep/er/new"));
        fs::write(&old, "a").unwrap();
        fs::set_permissions(&old, Permissions::from_mode(0o640)).unwrap();
        let changes = [
            change(old.clone(), Some("a"), Some("b")),
            change(new.clone(), None, Some("c")),
        ];
        apply(&changes).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(
            (read(&old).unwrap().unwrap().as_str(), mode(&old)),
            ("b", 0o640)
        );
        assert_eq!(
            (read(&new).unwrap().unwrap().as_str(), mode(&new)),
            ("c", 0o600)
        );
        assert_eq!(mode(new.parent().unwrap()), 0o700);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            2,
            "nothing is left beside them"
        );
    }

    #[test]
    fn a_change_that_cannot_be_made_undoes_those_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["changed", "removed", "last"] {
            fs::write(at(name), name).unwrap();
        }
        let changes = [
            change(at("changed"), Some("changed"), Some("b")),
            change(at("removed"), Some("removed"), None),
            change(at("made"), None, Some("made")),
            change(at("last"), Some("last"), Some("b")),
        ];
        let staged = stage(&changes, &mut Vec::new()).unwrap();
        // Somebody is faster.
        fs::write(at("last"), "other").unwrap();
        let error = format!("{:#}", commit(staged).unwrap_err());
        assert!(error.starts_with("nothing was changed: "), "{error}");
        assert!(error.contains("was changed by somebody else"), "{error}");
        let text = |name| read(&at(name)).unwrap();
        assert_eq!(text("changed").as_deref(), Some("changed"));
        assert_eq!(text("removed").as_deref(), Some("removed"));
        assert_eq!(text("made"), None);
        assert_eq!(text("last").as_deref(), Some("other"));
    }

    #[test]
    fn what_is_in_the_way_is_found_before_anything_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "a\n").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        let changes = [
            change(dir.path().join("new/file"), None, Some("b")),
            change(file.clone(), Some("a\n"), Some("b")),
            change(link.clone(), Some("a\n"), Some("a\nb\n")),
        ];
        let error = apply(&changes).unwrap_err();
        let elsewhere = error.downcast_ref::<MadeElsewhere>().unwrap();
        assert_eq!(
            (&elsewhere.path, elsewhere.lines.as_slice()),
            (&link, &["b".to_owned()][..])
        );
        assert_eq!(read(&file).unwrap().as_deref(), Some("a\n"));
        assert!(!dir.path().join("new").exists(), "a folder is left");
    }

    #[test]
    fn a_difference_has_what_goes_and_what_comes() {
        let change = change("f".into(), Some("a\nb\nc"), Some("a\nx\ny\nc\n"));
        assert_eq!(change.difference(), ["- b", "+ x", "+ y"]);
    }
}
