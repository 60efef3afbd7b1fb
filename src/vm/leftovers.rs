//! What a manager that was killed has left: its QEMUs and their private folders. Called with the state lock held, so
//! nobody else can own them. A VM that another process still uses is held, and goes when that process lets go of it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::warn;

use super::{alive, hop};

/// How long the kernel may take to end a killed process. Freeing gigabytes on a busy machine takes a second.
const KILL_DEADLINE: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

/// How often a held VM is looked at: a lock's end is told to nobody who does not wait for it, and who waits cannot be called
/// off.
const LOOK: Duration = Duration::from_millis(250);

/// How long a VM of an earlier manager's may be held: an end to who lets go of nothing, and to builds that take longer.
const LONGEST_HOLD: Duration = Duration::from_secs(3 * 24 * 60 * 60);

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
    /// Returns when nobody uses it any more, or somebody has for three days. Cancel safe.
    pub async fn unused(&self) -> Result<()> {
        let unused = async {
            while hop::is_held(&self.folder)? {
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        };
        let unused: io::Result<()> = tokio::time::timeout(LONGEST_HOLD, unused)
            .await
            .unwrap_or(Ok(()));
        unused.with_context(|| format!("looking whether `{}` is in use", self.folder.display()))
    }

    /// Ends it, whoever uses it.
    pub async fn end(self) -> Result<()> {
        end_all(&self.folder).await?;
        remove(&self.folder)
    }
}

/// Ends every QEMU whose private folder is below `vms`, and removes what is in there, except for VMs that are held.
pub async fn clean(vms: &Path) -> Result<Left> {
    let mut left = Left::default();
    for entry in fs::read_dir(vms).with_context(|| format!("reading `{}`", vms.display()))? {
        let path = entry?.path();
        // What cannot be told to be held is not: it is no VM's folder, or it is broken.
        if hop::is_held(&path).unwrap_or(false) && alive::may_be_alive(&path) {
            warn!(folder = %path.display(), "a VM of an earlier manager is still used; it ends when it is not");
            left.held.push(HeldVm { folder: path });
            continue;
        }
        left.ended += end_all(&path).await?;
        if alive::is_alive(&path).unwrap_or(false) {
            warn!(folder = %path.display(), "a process that cannot be seen from here runs in a VM's folder, which stays");
            continue;
        }
        remove(&path)?;
    }
    // Those whose folder somebody has removed.
    let held = |pid: &Pid| {
        let mut held = left.held.iter();
        held.any(|vm| alive::processes(&vm.folder).is_ok_and(|pids| pids.contains(pid)))
    };
    let others: Vec<Pid> = processes(vms)?
        .into_iter()
        .filter(|pid| !held(pid))
        .collect();
    for pid in others {
        left.ended += usize::from(end(pid, vms).await?);
    }
    Ok(left)
}

async fn end_all(folder: &Path) -> Result<usize> {
    let mut ended = 0;
    for pid in processes(folder)? {
        ended += usize::from(end(pid, folder).await?);
    }
    Ok(ended)
}

fn processes(folder: &Path) -> Result<Vec<Pid>> {
    alive::processes(folder)
        .with_context(|| format!("looking for the QEMUs of `{}`", folder.display()))
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    removed.with_context(|| format!("removing `{}`", path.display()))
}

/// Kills a process of a folder's and waits until it is gone; false if it was none by then.
async fn end(pid: Pid, folder: &Path) -> Result<bool> {
    let number = pid.as_raw_nonzero();
    let folder =
        fs::canonicalize(folder).with_context(|| format!("finding `{}`", folder.display()))?;
    let pidfd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("opening process {number}")),
    };
    // From here on the number cannot be somebody else's; it may have become so just before.
    if !alive::is_one(pid, &folder) {
        return Ok(false);
    }
    warn!(pid = number, "ending a QEMU that an earlier manager left");
    match pidfd_send_signal(pidfd.as_fd(), Signal::KILL) {
        Ok(()) => {}
        Err(Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("killing process {number}")),
    }
    if !tokio::task::spawn_blocking(move || is_gone(&pidfd)).await?? {
        bail!("process {number} does not end after it was killed");
    }
    Ok(true)
}

/// Waits until a process has ended, which makes its descriptor readable; false after the deadline.
fn is_gone(pidfd: &OwnedFd) -> Result<bool> {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    Ok(rustix::event::poll(&mut fds, Some(&KILL_DEADLINE))? > 0)
}

#[cfg(test)]
mod tests;
