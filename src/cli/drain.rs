//! `xpool drain`.

use anyhow::Result;
use clap::Args;

use super::Context;
use crate::control::Drain;

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// Which one: riscv64-1
    vm: String,
}

pub(super) async fn run(context: &Context, args: &DrainArgs) -> Result<()> {
    let (client, _) = context.connect().await?;
    let vm = args.vm.clone();
    client.drain(&Drain { vm }).await?;
    context.printer.done("Draining", &args.vm);
    Ok(())
}
