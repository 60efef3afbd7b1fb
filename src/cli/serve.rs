//! `xpool serve`.

use anyhow::{Context as _, Result};
use clap::Args;

use super::Context;
use crate::nix::System;
use crate::serve;
use crate::shutdown::Shutdown;

/// What a manager in the background prints when it serves; see [`super::start`].
pub(super) const READY: &str = "ready";

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Leave the terminal and print one word when serving; what `xpool up` starts
    #[arg(long, hide = true)]
    background: bool,
}

pub(super) async fn run(context: &Context, args: &ServeArgs) -> Result<()> {
    if args.background {
        rustix::process::setsid().context("leaving the terminal's session")?;
    }
    let config = context.config()?;
    let shutdown = Shutdown::default();
    shutdown.on_signals().context("listening to signals")?;
    let (printer, background) = (context.printer, args.background);
    let next_steps = super::up::next_steps(context, System::Riscv64Linux)?;
    serve::run(config, &context.paths, shutdown, move |info| {
        if background {
            printer.data(READY);
        } else {
            printer.done(
                "Serving",
                &format!("gateway on {}; Ctrl-C ends it", info.gateway),
            );
            printer.say(&next_steps);
        }
    })
    .await
}
