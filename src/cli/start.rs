//! Reaching the manager, and starting one in the background where none runs.

use std::process::Stdio;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::Context;
use super::serve::READY;
use crate::control::Info;
use crate::control::client::{Client, ControlError};
use crate::state;

/// The manager that runs, or one that is started now.
pub(super) async fn manager(context: &Context) -> Result<(Client, Info)> {
    state::prepare(&context.paths)?;
    // One command starts it; another that comes at the same moment finds it running.
    let _lock = state::wait_for_lock(context.paths.start_lock()).await?;
    let socket = context.paths.control_socket();
    match Client::connect(&socket).await {
        Err(ControlError::NotRunning { .. }) => {}
        reached => {
            let (client, info) = reached?;
            note_version(context, &info);
            return Ok((client, info));
        }
    }
    start(context).await?;
    let (client, info) = Client::connect(&socket).await?;
    context.printer.done(
        "Started",
        &format!("manager (pid {}), gateway on {}", info.pid, info.gateway),
    );
    Ok((client, info))
}

fn note_version(context: &Context, info: &Info) {
    let own = env!("CARGO_PKG_VERSION");
    if info.version != own {
        context.printer.warn(&format!(
            "the manager that runs is xpool {}, this is {own}; `xpool down` and `xpool up` change it",
            info.version
        ));
    }
}

/// Starts `xpool serve` in the background and returns when it serves.
async fn start(context: &Context) -> Result<()> {
    let log = context.paths.manager_log();
    let log_file =
        std::fs::File::create(&log).with_context(|| format!("creating `{}`", log.display()))?;
    let program = std::env::current_exe().context("finding xpool's own program")?;
    let mut command = Command::new(program);
    if let Some(config) = &context.config_file {
        command.arg("--config").arg(std::path::absolute(config)?);
    }
    command
        .arg("--state-dir")
        .arg(context.paths.state())
        .arg("--cache-dir")
        .arg(context.paths.cache());
    command.args(std::iter::repeat_n("-v", context.verbose.into()));
    command.args(["serve", "--background"]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file)
        .current_dir("/");
    let mut child = command.spawn().context("starting `xpool serve`")?;
    let stdout = child.stdout.take().context("the manager's output")?;
    // Ends with the word, or with the manager.
    let first = BufReader::new(stdout).lines().next_line().await?;
    if first.as_deref() == Some(READY) {
        Ok(())
    } else {
        Err(why(&mut child, &log).await)
    }
}

async fn why(child: &mut Child, log: &std::path::Path) -> anyhow::Error {
    let status = match child.wait().await {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    let said = std::fs::read_to_string(log).unwrap_or_default();
    // It says it as we would: pass it on without the word that we put before it ourselves.
    let said = said.trim().trim_start_matches("error: ");
    match said {
        "" => anyhow::anyhow!("the manager ended at once: {status}"),
        said => anyhow::anyhow!("the manager did not start: {said}"),
    }
}
