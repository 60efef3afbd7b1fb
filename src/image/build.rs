//! Making a portable image: runs the script of images/portable, which is compiled in, and adopts what it made.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::manifest::{CONTRACT, ImageFile, ImageKind, Manifest};
use super::script::{self, CannotBuild, Listener, Told};
use super::store::ImageStore;
use super::{Image, digest};
use crate::nix::System;

/// The files of images/ that the script needs, by their place below images/.
const SOURCES: [(&str, &str); 9] = [
    ("xpool-guest", include_str!("../../images/xpool-guest")),
    (
        "portable/assemble.sh",
        include_str!("../../images/portable/assemble.sh"),
    ),
    (
        "portable/build.sh",
        include_str!("../../images/portable/build.sh"),
    ),
    ("portable/init", include_str!("../../images/portable/init")),
    (
        "portable/initramfs-init",
        include_str!("../../images/portable/initramfs-init"),
    ),
    (
        "portable/janitor.sh",
        include_str!("../../images/portable/janitor.sh"),
    ),
    (
        "portable/nix.conf",
        include_str!("../../images/portable/nix.conf"),
    ),
    (
        "portable/shutdown",
        include_str!("../../images/portable/shutdown"),
    ),
    (
        "portable/sysctl.conf",
        include_str!("../../images/portable/sysctl.conf"),
    ),
];

/// Bytes of disk space that a build needs at its peak: unpacked packages, their archives, the raw disk, the result.
const SPACE: u64 = 2 << 30;

/// Builds the portable image for a system and makes it the one in use. `listener` is told each step and what the tools say,
/// which also goes to `log`. Ends, with nothing left behind, when `cancel` is cancelled.
pub async fn build(
    store: &ImageStore,
    system: System,
    log: &Path,
    listener: &Listener<'_>,
    cancel: &CancellationToken,
) -> Result<Image> {
    let root = store.root();
    std::fs::create_dir_all(root).with_context(|| format!("creating `{}`", root.display()))?;
    check_space(root)?;
    let _lock = lock(root, system, listener, cancel).await?;
    let work = work_folder(root, system)?;
    let script = write_sources(&work.path().join("images"))?;
    let (out, scratch) = (work.path().join("out"), work.path().join("tmp"));
    for dir in [&out, &scratch] {
        std::fs::create_dir(dir).with_context(|| format!("creating `{}`", dir.display()))?;
    }
    script::run(&script, system, &out, &scratch, log, listener, cancel).await?;
    listener(Told::Step("computing digests"));
    let manifest = {
        let out = out.clone();
        tokio::task::spawn_blocking(move || make_manifest(&out, system)).await??
    };
    Ok(store.adopt(&out, &manifest)?)
}

fn check_space(root: &Path) -> Result<()> {
    let space = rustix::fs::statvfs(root)
        .with_context(|| format!("asking for space in `{}`", root.display()))?;
    let free = space.f_bavail * space.f_frsize;
    if free >= SPACE {
        return Ok(());
    }
    let (free, need) = (free >> 20, SPACE >> 20);
    let text = format!(
        "`{}` has {free} MiB free and a build needs {need} MiB",
        root.display()
    );
    let hints = vec!["free some, or name another folder with `--cache-dir`".to_owned()];
    Err(CannotBuild { text, hints }.into())
}

/// Waits until no other build of this system's image runs.
async fn lock(
    root: &Path,
    system: System,
    listener: &Listener<'_>,
    cancel: &CancellationToken,
) -> Result<std::fs::File> {
    let (path, file) = open_lock(root, system)?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        return Ok(file);
    }
    listener(Told::Step("waiting for another build of this image"));
    // The other build has deadlines of its own; this wait ends with it or when the caller gives up.
    let waiting = tokio::task::spawn_blocking(move || {
        rustix::fs::flock(&file, FlockOperation::LockExclusive).map(|()| file)
    });
    tokio::select! {
        locked = waiting => locked?.with_context(|| format!("locking `{}`", path.display())),
        () = cancel.cancelled() => bail!("interrupted"),
    }
}

