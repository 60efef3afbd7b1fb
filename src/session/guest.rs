//! The guest's end of a session: the handshake with its nix-daemon.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use super::client::Client;
use super::park::{MANAGER_GONE, died_before_use};
use crate::manager::ticket::{SessionTicket, SessionUpdate};
use crate::nix::handshake::{ClientProgress, ClientSide};
use crate::nix::wire::Version;

/// How long a guest's nix-daemon may take for the handshake: it has to start a process on an emulated processor, on a
/// machine that may be busy with many such guests.
const JOIN_DEADLINE: Duration = Duration::from_secs(60);

/// How joining a guest went.
#[derive(Debug)]
pub(super) enum Joined {
    /// With what the guest sent after the handshake, which is nothing unless it is odd.
    Done(Vec<u8>),
    /// The client left meanwhile.
    Left,
    Failed(String),
}

/// Takes the client's part in the handshake with the guest.
pub(super) async fn join<R, W>(
    client: &mut Client<R, W>,
    ticket: &mut SessionTicket,
    vm: &str,
    stream: &mut UnixStream,
) -> Joined
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let version = client.version;
    tokio::select! {
        greeted = tokio::time::timeout(JOIN_DEADLINE, greet(stream, version)) => match greeted {
            Ok(Ok(rest)) => Joined::Done(rest),
            Ok(Err(error)) => Joined::Failed(format!("xpool: cannot use {vm}: {error:#}")),
            Err(_) => Joined::Failed(format!(
                "xpool: the nix-daemon in {vm} did not answer within {} seconds", JOIN_DEADLINE.as_secs()
            )),
        },
        text = bad_news(ticket) => Joined::Failed(text),
        () = client.left() => Joined::Left,
    }
}

async fn greet(stream: &mut UnixStream, version: Version) -> anyhow::Result<Vec<u8>> {
    let mut side = ClientSide::new(version);
    let hello = side.hello();
    stream
        .write_all(&hello)
        .await
        .context("the connection to its nix-daemon broke")?;
    let mut chunk = [0; 4096];
    loop {
        let n = stream
            .read(&mut chunk)
            .await
            .context("the connection to its nix-daemon broke")?;
        if n == 0 {
            bail!("its nix-daemon ended the connection in the middle of the handshake");
        }
        if let ClientProgress::Done { nix, rest } = side.receive(&chunk[..n])? {
            tracing::debug!(?nix, "guest joined");
            return Ok(rest);
        }
    }
}

/// Resolves when the manager says that the VM cannot be used.
async fn bad_news(ticket: &mut SessionTicket) -> String {
    loop {
        match ticket.next().await {
            Some(SessionUpdate::VmGone { vm, cause, log }) => {
                return died_before_use(&vm, &cause, &log);
            }
            Some(SessionUpdate::Rejected(text)) => return format!("xpool: {text}"),
            Some(SessionUpdate::Waiting(_) | SessionUpdate::Granted { .. }) => {}
            None => return MANAGER_GONE.to_owned(),
        }
    }
}
