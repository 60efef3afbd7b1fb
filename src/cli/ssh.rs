//! `xpool ssh`.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Context, image, start, up};
use crate::control::client::Client;
use crate::nix::System;
use crate::output::progress::Progress;
use crate::shell::Place;
use crate::shell::client::{self, Ends, RemoteShell};
use crate::shell::terminal::{self, RawTerminal};
use crate::vm::{ShellProgram, ShellTerminal};

/// What Linux takes as one argument of a program is 128 KiB, and there is something around it.
const LONGEST_COMMAND: usize = 100_000;

/// What is added to a signal's number to make the exit code of who was ended by it.
const SIGNALLED: i32 = 128;

#[derive(Debug, Args)]
pub(super) struct SshArgs {
    /// riscv64 or aarch64, for a VM of its own that ends with it; or a VM, such as riscv64-1
    #[arg(value_name = "SYSTEM|VM", value_parser = parse_place)]
    place: Place,
    /// What to run there in place of a shell; a shell reads it, as with ssh
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// The kind of terminal
    #[arg(long, env = "TERM", hide = true, default_value = "dumb")]
    term: String,
}

/// Takes a system, or what is named like a VM.
fn parse_place(given: &str) -> Result<Place, String> {
    let is_vm = given.rsplit_once('-').is_some_and(|(cpu, number)| {
        let is_system = System::ALL.iter().any(|system| system.cpu() == cpu);
        is_system && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    });
    if is_vm {
        return Ok(Place::Vm(given.to_owned()));
    }
    match super::parse_system(given) {
        Ok(system) => Ok(Place::System(system)),
        Err(error) => Err(format!("{error} (VMs have names such as `riscv64-1`)")),
    }
}

/// Runs a shell or a command in a VM; the exit code of this process.
pub(super) async fn run(context: &Context, args: SshArgs) -> Result<u8> {
    let command = args.command.join(" ");
    if command.len() > LONGEST_COMMAND {
        bail!(
            "the command has {} bytes and may have {LONGEST_COMMAND}; send a script over standard input",
            command.len()
        );
    }
    match args.place {
        Place::System(system) => {
            up::prepare(context, system, 1, &image::cancel_on_signals()?).await?;
        }
        Place::Vm(_) => drop(Client::connect(&context.paths.control_socket()).await?),
    }
    let mut signals = Signals::listen().context("listening to signals")?;
    let running = async {
        if let Place::System(_) = args.place {
            start::manager(context).await?;
        }
        let shell = open(context, args.place, command, args.term).await?;
        join(shell).await
    };
    // What runs in the guest ends when nobody holds its streams any more.
    tokio::select! {
        code = running => code,
        signal = signals.next() => Ok(exit_code(i64::from(SIGNALLED + signal.as_raw_value()))),
    }
}

async fn open(
    context: &Context,
    place: Place,
    command: String,
    kind: String,
) -> Result<RemoteShell> {
    let terminal = terminal::is_there().then(|| {
        let (rows, columns) = terminal::size();
        ShellTerminal {
            rows,
            columns,
            kind,
        }
    });
    let program = ShellProgram { command, terminal };
    let socket = context.paths.shell_socket();
    // For who watches: elsewhere, what is on stderr is the command's.
    let shows = context.printer.is_terminal();
    let progress = match &place {
        Place::System(system) if shows => {
            Some(Progress::new(context.printer, "Starting", system.name()))
        }
        Place::System(_) | Place::Vm(_) => None,
    };
    let waiting = |text: &str| {
        if let Some(progress) = &progress {
            progress.step(text);
        }
    };
    let shell = client::open(&socket, place, program, waiting).await?;
    if let Some(progress) = progress {
        progress.finish("Ready", &format!("{}, which ends with the shell", shell.vm));
    }
    Ok(shell)
}

async fn join(shell: RemoteShell) -> Result<u8> {
    let mut resized = signal(SignalKind::window_change()).context("listening to signals")?;
    let raw = terminal::is_there()
        .then(RawTerminal::enter)
        .transpose()
        .context("making the terminal raw")?;
    let ends = Ends {
        input: tokio::io::stdin(),
        output: tokio::io::stdout(),
        errors: tokio::io::stderr(),
        sizes: async || {
            resized.recv().await;
            terminal::size()
        },
    };
    let status = shell.join(ends).await;
    drop(raw);
    Ok(exit_code(status?))
}

/// Exit statuses are bytes.
fn exit_code(status: i64) -> u8 {
    u8::try_from(status).unwrap_or(client::BROKEN)
}

/// The signals that end a process whose terminal cannot tell it otherwise.
struct Signals([(SignalKind, Signal); 4]);

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let listen = |kind| Ok::<_, std::io::Error>((kind, signal(kind)?));
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
            listen(SignalKind::quit())?,
        ]))
    }

    /// The first one that comes.
    async fn next(&mut self) -> SignalKind {
        let each = self.0.each_mut().map(|(kind, signal)| {
            Box::pin(async move {
                signal.recv().await;
                *kind
            })
        });
        futures::future::select_all(each).await.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_system_or_is_named_like_a_vm() {
        assert_eq!(
            parse_place("riscv64"),
            Ok(Place::System(System::Riscv64Linux))
        );
        assert_eq!(
            parse_place("aarch64-linux"),
            Ok(Place::System(System::Aarch64Linux))
        );
        assert_eq!(
            parse_place("riscv64-12"),
            Ok(Place::Vm("riscv64-12".to_owned()))
        );
        for wrong in ["riscv", "riscv64-", "sparc-1", "riscv64-x", ""] {
            parse_place(wrong).unwrap_err();
        }
    }
}
