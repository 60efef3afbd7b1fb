//! The client's end of a session: its handshake, what it sent before there was a guest, and what it is told.

use std::future::pending;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Outcome;
use super::account::Charge;
use crate::nix::handshake::{HandshakeError, Promise, ServerProgress, ServerSide};
use crate::nix::stderr;
use crate::nix::wire::{Reader, Version, WireError};

/// How many bytes are held for a guest that is not there yet. After that the client has to wait.
const MAX_HELD: usize = 64 * 1024;

/// How many bytes a first request may have that is looked at: a hundred thousand paths.
const MAX_REQUEST: usize = 16 * 1024 * 1024;

/// How long a client that was told of a failure may take to leave. It closes at once; without the wait, one that still
/// writes would meet a closed stream before it reads the reason.
const LEAVE_DEADLINE: Duration = Duration::from_secs(5);

/// A client whose handshake is done.
#[derive(Debug)]
pub(super) struct Client<R, W> {
    pub(super) reader: R,
    pub(super) writer: W,
    /// The protocol version that was agreed on.
    pub(super) version: Version,
    /// What it sent and no guest has received.
    held: Vec<u8>,
    /// How much of that there may be.
    room: usize,
    /// What is charged for it.
    charge: Charge,
}

/// How a client's handshake went.
#[derive(Debug)]
pub(super) enum Greeting<R, W> {
    Done(Client<R, W>),
    Left,
    Failed(HandshakeError),
}

/// Answers a client's handshake.
pub(super) async fn greet<R, W>(
    mut reader: R,
    mut writer: W,
    charge: Charge,
    promise: &Promise,
) -> Greeting<R, W>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut side = ServerSide::new(promise.clone());
    let mut chunk = [0; 4096];
    loop {
        let n = match reader.read(&mut chunk).await {
            Ok(0) | Err(_) => return Greeting::Left,
            Ok(n) => n,
        };
        let (reply, done) = match side.receive(&chunk[..n]) {
            Ok(ServerProgress::More { reply }) => (reply, None),
            Ok(ServerProgress::Done {
                reply,
                version,
                rest,
            }) => (reply, Some((version, rest))),
            Err(error) => return Greeting::Failed(error),
        };
        if !reply.is_empty() && write(&mut writer, &reply).await.is_err() {
            return Greeting::Left;
        }
        if let Some((version, held)) = done {
            return Greeting::Done(Client {
                reader,
                writer,
                version,
                held,
                room: MAX_HELD,
                charge,
            });
        }
    }
}

impl<R, W> Client<R, W>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    /// Waits for the number of the first operation, and holds it with what comes along. `None` if the client leaves instead.
    pub(super) async fn first_operation(&mut self) -> Option<u64> {
        loop {
            if let Ok(number) = Reader::new(&self.held).number() {
                return Some(number);
            }
            if let Ok(0) | Err(_) = self.reader.read_buf(&mut self.held).await {
                return None;
            }
        }
    }

    /// Waits until the first request is there in full, and gives what `read` makes of it. `None` if the client leaves before,
    /// or if it is no such request, or none that may be kept for so long.
    pub(super) async fn whole_request<T>(
        &mut self,
        read: impl Fn(&[u8]) -> Result<T, WireError>,
    ) -> Option<T> {
        let read = loop {
            match read(&self.held) {
                Err(WireError::Incomplete) if self.may_hold_more() => {}
                read => break read,
            }
            if let Ok(0) | Err(_) = self.reader.read_buf(&mut self.held).await {
                return None;
            }
        };
        // It now waits for the reply, and what it sends beside shows that it is still there.
        self.room = self.held.len() + MAX_HELD;
        read.ok()
    }

    fn may_hold_more(&mut self) -> bool {
        self.charge.set(self.held.len());
        self.held.len() < MAX_REQUEST && !self.charge.account().is_short()
    }

    /// What it sent and no guest has received, to be passed on.
    pub(super) fn take_held(&mut self) -> Vec<u8> {
        self.charge.set(0);
        std::mem::take(&mut self.held)
    }

    /// Holds what the client sends, and returns when it has left. Cancel safe.
    pub(super) async fn left(&mut self) {
        while self.held.len() < self.room {
            if let Ok(0) | Err(_) = self.reader.read_buf(&mut self.held).await {
                return;
            }
        }
        pending::<()>().await;
    }

    /// Shows a line to the person who waits. A client that has left is noticed by [`Self::left`].
    pub(super) async fn say(&mut self, text: &str) {
        let _ = write(&mut self.writer, &stderr::line(text)).await;
    }

    /// Ends the running operation with an error. Only where the client can understand it.
    pub(super) async fn fail(mut self, text: &str) -> Outcome {
        let error = stderr::error(self.version, text);
        let told = write(&mut self.writer, &error).await;
        if told.is_ok() {
            let _ = tokio::time::timeout(LEAVE_DEADLINE, self.drained()).await;
        }
        Outcome::Told {
            text: text.to_owned(),
        }
    }

    async fn drained(&mut self) {
        let mut chunk = [0; 4096];
        while let Ok(1..) = self.reader.read(&mut chunk).await {}
    }
}

async fn write<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> std::io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}
