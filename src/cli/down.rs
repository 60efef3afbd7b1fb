//! `xpool down`.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Context, parse_system};
use crate::control::TakeDown;
use crate::control::client::{Client, ControlError};
use crate::manager::status::Status;
use crate::nix::System;
use crate::output::progress::Progress;
use crate::pool::Down;
use crate::state;

/// How long a manager without VMs may take to end: it has only sockets to close.
const MANAGER_END: Duration = Duration::from_secs(15);

#[derive(Debug, Args)]
pub(super) struct DownArgs {
    /// Only this system, and leave the manager running: riscv64 or aarch64
    #[arg(value_parser = parse_system, conflicts_with = "all")]
    system: Option<System>,
    /// Every system and the manager; the same as naming no system
    #[arg(long)]
    all: bool,
    /// Do not wait for builds that run: end them
    #[arg(long)]
    now: bool,
}

pub(super) async fn run(context: &Context, args: &DownArgs) -> Result<()> {
    let client = match Client::connect(&context.paths.control_socket()).await {
        Ok((client, _)) => client,
        Err(ControlError::NotRunning { .. }) => {
            context.printer.done("Down", "nothing was up");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let what = args
        .system
        .map_or_else(|| "everything".to_owned(), |system| system.to_string());
    let progress = Progress::new(context.printer, "Stopping", &what);
    let how = if args.now { Down::Now } else { Down::Drain };
    take_down(&client, args.system, how, &progress).await?;
    if args.system.is_none() {
        // The manager holds its lock to its very end.
        let ended =
            tokio::time::timeout(MANAGER_END, state::wait_for_lock(context.paths.lock())).await;
        ended.map_err(|_| {
            anyhow::anyhow!("the manager does not end; `xpool logs` shows what it does")
        })??;
    }
    progress.finish("Down", &what);
    Ok(())
}

/// Asks for it, shows what it waits for, and on Ctrl-C asks again not to wait.
async fn take_down(
    client: &Client,
    system: Option<System>,
    how: Down,
    progress: &Progress,
) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listening to Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening to signals")?;
    let mut changes = client.watch().await?;
    let wish = TakeDown { system, how };
    let mut done = std::pin::pin!(client.down(&wish));
    let mut watching = true;
    let mut asked_twice = how == Down::Now;
    loop {
        tokio::select! {
            result = &mut done => match result {
                // A manager that is told to end may do so before its answer is out.
                Err(ControlError::Lost(_)) if system.is_none() => return Ok(()),
                result => return Ok(result?),
            },
            change = changes.next(), if watching => match change? {
                Some(status) => progress.step(&waits_for(&status, system)),
                None => watching = false,
            },
            _ = interrupt.recv(), if !asked_twice => asked_twice = true,
            _ = terminate.recv(), if !asked_twice => asked_twice = true,
        }
        if asked_twice && how != Down::Now {
            progress.step("not waiting for builds any more");
            return now(client, system).await;
        }
    }
}

async fn now(client: &Client, system: Option<System>) -> Result<()> {
    match client
        .down(&TakeDown {
            system,
            how: Down::Now,
        })
        .await
    {
        Err(ControlError::Lost(_) | ControlError::NotRunning { .. }) if system.is_none() => Ok(()),
        Err(error) => bail!(error),
        Ok(()) => Ok(()),
    }
}

fn waits_for(status: &Status, system: Option<System>) -> String {
    let pools = || {
        status
            .systems
            .iter()
            .filter(|pool| system.is_none_or(|system| system == pool.system))
    };
    let sessions = pools()
        .flat_map(|pool| &pool.sessions)
        .filter(|session| session.vm.is_some())
        .count();
    let vms = pools().map(|pool| pool.vms.len()).sum::<usize>();
    match (sessions, vms) {
        (0, 0) => "closing".to_owned(),
        (0, 1) => "1 VM is shutting down".to_owned(),
        (0, n) => format!("{n} VMs are shutting down"),
        (1, _) => "waiting for 1 build (Ctrl-C does not wait)".to_owned(),
        (n, _) => format!("waiting for {n} builds (Ctrl-C does not wait)"),
    }
}
