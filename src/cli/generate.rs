//! `xpool completions` and `xpool man`: what a package installs beside the program.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Context};

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// Whose
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// A folder that is there
    dir: PathBuf,
}

pub(super) fn completions(context: &Context, args: &CompletionsArgs) {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "xpool", &mut text);
    context
        .printer
        .data(String::from_utf8_lossy(&text).trim_end());
}

pub(super) fn man(args: &ManArgs) -> Result<()> {
    let dir = &args.dir;
    clap_mangen::generate_to(Cli::command(), dir)
        .with_context(|| format!("writing manual pages into `{}`", dir.display()))
}
