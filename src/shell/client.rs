//! The person's end: asks the manager for a shell and joins its streams to those of this process.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy};
use tokio::net::UnixStream;

use super::{Answer, Place, Request};
use crate::connect::wire::{self, Reader};
use crate::manager::shell::ShellEnd;
use crate::vm::{SHELL_STREAMS, ShellProgram};

/// What the process of a shell that broke off ends with, as with ssh.
pub const BROKEN: u8 = 255;

/// The exit status of a program whose output nobody reads any more: that of one ended by SIGPIPE.
const UNREAD: i64 = 128 + 13;

/// A shell that did not come about or did not end by itself.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// The manager gives none.
    #[error("{0}")]
    Refused(String),
    /// The manager cannot be spoken to.
    #[error("the connection to the manager")]
    Connection(#[from] io::Error),
    /// Its VM has ended.
    #[error("{vm} {why}")]
    VmGone {
        /// The VM's name.
        vm: String,
        /// What is to be said of it: `has had its build and is gone`.
        why: String,
    },
    /// Nobody knows how it ended.
    #[error("the shell in {vm} broke off: the manager or the guest's agent has gone")]
    Lost {
        /// The VM's name.
        vm: String,
    },
}

impl ShellError {
    /// Whether there was a shell.
    pub fn has_begun(&self) -> bool {
        matches!(self, Self::VmGone { .. } | Self::Lost { .. })
    }
}

/// A shell in a guest.
#[derive(Debug)]
pub struct RemoteShell {
    /// The VM that it is in.
    pub vm: String,
    streams: [UnixStream; SHELL_STREAMS],
    manager: Reader,
}

/// Asks the manager that listens at `socket` for a shell; `waiting` is told what goes on until there is one.
pub async fn open(
    socket: &Path,
    place: Place,
    program: ShellProgram,
    waiting: impl Fn(&str),
) -> Result<RemoteShell, ShellError> {
    let stream = UnixStream::connect(socket).await?;
    let (mut manager, writer) = wire::split(stream);
    writer.send(&Request { place, program }).await?;
    loop {
        match manager.next().await? {
            Some(Answer::Waiting(text)) => waiting(&text),
            Some(Answer::Opened(vm)) => {
                let streams = streams(&mut manager)?;
                return Ok(RemoteShell {
                    vm,
                    streams,
                    manager,
                });
            }
            Some(Answer::Refused(why)) => return Err(ShellError::Refused(why)),
            Some(Answer::Ended(_)) | None => {
                return Err(ShellError::Refused(
                    "the manager ended before there was a shell".to_owned(),
                ));
            }
        }
    }
}

fn streams(manager: &mut Reader) -> io::Result<[UnixStream; SHELL_STREAMS]> {
    let mut next = || {
        let missing = || io::Error::other("the manager has sent no way into the VM");
        stream(manager.descriptor().ok_or_else(missing)?)
    };
    Ok([next()?, next()?, next()?])
}

fn stream(descriptor: OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(descriptor);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// What a shell is joined to.
#[derive(Debug)]
pub struct Ends<I, O, E, S> {
    /// Its input.
    pub input: I,
    /// Where its output goes.
    pub output: O,
    /// Where its errors go.
    pub errors: E,
    /// Tells the size of the terminal, rows and columns, each time it changes.
    pub sizes: S,
}

impl RemoteShell {
    /// Carries the streams until the program has ended and all that it wrote is delivered; its exit status. Dropping the
    /// future ends the program.
    pub async fn join<I, O, E, S>(self, ends: Ends<I, O, E, S>) -> Result<i64, ShellError>
    where
        I: AsyncRead + Unpin,
        O: AsyncWrite + Unpin,
        E: AsyncWrite + Unpin,
        S: AsyncFnMut() -> (u16, u16),
    {
        let Self {
            vm,
            streams: [input, output, errors],
            mut manager,
        } = self;
        let (mut from_output, mut to_sizes) = output.into_split();
        let (mut from_errors, to_errors) = errors.into_split();
        let mut ends = ends;
        let outward = async {
            tokio::try_join!(
                copy(&mut from_output, &mut ends.output),
                copy(&mut from_errors, &mut ends.errors),
            )
        };
        tokio::select! {
            delivered = outward => match delivered {
                // Somebody who reads no further, as `head` does, has all that they want.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(UNREAD),
                delivered => drop(delivered?),
            },
            () = feed(ends.input, input) => {}
            () = tell_sizes(&mut ends.sizes, &mut to_sizes) => {}
        }
        // Not before: an end of one direction of these streams is one of both.
        drop((to_sizes, to_errors));
        match manager.next().await {
            Ok(Some(Answer::Ended(ShellEnd::Exited(status)))) => Ok(status),
            Ok(Some(Answer::Ended(ShellEnd::VmGone(why)))) => Err(ShellError::VmGone { vm, why }),
            _ => Err(ShellError::Lost { vm }),
        }
    }
}

/// Passes on the input and its end, and then has nothing more to do.
async fn feed(mut input: impl AsyncRead + Unpin, mut stream: UnixStream) {
    // A program that has ended reads nothing more, and its end is told otherwise.
    let _ = copy(&mut input, &mut stream).await;
    let _ = stream.shutdown().await;
    std::future::pending::<()>().await;
}

async fn tell_sizes(
    sizes: &mut impl AsyncFnMut() -> (u16, u16),
    stream: &mut (impl AsyncWrite + Unpin),
) {
    loop {
        let (rows, columns) = sizes().await;
        let line = format!("{rows} {columns}\n");
        if stream.write_all(line.as_bytes()).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