/// Waits, on this thread, until no build of this system's image runs.
pub(super) fn wait_for_lock(root: &Path, system: System) -> Result<std::fs::File> {
    let (path, file) = open_lock(root, system)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .with_context(|| format!("locking `{}`", path.display()))?;
    Ok(file)
}

fn open_lock(root: &Path, system: System) -> Result<(PathBuf, std::fs::File)> {
    let path = root.join(format!(".{system}.lock"));
    let file =
        std::fs::File::create(&path).with_context(|| format!("creating `{}`", path.display()))?;
    Ok((path, file))
}

/// A folder to work in, which is gone when it is dropped. Called with the lock held.
pub(super) fn work_folder(root: &Path, system: System) -> Result<TempDir> {
    remove_leftovers(root, system)?;
    tempfile::Builder::new()
        .prefix(&leftover_prefix(system))
        .tempdir_in(root)
        .with_context(|| format!("creating a folder in `{}`", root.display()))
}

/// SHA-256 of the files that a portable image is made by.
pub fn recipe() -> String {
    let text: Vec<String> = SOURCES
        .iter()
        .map(|(name, content)| format!("{name} {}\n{content}", content.len()))
        .collect();
    digest::of_bytes(text.concat().as_bytes())
}

fn leftover_prefix(system: System) -> String {
    format!(".build-{system}-")
}

/// Removes what a build left that had no chance to tidy up. Called with the lock held.
fn remove_leftovers(root: &Path, system: System) -> Result<()> {
    for entry in std::fs::read_dir(root).with_context(|| format!("reading `{}`", root.display()))? {
        let entry = entry?;
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(&leftover_prefix(system))
        {
            let path = entry.path();
            std::fs::remove_dir_all(&path)
                .with_context(|| format!("removing `{}`", path.display()))?;
        }
    }
    Ok(())
}

fn write_sources(dir: &Path) -> Result<PathBuf> {
    for (name, content) in SOURCES {
        let path = dir.join(name);
        let parent = path.parent().unwrap_or(dir);
        std::fs::create_dir_all(parent)
            .with_context(|| format!("creating `{}`", parent.display()))?;
        std::fs::write(&path, content).with_context(|| format!("writing `{}`", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(dir.join("portable/build.sh"))
}

fn make_manifest(out: &Path, system: System) -> Result<Manifest> {
    let facts_file = out.join("image.env");
    let facts = std::fs::read_to_string(&facts_file)
        .context("reading what the script says of the image")?;
    let fact = |key: &str| {
        let value = facts
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value
            .map(str::to_owned)
            .with_context(|| format!("the script does not say the image's {key}"))
    };
    let file = |name: &str| -> Result<ImageFile> {
        let path = out.join(name);
        let (sha256, size) =
            digest::of_file(&path).with_context(|| format!("reading `{}`", path.display()))?;
        Ok(ImageFile {
            name: name.to_owned(),
            size,
            sha256,
        })
    };
    let manifest = Manifest {
        contract: CONTRACT,
        system,
        kind: ImageKind::Portable,
        recipe: recipe(),
        nix_version: fact("NIX_VERSION")?,
        kernel_version: fact("KERNEL_VERSION")?,
        cmdline: fact("CMDLINE")?,
        kernel: file("kernel")?,
        initrd: file("initrd")?,
        disk: file("disk.qcow2")?,
    };
    std::fs::remove_file(&facts_file).context("tidying up")?;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_portable_image_is_compiled_in() {
        let there = std::fs::read_dir("images/portable")
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let mut there: Vec<String> = there
            .map(|name| format!("portable/{}", name.to_str().unwrap()))
            .collect();
        there.push("xpool-guest".to_owned());
        there.sort();
        let mut known = SOURCES.map(|(name, _)| name.to_owned());
        known.sort();
        assert_eq!(known.as_slice(), there);
    }
}
