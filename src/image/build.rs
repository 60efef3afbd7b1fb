//! Making a portable image: runs the script of images/portable, which is compiled in, and adopts what it made.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::manifest::{CONTRACT, ImageFile, ImageKind, Manifest};
use super::store::ImageStore;
use super::{Image, digest};
use crate::nix::System;

/// The files of images/ that the script needs, by their place below images/.
const SOURCES: [(&str, &str); 8] = [
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
];

/// How long the script may take to tidy up after it was told to end.
const TIDY_UP: Duration = Duration::from_secs(20);

/// The script says that something it needs is not there (`EX_UNAVAILABLE` of sysexits.h).
const EX_UNAVAILABLE: i32 = 69;

/// Bytes of disk space that a build needs at its peak: unpacked packages, their archives, the raw disk, the result.
const SPACE: u64 = 2 << 30;

/// The machine lacks something that building an image needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct CannotBuild {
    /// What it lacks.
    pub text: String,
    /// What to do about it.
    pub hints: Vec<String>,
}

impl CannotBuild {
    /// Takes what the script said: lines that begin with `error: ` and `hint: `.
    fn from_script(said: &str) -> Self {
        let lines = |prefix: &'static str| {
            said.lines()
                .filter_map(move |line| line.strip_prefix(prefix))
        };
        let text = lines("error: ").collect::<Vec<_>>().join("\n");
        Self {
            text,
            hints: lines("hint: ").map(str::to_owned).collect(),
        }
    }
}

/// Builds the portable image for a system and makes it the one in use. `progress` is told each step; what the tools say
/// goes to `log`. Ends, with nothing left behind, when `cancel` is cancelled.
pub async fn build(
    store: &ImageStore,
    system: System,
    log: &Path,
    progress: &(dyn Fn(&str) + Send + Sync),
    cancel: &CancellationToken,
) -> Result<Image> {
    let root = store.root();
    std::fs::create_dir_all(root).with_context(|| format!("creating `{}`", root.display()))?;
    check_space(root)?;
    let _lock = lock(root, system, progress, cancel).await?;
    let work = work_folder(root, system)?;
    let script = write_sources(&work.path().join("images"))?;
    let (out, scratch) = (work.path().join("out"), work.path().join("tmp"));
    for dir in [&out, &scratch] {
        std::fs::create_dir(dir).with_context(|| format!("creating `{}`", dir.display()))?;
    }
    run_script(&script, system, &out, &scratch, log, progress, cancel).await?;
    progress("computing digests");
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
    progress: &(dyn Fn(&str) + Send + Sync),
    cancel: &CancellationToken,
) -> Result<std::fs::File> {
    let (path, file) = open_lock(root, system)?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        return Ok(file);
    }
    progress("waiting for another build of this image");
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

async fn run_script(
    script: &Path,
    system: System,
    out: &Path,
    scratch: &Path,
    log: &Path,
    progress: &(dyn Fn(&str) + Send + Sync),
    cancel: &CancellationToken,
) -> Result<()> {
    if let Some(parent) = log.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("creating `{}`", parent.display()))?;
    }
    let log_file =
        std::fs::File::create(log).with_context(|| format!("creating `{}`", log.display()))?;
    let mut child = Command::new("bash")
        .arg(script)
        .arg(system.name())
        .arg(out)
        .env("XPOOL_BUILD_TMP", scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("starting bash")?;
    let stdout = child.stdout.take().context("the script's output")?;
    let mut lines = BufReader::new(stdout).lines();
    loop {
        tokio::select! {
            line = lines.next_line() => match line? {
                Some(line) => if let Some(step) = line.strip_prefix("step: ") {
                    progress(step);
                },
                None => break,
            },
            () = cancel.cancelled() => {
                end(&mut child).await?;
                bail!("interrupted; nothing was left behind");
            }
        }
    }
    let status = child.wait().await?;
    if status.success() {
        return Ok(());
    }
    let said = last_lines(log, 20);
    if status.code() == Some(EX_UNAVAILABLE) {
        return Err(CannotBuild::from_script(&said).into());
    }
    bail!(
        "{status}; its last words:\n{said}\nall of them are in `{}`",
        log.display()
    )
}

/// Ends the script with everything it started and waits until it is gone.
async fn end(child: &mut Child) -> Result<()> {
    let Some(group) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) else {
        return Ok(());
    };
    // A group that has ended by itself is no error.
    let _ = kill_process_group(group, Signal::TERM);
    if tokio::time::timeout(TIDY_UP, child.wait()).await.is_err() {
        let _ = kill_process_group(group, Signal::KILL);
        child.wait().await?;
    }
    Ok(())
}

fn last_lines(log: &Path, n: usize) -> String {
    let text = std::fs::read(log)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
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
    fn what_the_script_lacks_is_taken_apart() {
        let said = "Reading lists\nerror: missing tools: cpio\nhint: apt-get install cpio\n";
        let error = CannotBuild::from_script(said);
        assert_eq!(error.text, "missing tools: cpio");
        assert_eq!(error.hints, ["apt-get install cpio"]);
    }

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
