//! `xpool serve`.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use sd_notify::NotifyState;
use tokio::net::unix::pipe::Receiver;
use tracing::warn;

use super::Context;
use crate::activation::GivenSockets;
use crate::nix::System;
use crate::serve;
use crate::shutdown::Shutdown;

/// What a manager in the background prints when it serves; see [`super::start`].
pub(super) const READY: &str = "ready";

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Leave the terminal, log to this file, and print one word when serving; what `xpool up` starts
    #[arg(long, value_name = "LOG", hide = true)]
    background: Option<PathBuf>,
    /// End, and remove the state folder, when standard input ends, and listen on any free port; what `xpool run` starts
    #[arg(long, hide = true)]
    attached: bool,
    /// Record each build that ends, for `xpool simulate`: when it was wanted, of which system, by whom, how long it took. At
    /// 16 MiB the file becomes FILE.old and another one begins [default: `file` of [trace] in xpool.toml]
    #[arg(long, value_name = "FILE")]
    record_trace: Option<PathBuf>,
}

impl ServeArgs {
    pub(super) fn log_file(&self) -> Option<&Path> {
        self.background.as_deref()
    }
}

pub(super) async fn run(context: &Context, args: &ServeArgs) -> Result<()> {
    // Before any other program is started, which would have them as well.
    let given = GivenSockets::take(&context.paths)?;
    let background = args.background.is_some();
    if background {
        rustix::process::setsid().context("leaving the terminal's session")?;
    }
    let mut config = context.config()?;
    if let Some(file) = &args.record_trace {
        config.trace = Some(std::path::absolute(file).context("the trace")?);
    }
    let shutdown = Shutdown::default();
    shutdown.on_signals().context("listening to signals")?;
    if args.attached {
        config.listen.set_port(0);
        tokio::spawn(end_with(stdin_pipe()?, shutdown.clone()));
    }
    let printer = context.printer;
    let next_steps = super::up::next_steps(context, System::Riscv64Linux).await?;
    let served = serve::run(config, &context.paths, shutdown, given, move |info| {
        if background {
            printer.data(READY);
        } else {
            // Nobody is told where no service manager has named a socket.
            if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
                warn!(%error, "systemd does not know that the manager serves");
            }
            printer.done(
                "Serving",
                &format!("gateway on {}; Ctrl-C ends it", info.gateway),
            );
            printer.say(&next_steps);
        }
    })
    .await;
    if args.attached {
        // Who started it may be gone, and does the same if it is not.
        let _ = std::fs::remove_dir_all(context.paths.state());
    }
    served
}

/// Standard input, which is a pipe that nobody writes to. Not tokio's own: its thread would keep this process.
fn stdin_pipe() -> Result<Receiver> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    stdin
        .and_then(Receiver::from_owned_fd)
        .context("`--attached` needs a pipe as standard input")
}

async fn end_with(mut stdin: Receiver, shutdown: Shutdown) {
    // However it ends, nobody is there any more.
    let _ = tokio::io::copy(&mut stdin, &mut tokio::io::sink()).await;
    shutdown.end_now();
}
