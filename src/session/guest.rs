//! The guest's end of a session: the handshake with its nix-daemon.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::client::Client;
use super::park::{died_before_use, manager_gone};
use crate::manager::ticket::{Grant, SessionTicket, SessionUpdate};
use crate::nix::handshake::{ClientProgress, ClientSide};
use crate::nix::wire::Version;
use crate::vm::Hop;

/// How long a guest's nix-daemon may take for the handshake: it has to start a process on an emulated processor, on a
/// machine that may be busy with many such guests.
const JOIN_DEADLINE: Duration = Duration::from_secs(60);

/// Bytes of the number that a greeting begins with.
const BEGINNING: usize = 8;

/// How joining a guest went.
#[derive(Debug)]
pub(super) enum Joined {
    /// With what the guest sent after the handshake, which is nothing unless it is odd.
    Done(Vec<u8>),
    /// The client left meanwhile.
    Left,
    Failed(String),
}

/// Takes the client's part in the handshake with the guest, while the guest is given what it need not be sent.
pub(super) async fn join<R, W>(
    client: &mut Client<R, W>,
    ticket: &mut SessionTicket,
    Grant {
        vm, hop, inputs, ..
    }: &mut Grant,
) -> Joined
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let version = client.version;
    let greet = tokio::time::timeout(JOIN_DEADLINE, greet(hop, version));
    tokio::select! {
        (greeted, ()) = async { tokio::join!(greet, inputs.arrived()) } => match greeted {
            Ok(Ok(rest)) => Joined::Done(rest),
            Ok(Err(error)) => Joined::Failed(format!(
                "xpool: cannot use {vm}: {error:#}; `xpool logs {vm}` shows the VM's console"
            )),
            Err(_) => Joined::Failed(format!(
                "xpool: the nix-daemon in {vm} did not answer within {} seconds; `xpool logs {vm}` shows the VM's console",
                JOIN_DEADLINE.as_secs()
            )),
        },
        text = bad_news(ticket, vm) => Joined::Failed(text),
        () = client.left() => Joined::Left,
    }
}

async fn greet(hop: &mut Hop, version: Version) -> anyhow::Result<Vec<u8>> {
    let mut side = ClientSide::new(version);
    let hello = side.hello();
    let mut received = std::mem::take(&mut hop.greeted);
    let sent = if received.is_empty() { 0 } else { BEGINNING };
    hop.stream
        .write_all(&hello[sent..])
        .await
        .context("the connection to its nix-daemon broke")?;
    loop {
        if let ClientProgress::Done { nix, rest, .. } = side.receive(&received)? {
            tracing::debug!(?nix, "guest joined");
            return Ok(rest);
        }
        received.resize(4096, 0);
        let n = hop
            .stream
            .read(&mut received)
            .await
            .context("the connection to its nix-daemon broke")?;
        if n == 0 {
            bail!("its nix-daemon ended the connection in the middle of the handshake");
        }
        received.truncate(n);
    }
}

/// Resolves when the manager says that the VM cannot be used.
async fn bad_news(ticket: &mut SessionTicket, vm: &str) -> String {
    loop {
        match ticket.next().await {
            Some(SessionUpdate::VmGone { vm, cause, log }) => {
                return died_before_use(&vm, &cause, &log);
            }
            Some(SessionUpdate::Rejected(text)) => return format!("xpool: {text}"),
            Some(
                SessionUpdate::Waiting(_) | SessionUpdate::Granted(_) | SessionUpdate::Note(_),
            ) => {}
            None => return manager_gone(Some(vm)),
        }
    }
}
