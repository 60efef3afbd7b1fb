//! What a manager that was killed has left: its QEMUs and their private folders. Called with the state lock held, so
//! nobody else can own them. A VM that another process still uses is held, and goes when that process lets go of it.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::warn;

use super::hop;

/// How long the kernel may take to end a killed process. Freeing gigabytes on a busy machine takes a second.
const KILL_DEADLINE: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

/// How often a held VM is looked at: a lock's end is told to nobody who does not wait for it, and who waits cannot be called
/// off.
const LOOK: Duration = Duration::from_millis(250);

/// What was left.
#[derive(Debug, Default)]
pub struct Left {
    /// How many QEMUs were ended.
    pub ended: usize,
    /// The VMs that other processes still use.
    pub held: Vec<HeldVm>,
}

/// A VM of an earlier manager's that another process still uses.
#[derive(Debug)]
pub struct HeldVm {
    folder: PathBuf,
}

impl HeldVm {
    /// Returns when nobody uses it any more. Cancel safe.
    pub async fn unused(&self) -> Result<()> {
        while hop::is_held(&self.folder)
            .with_context(|| format!("looking whether `{}` is in use", self.folder.display()))?
        {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Ends it, whoever uses it.
    pub async fn end(self) -> Result<()> {
        end_all(&needle(&self.folder)).await?;
        remove(&self.folder)
    }
}

/// Ends every QEMU whose private folder is below `vms`, and removes what is in there, except for VMs that are held.
pub async fn clean(vms: &Path) -> Result<Left> {
    let mut left = Left::default();
    for entry in fs::read_dir(vms).with_context(|| format!("reading `{}`", vms.display()))? {
        let path = entry?.path();
        // What cannot be told to be held is not: it is no VM's folder, or it is broken.
        if path.is_dir()
            && hop::is_held(&path).unwrap_or(false)
            && !qemus_with(&needle(&path))?.is_empty()
        {
            warn!(folder = %path.display(), "a VM of an earlier manager is still used; it ends when it is not");
            left.held.push(HeldVm { folder: path });
            continue;
        }
        left.ended += end_all(&needle(&path)).await?;
        remove(&path)?;
    }
    // Those whose folder somebody has removed.
    let held = |pid: &Pid| {
        left.held
            .iter()
            .any(|vm| is_qemu_with(*pid, &needle(&vm.folder)))
    };
    for pid in qemus_with(&needle(vms))?
        .into_iter()
        .filter(|pid| !held(pid))
    {
        end(pid, &needle(vms)).await?;
        left.ended += 1;
    }
    Ok(left)
}

/// What stands in the arguments of the QEMUs whose files are below a folder.
fn needle(folder: &Path) -> String {
    format!("{}/", folder.display())
}

async fn end_all(needle: &str) -> Result<usize> {
    let all = qemus_with(needle)?;
    for pid in &all {
        warn!(
            pid = pid.as_raw_nonzero().get(),
            "ending a QEMU that an earlier manager left"
        );
        end(*pid, needle).await?;
    }
    Ok(all.len())
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    removed.with_context(|| format!("removing `{}`", path.display()))
}

/// Processes of QEMU's that have the text in an argument.
fn qemus_with(needle: &str) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("reading `/proc`")? {
        let name = entry?.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|pid| is_qemu_with(*pid, needle)) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn is_qemu_with(pid: Pid, needle: &str) -> bool {
    // A process that ends meanwhile has no arguments any more, and needs no ending.
    let arguments = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let text = String::from_utf8_lossy(&arguments);
    let program = text.split('\0').next().unwrap_or("");
    let is_qemu = Path::new(program)
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("qemu-system-"));
    is_qemu && text.contains(needle)
}

/// Kills a process and waits until it is gone.
async fn end(pid: Pid, needle: &str) -> Result<()> {
    let pidfd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("opening process {}", pid.as_raw_nonzero()));
        }
    };
    // From here on the number cannot be somebody else's; it may have become so just before.
    if !is_qemu_with(pid, needle) {
        return Ok(());
    }
    pidfd_send_signal(pidfd.as_fd(), Signal::KILL)
        .with_context(|| format!("killing process {}", pid.as_raw_nonzero()))?;
    if !tokio::task::spawn_blocking(move || is_gone(&pidfd)).await?? {
        bail!(
            "process {} does not end after it was killed",
            pid.as_raw_nonzero()
        );
    }
    Ok(())
}

/// Waits until a process has ended, which makes its descriptor readable; false after the deadline.
fn is_gone(pidfd: &OwnedFd) -> Result<bool> {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    Ok(rustix::event::poll(&mut fds, Some(&KILL_DEADLINE))? > 0)
}
