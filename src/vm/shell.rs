//! A program that a person runs in a guest, with a terminal or without: the guest contract's `shell`. Each of its standard
//! streams has a port of its own, so nothing has to be framed, and the end of its input is the end of a connection.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt as _, copy};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::agent::{Agent, GuestPid};
use super::command::shell_port_id;
use super::hop::pump;
use super::port::GUEST_PROGRAM;
use super::port_state::{PortState, SessionFailed};
use super::private_dir::Layout;
use super::qmp::Qmp;
use super::wait::within;

/// Standard input, output and error.
pub const SHELL_STREAMS: usize = 3;

/// The number of the output, whose port the guest closes last.
pub(super) const OUTPUT: usize = 1;

/// The number of the errors, whose port the guest opens last.
const ERRORS: usize = 2;

/// The guest starts a few programs: 0.2 s, on a starved host a hundred times that.
const OPEN_LIMIT: Duration = Duration::from_secs(60);

/// How long what the one before has started may take to end.
const FREE_LIMIT: Duration = Duration::from_secs(15);

/// What a person wants to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ShellProgram {
    /// For the guest's shell; empty for that shell itself.
    pub command: String,
    /// The terminal that it is to have; `None` for three streams that are none.
    pub terminal: Option<ShellTerminal>,
}

/// A person's terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ShellTerminal {
    /// Its lines.
    pub rows: u16,
    /// Its characters in a line.
    pub columns: u16,
    /// Its kind, as `TERM` names it.
    pub kind: String,
}

impl ShellProgram {
    /// What `xpool-guest` is called with.
    fn guest_args(&self) -> Vec<String> {
        let mut args = vec!["shell".to_owned()];
        match &self.terminal {
            Some(ShellTerminal {
                rows,
                columns,
                kind,
            }) => args.extend([
                "tty".to_owned(),
                rows.to_string(),
                columns.to_string(),
                kind.clone(),
            ]),
            None => args.push("pipes".to_owned()),
        }
        args.push(self.command.clone());
        args
    }
}

/// A program that runs in a guest for a person. It is ended there when its streams are dropped.
#[derive(Debug)]
pub struct Shell {
    /// Input, output and errors. What is written to the output are sizes of the terminal, `ROWS COLUMNS` and a line's end.
    pub streams: [UnixStream; SHELL_STREAMS],
    /// The program's exit status as a shell has it, once the other streams have ended; without one nobody knows it.
    pub ended: oneshot::Receiver<i64>,
}

/// The ports of a guest's shell.
pub(super) struct ShellPorts {
    sockets: [PathBuf; SHELL_STREAMS],
    opened: PortState,
    closed: PortState,
    agent: Agent,
    /// Whether a person uses them. Then the next one is refused and need not wait.
    is_used: AtomicBool,
    /// One permit: who has it has the ports, until the guest has closed them.
    free: Arc<Semaphore>,
}

impl ShellPorts {
    /// Those in a VM's private folder. `heard` changes when the guest has opened or closed that of the output.
    pub(super) fn new(
        layout: &Layout,
        qmp: &Qmp,
        agent: &Agent,
        heard: &watch::Receiver<u64>,
    ) -> Self {
        let state = |stream| PortState::new(shell_port_id(stream), qmp.clone(), heard.clone());
        Self {
            sockets: std::array::from_fn(|stream| layout.shell(stream)),
            opened: state(ERRORS),
            closed: state(OUTPUT),
            agent: agent.clone(),
            is_used: AtomicBool::new(false),
            free: Arc::new(Semaphore::new(1)),
        }
    }

    /// Starts a program for a person.
    pub(super) async fn open(self: &Arc<Self>, program: ShellProgram) -> anyhow::Result<Shell> {
        ensure!(
            !self.is_used.swap(true, Ordering::AcqRel),
            "somebody has a shell in it already, and it has room for one"
        );
        // In a task of its own: what was started in the guest must be followed to its end.
        let opening = tokio::spawn(Arc::clone(self).start(program));
        opening
            .await
            .context("opening a shell")?
            .context("opening a shell in the guest")
    }

