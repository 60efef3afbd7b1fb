//! Reaching the manager, and starting one in the background where none runs.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::Context;
use super::serve::READY;
use crate::control::Info;
use crate::control::client::{Client, ControlError};
use crate::inherited;
use crate::state;

/// How long a manager may take to serve: it ends what an earlier one left, makes keys, and opens its sockets.
const START: Duration = Duration::from_secs(60);

/// How long a manager without VMs may take to end: it has only sockets to close.
pub(super) const MANAGER_END: Duration = Duration::from_secs(15);

/// The manager that runs, or one that is started now.
pub(super) async fn manager(context: &Context) -> Result<(Client, Info)> {
    state::prepare(&context.paths)?;
    // One command starts it; another that comes at the same moment finds it running.
    let lock = tokio::time::timeout(START, state::wait_for_lock(context.paths.start_lock())).await;
    let _lock = lock.map_err(|_| {
        anyhow::anyhow!("another `xpool up` is starting the manager and does not end")
    })??;
    match context.connect().await {
        Err(ControlError::NotRunning { .. }) => {}
        reached => {
            let (client, info) = reached?;
            note_differences(context, &info)?;
            return Ok((client, info));
        }
    }
    // One that is just ending has closed its socket and still holds its lock.
    let ending = state::wait_for_lock(context.paths.lock());
    let ended = tokio::time::timeout(MANAGER_END, ending).await;
    drop(ended.map_err(|_| {
        anyhow::anyhow!("another manager holds its lock and does not answer; see `xpool logs`")
    })??);
    start(context).await?;
    let (client, info) = context.connect().await?;
    context.printer.done(
        "Started",
        &format!("manager (pid {}), gateway on {}", info.pid, info.gateway),
    );
    Ok((client, info))
}

/// Says where the manager that runs is not what would be started now.
fn note_differences(context: &Context, info: &Info) -> Result<()> {
    let listen = context.config()?.listen;
    let change = if info.is_started_on_demand {
        "`systemctl restart xpool` (with `--user`, if it is yours) changes it"
    } else {
        "`xpool down` and `xpool up` change it"
    };
    if info.gateway != listen {
        context.printer.warn(&format!(
            "the manager that runs listens on {} and xpool.toml says {listen}; {change}",
            info.gateway
        ));
    }
    let own = env!("CARGO_PKG_VERSION");
    if info.version != own {
        context.printer.warn(&format!(
            "the manager that runs is xpool {}, this is {own}; {change}",
            info.version
        ));
    }
    Ok(())
}

/// Starts `xpool serve` in the background and returns when it serves.
async fn start(context: &Context) -> Result<()> {
    let log = context.paths.manager_log();
    let mut command = command(context, &log)?;
    command.stdin(Stdio::null());
    // The manager outlives this command, and a script that waits for a lock of its own does not wait for the manager.
    inherited::keep_descriptors();
    serving(command, &log).await.map(drop)
}

/// `xpool serve` in the background, which logs to this file.
pub(super) fn command(context: &Context, log: &Path) -> Result<Command> {
    let log_file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("creating `{}`", log.display()))?;
    let program = std::env::current_exe().context("finding xpool's own program")?;
    let mut command = Command::new(program);
    command.args(&context.named);
    command.args(std::iter::repeat_n("-v", context.verbose.into()));
    command.args(["serve", "--background"]).arg(log);
    command
        .stdout(Stdio::piped())
        .stderr(log_file)
        .current_dir("/");
    Ok(command)
}

/// Starts it and returns when it serves.
pub(super) async fn serving(mut command: Command, log: &Path) -> Result<Child> {
    let mut child = command.spawn().context("starting `xpool serve`")?;
    let stdout = child.stdout.take().context("the manager's output")?;
    // Ends with the word, or with the manager.
    let mut lines = BufReader::new(stdout).lines();
    let first = tokio::time::timeout(START, lines.next_line()).await;
    let first = first.map_err(|_| {
        anyhow::anyhow!(
            "the manager does not come to serve; see `{}`",
            log.display()
        )
    })??;
    if first.as_deref() == Some(READY) {
        Ok(child)
    } else {
        let status = child.wait().await.context("waiting for the manager")?;
        Err(why(status, log, "the manager did not start"))
    }
}

/// Why a manager has ended, by its log.
pub(super) fn why(status: ExitStatus, log: &Path, what: &str) -> anyhow::Error {
    let said = std::fs::read_to_string(log).unwrap_or_default();
    // It says it as we would: pass it on without the word that we put before it ourselves.
    let said = said.trim().trim_start_matches("error: ");
    match said {
        "" => anyhow::anyhow!("{what}: {status}"),
        said => anyhow::anyhow!("{what}: {said}"),
    }
}
