//! The command line: what can be said, and which command takes it.

mod down;
mod image;
mod logs;
mod machines;
mod problem;
mod serve;
mod start;
mod status;
mod up;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

pub use problem::Problem;

use crate::config::{Config, Host};
use crate::nix::System;
use crate::output::Printer;
use crate::paths::Paths;

/// Build for riscv64 and aarch64 on emulated Linux machines that start when Nix needs them.
#[derive(Debug, Parser)]
#[command(
    name = "xpool",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
#[expect(clippy::doc_markdown, reason = "read as help, not as documentation")]
struct Global {
    /// Configuration file [default: xpool/xpool.toml in $XDG_CONFIG_HOME; may be missing]
    #[arg(
        long,
        value_name = "FILE",
        env = "XPOOL_CONFIG",
        hide_env = true,
        global = true
    )]
    config: Option<PathBuf>,
    /// Folder for keys, logs and VMs [default: xpool in $XDG_STATE_HOME]
    #[arg(
        long,
        value_name = "DIR",
        env = "XPOOL_STATE_DIR",
        hide_env = true,
        global = true
    )]
    state_dir: Option<PathBuf>,
    /// Folder for images [default: xpool in $XDG_CACHE_HOME]
    #[arg(
        long,
        value_name = "DIR",
        env = "XPOOL_CACHE_DIR",
        hide_env = true,
        global = true
    )]
    cache_dir: Option<PathBuf>,
    /// Say more: -v what is done, -vv how
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Have VMs of a system running: make the image if there is none, start the manager and the VMs
    Up(up::UpArgs),
    /// Stop a system's VMs, or everything
    Down(down::DownArgs),
    /// Show pools, VMs and sessions
    Status(status::StatusArgs),
    /// Print what Nix and ssh have to know of the build machines
    Machines(machines::MachinesArgs),
    /// Show the console of a VM, or what the manager says
    Logs(logs::LogsArgs),
    /// Make, list and check guest images
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Run the manager in the foreground
    Serve(serve::ServeArgs),
}

/// What every command has at hand.
struct Context {
    printer: Printer,
    paths: Paths,
    verbose: u8,
    /// As given, to hand it on to a manager in the background.
    config_file: Option<PathBuf>,
}

impl Context {
    fn config(&self) -> Result<Config> {
        Ok(Config::load(&self.paths, &Host::this())?)
    }
}

impl Cli {
    /// How much the log is to say; `None` for what suits the command.
    pub fn log_level(&self) -> &'static str {
        match (&self.command, self.global.verbose) {
            (Command::Serve(_), 0) | (_, 1) => "info",
            (_, 0) => "warn",
            (_, 2) => "debug",
            _ => "trace",
        }
    }

    /// Runs the command.
    pub async fn run(self, printer: Printer) -> Result<()> {
        let Global {
            config,
            state_dir,
            cache_dir,
            verbose,
        } = self.global;
        let paths = Paths::new(config.clone(), state_dir, cache_dir)?;
        let context = Context {
            printer,
            paths,
            verbose,
            config_file: config,
        };
        match self.command {
            Command::Up(args) => up::run(&context, &args).await,
            Command::Down(args) => down::run(&context, &args).await,
            Command::Status(args) => status::run(&context, &args).await,
            Command::Machines(args) => machines::run(&context, &args),
            Command::Logs(args) => logs::run(&context, &args).await,
            Command::Image(command) => image::run(&context, &command).await,
            Command::Serve(args) => serve::run(&context, &args).await,
        }
    }
}

/// Takes a system by Nix's name or the processor's.
fn parse_system(given: &str) -> Result<System, String> {
    given
        .parse()
        .map_err(|error: crate::nix::UnknownSystem| error.to_string())
}