    async fn start(self: Arc<Self>, program: ShellProgram) -> anyhow::Result<Shell> {
        let in_use = InUse(Arc::clone(&self));
        let free = Arc::clone(&self.free).acquire_owned();
        let permit = within("the shell before it to end", FREE_LIMIT, free).await??;
        // Connected first: a guest that opens a port without a host reads its end at once.
        let ports = self.connect().await?;
        let args = program.guest_args();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let program = self.agent.start(GUEST_PROGRAM, &args).await?;
        let opened = self.opened.opened(&self.agent, program);
        let opened = within("the guest to open the ports", OPEN_LIMIT, opened).await;
        if let Err(error) = opened.map_err(anyhow::Error::from).flatten() {
            drop(ports);
            // One that has failed was told of, and forgotten by the agent.
            if !error.is::<SessionFailed>() {
                tokio::spawn(async move { self.follow_to_the_end(program, permit).await });
            }
            return Err(error);
        }
        let [input, output, errors] = [
            UnixStream::pair()?,
            UnixStream::pair()?,
            UnixStream::pair()?,
        ];
        let far = [input.1, output.1, errors.1];
        let (status, ended) = oneshot::channel();
        tokio::spawn(async move {
            self.carry(far, ports).await;
            drop(in_use);
            if let Some(exit) = self.follow_to_the_end(program, permit).await {
                // Whoever started it may have gone.
                let _ = status.send(exit);
            }
        });
        Ok(Shell {
            streams: [input.0, output.0, errors.0],
            ended,
        })
    }

    async fn connect(&self) -> anyhow::Result<[UnixStream; SHELL_STREAMS]> {
        let [input, output, errors] = self.sockets.each_ref().map(async |socket| {
            UnixStream::connect(socket)
                .await
                .with_context(|| format!("connecting to `{}`", socket.display()))
        });
        Ok([input.await?, output.await?, errors.await?])
    }

    /// Carries the streams until the guest has closed the ports and all that it had sent is delivered, or until the person
    /// has gone.
    async fn carry(&self, far: [UnixStream; SHELL_STREAMS], ports: [UnixStream; SHELL_STREAMS]) {
        let [input, mut output, mut errors] = far;
        let [to_input, mut from_output, mut from_errors] = ports;
        let closed = CancellationToken::new();
        let turn = || self.closed.turn();
        let outward = async {
            tokio::join!(
                pump(&mut output, &mut from_output, closed.cancelled(), turn),
                pump(&mut errors, &mut from_errors, closed.cancelled(), turn),
            )
        };
        let watching = async {
            self.closed.closed_by_guest().await;
            closed.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ((), ()) = outward => {}
            () = watching => {}
            () = feed(input, to_input) => {}
        }
    }

    /// Gives the ports back once what was started has ended, and tells how it did.
    async fn follow_to_the_end(
        &self,
        program: GuestPid,
        permit: OwnedSemaphorePermit,
    ) -> Option<i64> {
        self.closed.closed().await;
        match self.agent.finished(program).await {
            Ok(output) => {
                drop(permit);
                output.status
            }
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "no word of a shell's end");
                // There is no other one in this VM: nobody knows what holds the ports.
                permit.forget();
                None
            }
        }
    }
}

/// Somebody uses the ports, until this is dropped.
struct InUse(Arc<ShellPorts>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.is_used.store(false, Ordering::Release);
    }
}

/// Passes on a program's input, and its end: when the host closes a port's connection, its reads in the guest end.
async fn feed(mut input: UnixStream, mut port: UnixStream) {
    // An input that breaks off has ended.
    let _ = copy(&mut input, &mut port).await;
    // QEMU drops what it has not read of a connection that is closed, and not of one that only ends.
    let _ = port.shutdown().await;
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn a_command_goes_to_the_guest_as_one_argument() {
        let mut program = ShellProgram {
            command: "echo 'a b' | cat".to_owned(),
            terminal: None,
        };
        assert_eq!(program.guest_args(), ["shell", "pipes", "echo 'a b' | cat"]);
        program.terminal = Some(ShellTerminal {
            rows: 24,
            columns: 80,
            kind: "xterm".to_owned(),
        });
        program.command.clear();
        let expected = ["shell", "tty", "24", "80", "xterm", ""];
        assert_eq!(program.guest_args(), expected);
    }

    #[tokio::test]
    async fn the_end_of_the_input_comes_after_all_of_it() {
        let (user, far) = UnixStream::pair().unwrap();
        let (port, mut qemu) = UnixStream::pair().unwrap();
        let feeding = tokio::spawn(feed(far, port));
        let mut user = user;
        let writing = tokio::spawn(async move {
            user.write_all(&vec![7; 1 << 20]).await.unwrap();
        });
        let mut received = Vec::new();
        qemu.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), 1 << 20);
        writing.await.unwrap();
        assert!(!feeding.is_finished(), "the connection is closed");
        feeding.abort();
    }
}
