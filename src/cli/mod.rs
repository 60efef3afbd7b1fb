//! The command line: what can be said, and which command takes it.

mod attached;
mod bound;
mod builders;
mod builds;
mod config;
mod connect;
mod down;
mod drain;
mod events;
mod generate;
mod image;
mod install;
mod logs;
mod machines;
mod metrics;
mod nix_version;
mod nixos_image;
mod problem;
mod run;
mod serve;
mod simulate;
mod ssh;
mod start;
mod status;
mod trusted;
mod up;
mod watch;
mod why;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use tracing::debug;

pub use problem::Problem;

use crate::client_files;
use crate::config::{Config, Host};
use crate::control::Info;
use crate::control::client::{Client, ControlError};
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

impl Global {
    fn named(&self) -> Vec<String> {
        let given = [
            ("--config", &self.config),
            ("--state-dir", &self.state_dir),
            ("--cache-dir", &self.cache_dir),
        ];
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let flags = given
            .into_iter()
            .filter_map(|(flag, path)| Some((flag, absolute(path.as_ref()?))));
        flags
            .flat_map(|(flag, path)| [flag.to_owned(), path.display().to_string()])
            .collect()
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Have VMs of a system running: make the image if there is none, start the manager and the VMs
    Up(up::UpArgs),
    /// Stop a system's VMs, or everything
    Down(down::DownArgs),
    /// Show pools, VMs, sessions and builds
    Status(status::StatusArgs),
    /// Say what a session waits for, and why
    Why(why::WhyArgs),
    /// Take a VM out of service: it ends with the sessions that it has
    Drain(drain::DrainArgs),
    /// Print what Nix and ssh have to know of the build machines, or put it into their configuration
    Machines(machines::MachinesArgs),
    /// Show what happens as it happens: sessions, builds, VMs
    Events(events::EventsArgs),
    /// Print what the manager counts, as Prometheus reads it
    Metrics,
    /// Show the last lines of a build, the console of a VM, or what the manager in the background says
    Logs(logs::LogsArgs),
    /// Run a shell or a command in a VM, to look around
    Ssh(ssh::SshArgs),
    /// Run a command that finds builders in its environment, and end with it: for CI
    Run(run::RunArgs),
    /// Say how long builds of a recorded or invented day would wait, and what VMs it would take
    Simulate(simulate::SimulateArgs),
    /// Make, list and check guest images
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Check the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Join standard input and output to a builder; what Nix runs with the local transport
    Connect(connect::ConnectArgs),
    /// Print what a shell completes commands of xpool by
    Completions(generate::CompletionsArgs),
    /// Write manual pages of all commands into a folder; for packages
    #[command(hide = true)]
    Man(generate::ManArgs),
    /// Run a command that ends with the process that asks for it
    #[command(hide = true)]
    Bound(bound::BoundArgs),
    /// Run the manager in the foreground
    Serve(serve::ServeArgs),
}

/// What every command has at hand.
struct Context {
    printer: Printer,
    paths: Paths,
    verbose: u8,
    /// The folders and files that were named, as arguments: for a manager in the background, and for commands to copy.
    named: Vec<String>,
}

impl Context {
    fn config(&self) -> Result<Config> {
        Ok(Config::load(&self.paths, &Host::this())?)
    }

    /// The manager that runs. Where none does, Nix is no longer told of the machines of one that was killed.
    async fn connect(&self) -> Result<(Client, Info), ControlError> {
        let reached = Client::connect(&self.paths.control_socket()).await;
        if let Err(ControlError::NotRunning { .. }) = &reached
            && let Err(error) = client_files::forget_dead(&self.paths)
        {
            debug!("{error:#}");
        }
        reached
    }

    /// The same with another state folder.
    fn in_state(&self, state: PathBuf) -> Self {
        let mut named = self.named.clone();
        if let Some(at) = named.iter().position(|flag| flag == "--state-dir") {
            named.drain(at..at + 2);
        }
        named.extend(["--state-dir".to_owned(), state.display().to_string()]);
        Self {
            printer: self.printer,
            paths: self.paths.in_state(state),
            verbose: self.verbose,
            named,
        }
    }

    /// This program as it was called, for a command that can be copied: with a path where PATH does not lead to it.
    fn own_command(&self) -> Result<String> {
        let own = std::env::current_exe().context("finding xpool's own program")?;
        let search_path = Host::this().search_path;
        let found = std::env::split_paths(&search_path)
            .map(|dir| dir.join("xpool"))
            .find(|path| path.is_file());
        let is_found = found.is_some_and(|path| path.canonicalize().is_ok_and(|path| path == own));
        let program = if is_found {
            "xpool".to_owned()
        } else {
            own.display().to_string()
        };
        Ok(std::iter::once(program)
            .chain(self.named.iter().cloned())
            .collect::<Vec<_>>()
            .join(" "))
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

    /// How long threads that still do something at the end are waited for: the manager's may be removing a VM's folder;
    /// another command's may wait for a lock that somebody else holds, for which nobody waits any more.
    pub fn end_patience(&self) -> Duration {
        match self.command {
            Command::Serve(_) => Duration::from_secs(30),
            _ => Duration::ZERO,
        }
    }

    /// Whether it is what Nix starts, of which there may be one for each build that waits.
    pub fn is_helper(&self) -> bool {
        matches!(self.command, Command::Connect(_))
    }

    /// The file that the log goes to instead of stderr.
    pub fn log_file(&self) -> Option<&Path> {
        match &self.command {
            Command::Serve(args) => args.log_file(),
            _ => None,
        }
    }

    /// Runs the command; the exit code of one that went well.
    pub async fn run(self, printer: Printer) -> Result<u8> {
        let named = self.global.named();
        let Global {
            config,
            state_dir,
            cache_dir,
            verbose,
        } = self.global;
        let paths = Paths::new(config, state_dir, cache_dir)?;
        let context = Context {
            printer,
            paths,
            verbose,
            named,
        };
        match self.command {
            Command::Up(args) => up::run(&context, &args).await,
            Command::Down(args) => down::run(&context, &args).await,
            Command::Status(args) => return status::run(&context, &args).await,
            Command::Why(args) => why::run(&context, &args).await,
            Command::Drain(args) => drain::run(&context, &args).await,
            Command::Events(args) => events::run(&context, &args).await,
            Command::Metrics => metrics::run(&context).await,
            Command::Machines(args) => machines::run(&context, &args).await,
            Command::Logs(args) => logs::run(&context, &args).await,
            Command::Ssh(args) => return ssh::run(&context, args).await,
            Command::Run(args) => return run::run(&context, &args).await,
            Command::Bound(args) => return bound::run(&context, &args),
            Command::Simulate(args) => simulate::run(&context, &args),
            Command::Image(command) => image::run(&context, &command).await,
            Command::Config(command) => config::run(&context, &command),
            Command::Completions(args) => {
                generate::completions(&context, &args);
                Ok(())
            }
            Command::Man(args) => generate::man(&args),
            Command::Connect(args) => connect::run(&context, &args).await,
            Command::Serve(args) => serve::run(&context, &args).await,
        }
        .map(|()| 0)
    }
}

/// Takes a system by Nix's name or the processor's.
fn parse_system(given: &str) -> Result<System, String> {
    given
        .parse()
        .map_err(|error: crate::nix::UnknownSystem| error.to_string())
}
