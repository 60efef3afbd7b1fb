//! A manager that is there for one command: in a folder of its own, on a port that happens to be free, and gone when the
//! command is.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tokio::process::Child;

use super::{Context, start};
use crate::paths::Paths;
use crate::state::{self, StateLock};
use crate::vm::leftovers;

/// How the name of such a folder begins. Short: there are sockets in it.
const PREFIX: &str = "run-";

/// How long the manager may take to end when nobody waits for its builds: it kills its VMs and removes their folders.
const END: Duration = Duration::from_secs(60);

/// The folder.
#[derive(Debug)]
pub(super) struct Place {
    dir: TempDir,
    paths: Paths,
}

impl Place {
    /// Makes one in the state folder, after what commands that were killed have left there is gone.
    pub(super) async fn make(context: &Context) -> Result<Self> {
        state::prepare(&context.paths)?;
        let parent = context.paths.state();
        for left in left_in(parent)? {
            end(&context.paths.in_state(left)).await?;
        }
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .rand_bytes(4)
            .tempdir_in(parent)
            .with_context(|| format!("making a folder in `{}`", parent.display()))?;
        let paths = context.paths.in_state(dir.path().to_owned());
        Ok(Self { dir, paths })
    }

    /// The state folder of the command's manager.
    pub(super) fn state(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Removes it, with what a manager that did not end well has left.
    pub(super) async fn remove(self) -> Result<()> {
        end(&self.paths).await
    }
}

/// Such folders that no manager uses.
fn left_in(parent: &Path) -> Result<Vec<PathBuf>> {
    let reading = || format!("reading `{}`", parent.display());
    let mut left = Vec::new();
    for entry in std::fs::read_dir(parent).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        let is_one = entry.file_name().to_string_lossy().starts_with(PREFIX);
        // One that has no lock yet is just being made.
        if is_one && entry.path().join("manager.lock").exists() {
            left.push(entry.path());
        }
    }
    Ok(left)
}

/// Ends the VMs that are left of a folder, and removes it, unless a manager uses it.
async fn end(paths: &Paths) -> Result<()> {
    if !paths.lock().exists() {
        return remove(paths.state());
    }
    let Ok(_lock) = StateLock::take(paths) else {
        return Ok(());
    };
    for held in leftovers::clean(&paths.vms()).await?.held {
        held.end().await?;
    }
    remove(paths.state())
}

fn remove(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing `{}`", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The manager.
#[derive(Debug)]
pub(super) struct Attached {
    child: Child,
    log: PathBuf,
}

impl Attached {
    /// Starts one in the state folder of this context, and returns when it serves.
    pub(super) async fn start(context: &Context) -> Result<Self> {
        state::prepare(&context.paths)?;
        let log = context.paths.manager_log();
        let mut command = start::command(context, &log)?;
        // It reads nothing, and ends when there is nobody any more who could write.
        command.arg("--attached").stdin(Stdio::piped());
        let child = start::serving(command, &log).await?;
        Ok(Self { child, log })
    }

    /// Ends it, and says so if it had ended already.
    pub(super) async fn end(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("looking after the manager")? {
            return Err(start::why(
                status,
                &self.log,
                "the manager had ended before",
            ));
        }
        drop(self.child.stdin.take());
        if tokio::time::timeout(END, self.child.wait()).await.is_err() {
            // What it leaves is removed after it.
            self.child.kill().await.context("ending the manager")?;
        }
        Ok(())
    }
}
