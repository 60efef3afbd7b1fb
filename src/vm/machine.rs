//! A QEMU together with all that must be gone at its end: one task owns the process and the private folder.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;

use super::VmExit;
use super::process::{Process, exit_in_words};
use super::qmp::events::Fate;
use super::wait::within;

/// QEMU's last events are in the monitor's socket when QEMU has ended; reading them takes no time. Those who hear of an
/// end late have lost their build long before.
const FATE_LIMIT: Duration = Duration::from_millis(300);

/// Removing a disk of gigabytes takes a moment, on a busy disk a long one, and nobody should wait for that to hear of a
/// VM's end.
const REMOVAL_LIMIT: Duration = Duration::from_secs(1);

/// A QEMU that ends closes its monitor first, and then has a moment to say how it ended.
const EXIT_LIMIT: Duration = Duration::from_secs(1);

/// What the VM's owner wants. Later ones overrule earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wish {
    /// That it runs.
    Run,
    /// That it ends; whoever wishes so takes the steps.
    Stop,
    /// That it is killed now.
    Kill,
}

/// How a VM ended, with QEMU's last lines of standard error.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) exit: VmExit,
    pub(super) stderr: Vec<String>,
}

/// Resolves when a VM has ended. Any number of them can wait.
#[derive(Clone, Debug)]
pub(super) struct EndWatch {
    end: watch::Receiver<Option<End>>,
}

impl EndWatch {
    /// Waits until QEMU has ended and was reaped and its folder is gone or going. Cancel safe.
    pub(super) async fn ended(&self) -> End {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(end)) => end.clone(),
            // Its task only goes without a word when the whole runtime does.
            _ => End {
                exit: VmExit::Died("xpool was shutting down".to_owned()),
                stderr: Vec::new(),
            },
        }
    }

    /// How it ended, if it has.
    pub(super) fn so_far(&self) -> Option<VmExit> {
        self.end.borrow().as_ref().map(|end| end.exit.clone())
    }
}

/// A started QEMU. Dropping it kills QEMU, which its task then reaps.
#[derive(Debug)]
pub(super) struct Machine {
    wish: watch::Sender<Wish>,
    end: EndWatch,
    pid: Option<u32>,
}

impl Machine {
    /// Takes charge of a started QEMU, of its private folder and of what the monitor will tell about its end.
    pub(super) fn new(process: Process, dir: TempDir, fate: watch::Receiver<Option<Fate>>) -> Self {
        let (wish, wished) = watch::channel(Wish::Run);
        let (ended, end) = watch::channel(None);
        let pid = process.id();
        tokio::spawn(async move {
            let end = look_after(process, dir, wished, fate).await;
            ended.send_replace(Some(end));
        });
        Self {
            wish,
            end: EndWatch { end },
            pid,
        }
    }

    /// QEMU's process, as long as it was not reaped.
    pub(super) fn pid(&self) -> Option<u32> {
        self.pid.filter(|_| self.end.so_far().is_none())
    }

    /// Makes a wish known; true if it overruled the one before it.
    pub(super) fn wish(&self, wish: Wish) -> bool {
        self.wish.send_if_modified(|current| {
            let is_news = wish > *current;
            *current = (*current).max(wish);
            is_news
        })
    }

    /// Waits for its end.
    pub(super) async fn ended(&self) -> End {
        self.end.ended().await
    }

    /// For those who outlive it.
    pub(super) fn end_watch(&self) -> EndWatch {
        self.end.clone()
    }
}

async fn look_after(
    mut process: Process,
    dir: TempDir,
    mut wished: watch::Receiver<Wish>,
    fate: watch::Receiver<Option<Fate>>,
) -> End {
    let killed_for = tokio::select! {
        biased;
        _ = process.wait() => None,
        () = kill_wished(&mut wished) => None,
        fate = kill_asked(fate.clone()) => Some(fate),
    };
    // Asked before the kill: whoever hears of the VM's trouble may wish its end as well.
    let was_asked = *wished.borrow() > Wish::Run || wished.has_changed().is_err();
    process.kill();
    let status = process.wait().await;
    let (stderr, fate, ()) = tokio::join!(process.last_words(), settled(fate), remove(dir));
    let exit = if was_asked {
        VmExit::Stopped
    } else {
        VmExit::Died(cause(killed_for, fate, status, &stderr))
    };
    End { exit, stderr }
}

/// Why a VM has ended that nobody had asked to.
fn cause(
    killed_for: Option<Fate>,
    fate: Option<Fate>,
    status: io::Result<ExitStatus>,
    stderr: &[String],
) -> String {
    match (killed_for, fate, status) {
        (Some(fate), ..) => fate.to_string(),
        (None, _, Err(error)) => format!("QEMU could not be waited for: {error}"),
        // A QEMU that was killed while its guest shut down was killed.
        (None, Some(fate), Ok(status)) if !fate.asks_for_a_kill() && status.code().is_some() => {
            fate.to_string()
        }
        (None, _, Ok(status)) => exit_in_words(status, stderr),
    }
}

/// Resolves when a kill is wished, or when nobody is left to wish anything.
async fn kill_wished(wished: &mut watch::Receiver<Wish>) {
    let _ = wished.wait_for(|wish| *wish == Wish::Kill).await;
}

/// Resolves when the guest is lost while QEMU goes on.
async fn kill_asked(mut fate: watch::Receiver<Option<Fate>>) -> Fate {
    let asking = |fate: &Option<Fate>| fate.as_ref().is_some_and(Fate::asks_for_a_kill);
    let told = fate
        .wait_for(asking)
        .await
        .ok()
        .and_then(|fate| fate.clone());
    match told {
        Some(fate @ Fate::MonitorLost(_)) => {
            tokio::time::sleep(EXIT_LIMIT).await;
            fate
        }
        Some(fate) => fate,
        // Nothing will be told any more.
        None => std::future::pending().await,
    }
}

/// What the monitor told, once it cannot tell more.
async fn settled(mut fate: watch::Receiver<Option<Fate>>) -> Option<Fate> {
    let told = async { while fate.changed().await.is_ok() {} };
    if within("the monitor's end", FATE_LIMIT, told).await.is_err() {
        tracing::debug!("QEMU has ended but its monitor's events are still read");
    }
    fate.borrow().clone()
}

async fn remove(dir: TempDir) {
    let path = dir.path().to_owned();
    // The runtime does not end before it, however long it takes.
    let removal = tokio::task::spawn_blocking(move || {
        if let Err(error) = dir.close() {
            tracing::warn!(path = %path.display(), %error, "a VM's folder could not be removed");
        }
    });
    if within("the removal of a VM's folder", REMOVAL_LIMIT, removal)
        .await
        .is_err()
    {
        tracing::info!("a VM's folder is still being removed");
    }
}

#[cfg(test)]
mod tests;
