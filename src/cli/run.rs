//! `xpool run`: a command with builders, by a manager of its own that lives as long as the command.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use anyhow::{Context as _, Result};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::bound::BoundArgs;
use super::builders::Builders;
use super::{Context, Problem, image, parse_system, trusted};
use crate::config::environment;
use crate::nix::System;
use crate::output::fold::{Fold, LogKind};

/// What a shell says of a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct RunArgs {
    /// riscv64 or aarch64; may be given several times [default: every system]
    #[arg(long = "system", value_name = "SYSTEM", value_parser = parse_system)]
    systems: Vec<System>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

const AFTER_HELP: &str = "\
The command finds the builders in NIX_CONFIG, in the place of others that Nix is configured with, and in XPOOL_STATE_DIR
the manager, for `xpool status`. Where a nix-daemon builds, its user must be a trusted user of Nix. The manager and its VMs
are there for this command only, and gone when it ends, however it ends; images and templates stay in the cache. Exits as the
command does, with 128 and the signal's number if a signal ended it. Where this program is killed, the command gets SIGTERM.";

pub(super) async fn run(context: &Context, args: &RunArgs) -> Result<u8> {
    if let Err(error) = trusted::check(&context.config()?).await {
        // The command may mean another store, or be another user's.
        let problem = Problem::of(&error);
        context.printer.warning(&problem.text, &problem.hints);
    }
    let kind = LogKind::of(environment::says_true);
    let fold = |name, title| Fold::begin(kind, name, title);
    // From here on signals are for the command, or end the preparations.
    let mut signals = Signals::listen()?;
    let started = {
        let _fold = fold("xpool_start", "Starting xpool");
        let cancel = image::cancel_on_signals()?;
        let started = Builders::start(context, wanted(&args.systems), &cancel).await;
        if cancel.is_cancelled() {
            context.printer.error("interrupted", &[]);
            return Ok(INTERRUPTED);
        }
        started
    };
    let builders = started?;
    let code = command(&builders, &args.command, &mut signals).await;
    let _fold = fold("xpool_stop", "Stopping xpool");
    builders.end().await?;
    code
}

/// The systems that were named, or all.
fn wanted(named: &[System]) -> Vec<System> {
    if named.is_empty() {
        System::ALL.to_vec()
    } else {
        named.to_vec()
    }
}

/// Runs the command to its end, which comes with ours at the latest: should this process be killed, the kernel tells the command.
async fn command(builders: &Builders, command: &[OsString], signals: &mut Signals) -> Result<u8> {
    let own = std::env::current_exe().context("finding xpool's own program")?;
    let mut bound = Command::new(own);
    bound
        .args(BoundArgs::to_this(command))
        .envs(builders.environment().await?);
    // A terminal's Ctrl-C is for all that runs in it. Where there is none, who cancels a job tells this process alone, and a shell
    // would keep it to itself until what it runs has ended.
    let is_group = !has_terminal();
    if is_group {
        bound.process_group(0);
    }
    let child = bound.spawn().context("starting the command")?;
    Ok(exit_code(signals.pass_on(child, is_group).await?))
}

/// Whether there is a terminal that this process belongs to, whatever its streams are.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

/// The signals that mean an end, passed on to the command.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("listening to signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The command's end. It is given the first signal, and with a second one it is killed; with all that it has started, where
    /// it leads a process group.
    async fn pass_on(&mut self, mut child: Child, is_group: bool) -> Result<ExitStatus> {
        let mut asked = 0;
        loop {
            let signal = tokio::select! {
                status = child.wait() => return status.context("waiting for the command"),
                _ = self.terminate.recv() => Signal::TERM,
                _ = self.interrupt.recv() => Signal::INT,
                _ = self.hangup.recv() => Signal::HUP,
            };
            asked += 1;
            let signal = if asked > 1 { Signal::KILL } else { signal };
            let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
            // A terminal's Ctrl-C has reached it already: who gets it twice may take it for impatience.
            if let Some(pid) = pid.filter(|_| asked > 1 || !is_from_terminal(signal)) {
                let kill = if is_group {
                    kill_process_group
                } else {
                    kill_process
                };
                // It may have ended just now.
                let _ = kill(pid, signal);
            }
        }
    }
}

/// Whether such a signal goes to all programs of the terminal that this one runs in.
fn is_from_terminal(signal: Signal) -> bool {
    let stdin = std::io::stdin();
    let foreground = rustix::termios::tcgetpgrp(&stdin).ok();
    signal != Signal::TERM && foreground == Some(rustix::process::getpgrp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_by_a_signal_is_told_as_shells_do() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(2)), 130);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
    }
}
