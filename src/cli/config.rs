//! `xpool config`: xpool.toml and vm-configs, looked at without a manager.

use anyhow::Result;
use clap::{Args, Subcommand};

use super::Context;
use crate::config::{Config, Host};
use crate::paths::ConfigFile;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say what is wrong with the configuration, if anything; exits 2 if something is
    Check(CheckArgs),
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// It is for another machine: do not compare it with the processors and the memory of this one
    #[arg(long)]
    elsewhere: bool,
}

pub(super) fn run(context: &Context, command: &ConfigCommand) -> Result<()> {
    let ConfigCommand::Check(args) = command;
    let this = Host::this();
    let host = if args.elsewhere {
        this.with_plenty()
    } else {
        this
    };
    Config::load(&context.paths, &host)?;
    match context.paths.config() {
        ConfigFile::Usual(file) if !file.exists() => {
            let said = format!(
                "there is no `{}`: everything has its default",
                file.display()
            );
            context.printer.say(&said);
        }
        ConfigFile::Usual(file) | ConfigFile::Named(file) => {
            context.printer.done("Checked", &file.display().to_string());
        }
    }
    Ok(())
}
