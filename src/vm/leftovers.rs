//! What a manager that was killed has left: its QEMUs and their private folders. Called with the state lock held, so
//! nobody else can own them.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::warn;

/// How long the kernel may take to end a killed process. Freeing gigabytes on a busy machine takes a second.
const KILL_DEADLINE: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

/// Ends every QEMU whose private folder is below `vms`, and removes what is in there. Gives the number of QEMUs.
pub async fn clean(vms: &Path) -> Result<usize> {
    let needle = format!("{}/", vms.display());
    let left = qemus_with(&needle)?;
    for pid in &left {
        warn!(
            pid = pid.as_raw_nonzero().get(),
            "ending a QEMU that an earlier manager left"
        );
        end(*pid, &needle).await?;
    }
    for entry in fs::read_dir(vms).with_context(|| format!("reading `{}`", vms.display()))? {
        let path = entry?.path();
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("removing `{}`", path.display()))?;
    }
    Ok(left.len())
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
