//! `xpool down`.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::start::MANAGER_END;
use super::{Context, parse_system};
use crate::control::TakeDown;
use crate::control::client::{Client, ControlError};
use crate::manager::status::Status;
use crate::nix::System;
use crate::output::progress::Progress;
use crate::pool::Down;
use crate::state::{self, StateLock};
use crate::vm::leftovers;

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
    let (client, info) = match context.connect().await {
        Ok(reached) => reached,
        Err(ControlError::NotRunning { .. }) => {
            let how = if args.now { Down::Now } else { Down::Drain };
            return end_leftovers(context, how).await;
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
    if args.system.is_none() && info.is_started_on_demand {
        context.printer.say(
            "It is started again when somebody comes; `systemctl stop xpool.socket` (with `--user`, if it is yours) keeps it down.",
        );
    }
    Ok(())
}

/// Without a manager nothing is up, but one that was killed may have left its VMs, and builds in them may go on.
async fn end_leftovers(context: &Context, how: Down) -> Result<()> {
    state::prepare(&context.paths)?;
    let _lock = StateLock::take(&context.paths)?;
    let left = leftovers::clean(&context.paths.vms()).await?;
    let n_left = left.ended + left.held.len();
    let progress = Progress::new(
        context.printer,
        "Stopping",
        "what a killed manager has left",
    );
    for vm in left.held {
        if how == Down::Drain {
            progress.step("waiting for a build (`--now` does not wait)");
            vm.unused().await?;
        }
        vm.end().await?;
    }
    let what = match n_left {
        0 => "nothing was up".to_owned(),
        1 => "1 VM that a killed manager had left".to_owned(),
        n => format!("{n} VMs that a killed manager had left"),
    };
    progress.finish("Down", &what);
    Ok(())
}

/// Asks for it and shows what it waits for; on Ctrl-C asks again not to wait, and on another one gives up.
async fn take_down(
    client: &Client,
    system: Option<System>,
    how: Down,
    progress: &Progress,
) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listening to Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening to signals")?;
    let mut changes = client.watch().await?;
    let mut watching = true;
    let mut asked = how;
    let mut answer = Box::pin(ask(client, system, how));
    loop {
        tokio::select! {
            result = &mut answer => return result,
            change = changes.next(), if watching => match change? {
                Some(status) => progress.step(&waits_for(&status, system)),
                None => watching = false,
            },
            _ = interrupt.recv() => asked = again(asked)?,
            _ = terminate.recv() => asked = again(asked)?,
        }
        if asked != how && watching {
            watching = false;
            progress.step("not waiting for builds any more");
            answer = Box::pin(ask(client, system, Down::Now));
        }
    }
}

/// What a signal asks for, after what was asked for before.
fn again(asked: Down) -> Result<Down> {
    match asked {
        Down::Drain => Ok(Down::Now),
        Down::Now => bail!("interrupted; the manager goes on stopping"),
    }
}

async fn ask(client: &Client, system: Option<System>, how: Down) -> Result<()> {
    match client.down(&TakeDown { system, how }).await {
        // A manager that is told to end may do so before its answer is out.
        Err(ControlError::Lost(_) | ControlError::NotRunning { .. }) if system.is_none() => Ok(()),
        Err(error) => Err(error.into()),
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
