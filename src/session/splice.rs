//! A session that has its VM: bytes pass both ways until either side ends, then both are closed in full.
//!
//! Never half a close: the guest's daemon only notices a full one, and would go on building for nobody.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use super::Outcome;
use super::attend::{attend, tell_rest};
use super::client::Client;
use super::limits::Reached;
use super::park::manager_gone;
use super::watch::{Admission, AtEnd, Watch};
use crate::manager::ticket::{BuildLimits, Grant, SessionReport, SessionTicket};
use crate::nix::observe::Observer;

/// Bytes that are under way in one direction of one session.
const CHUNK: usize = 64 * 1024;

/// How long the manager may take to say why a VM's stream ended.
const VERDICT_DEADLINE: Duration = Duration::from_secs(1);

/// How long the last bytes of a dead VM may take to reach the client.
const DRAIN_DEADLINE: Duration = Duration::from_millis(500);

/// A session's place, and what is known of the session. However it ends, dropped halfway too, the place is given up with
/// word of whether outputs are still to be fetched, and with what the manager has room for of what was seen.
struct Seat {
    ticket: SessionTicket,
    watch: Watch,
    limits: BuildLimits,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.watch.send(&self.ticket.reports());
        self.ticket.set_unfetched(self.watch.outputs_remain());
        if !self.watch.is_understood() {
            // Without room the manager has so much to hear that it has heard of the builds.
            let _ = self.ticket.reports().send(SessionReport::NotUnderstood);
        }
    }
}

/// Why the passing of bytes ended.
pub(super) enum End {
    ClientLeft,
    GuestEnded,
    /// The text says why.
    VmGone(String),
    ManagerGone,
    /// The client wants what may not be done on this VM.
    Refused,
    /// The build has taken too long.
    Limit(Reached),
}

impl End {
    /// What becomes of a build that runs.
    fn result(&self) -> String {
        match self {
            Self::ClientLeft => "the client left".to_owned(),
            Self::GuestEnded => "the nix-daemon in the VM hung up".to_owned(),
            Self::VmGone(why) => why.clone(),
            Self::ManagerGone => "the manager has ended".to_owned(),
            Self::Refused => "the VM has had its build".to_owned(),
            Self::Limit(reached) => reached.result(),
        }
    }

    /// What the client is told of it; `during` says what was going on. `None` where nobody is left to be told.
    fn text(&self, vm: &str, during: &str) -> Option<String> {
        let text = match self {
            Self::ClientLeft => return None,
            Self::GuestEnded => format!(
                "xpool: the nix-daemon in {vm} hung up {during}; `xpool logs {vm}` shows the VM's console"
            ),
            Self::VmGone(why) => format!("xpool: {vm} ended {during}: {why}"),
            Self::ManagerGone => manager_gone(Some(vm)),
            Self::Refused => format!(
                "xpool: {vm} has had its build and is only kept until that is fetched; anything else needs a new connection"
            ),
            Self::Limit(reached) => reached.text(vm),
        };
        Some(text)
    }
}

/// Passes bytes between a client and a guest that have both shaken hands, and ends the session. `early` is what the guest
/// sent right after its handshake.
pub(super) async fn splice<R, W>(
    mut client: Client<R, W>,
    ticket: SessionTicket,
    Grant {
        vm,
        hop,
        fetch_only,
        inputs: _,
        limits,
    }: Grant,
    early: Vec<u8>,
) -> Outcome
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut stream = hop.stream;
    let mut seat = Seat {
        ticket,
        watch: Watch::new(Observer::new(client.version), fetch_only),
        limits,
    };
    let end = pass(&mut client, &mut seat, &mut stream, early).await;
    let AtEnd {
        during,
        to_hook,
        can_be_told,
    } = seat.watch.at_end();
    // The guest's side is closed in full and the place given up before the client hears why.
    drop(stream);
    seat.watch.end(&end.result());
    tell_rest(&seat.ticket, &seat.watch).await;
    drop(seat);
    let Some(text) = end.text(&vm, during) else {
        return Outcome::Served { vm };
    };
    if !can_be_told {
        return Outcome::Untold { text, to_hook };
    }
    client.fail(&text).await
}

/// Passes bytes until there is an end, and finds out why it came.
async fn pass<R, W>(
    client: &mut Client<R, W>,
    Seat {
        ticket,
        watch,
        limits,
    }: &mut Seat,
    stream: &mut UnixStream,
    early: Vec<u8>,
) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let held = client.take_held();
    // The operation's number is in it, so that there is nothing to wait for.
    if watch.admit(&held) != Admission::Pass {
        return End::Refused;
    }
    let (from_guest, to_guest) = stream.split();
    let mut up = pin!(pass_up(watch, held, &mut client.reader, to_guest));
    let mut down = pin!(pass_down(watch, early, from_guest, &mut client.writer));
    let end = tokio::select! {
        end = &mut up => end,
        end = &mut down => end,
        end = attend(ticket, watch, *limits) => end,
    };
    match end {
        End::ClientLeft => end,
        End::Refused => {
            // It has what it answers to, though we may not know that yet, and can then be told in the protocol.
            let caught_up = poll_fn(|context| {
                let is_over = watch.client_is_current() || down.as_mut().poll(context).is_ready();
                if is_over || watch.client_is_current() {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            });
            let _ = tokio::time::timeout(DRAIN_DEADLINE, caught_up).await;
            end
        }
        End::GuestEnded => tokio::select! {
            end = &mut up => end,
            end = verdict(ticket, watch) => end,
        },
        End::Limit(_) => {
            watch.stop();
            if watch.has_stopped() {
                return end;
            }
            tokio::select! {
                end = &mut up => end,
                _ = tokio::time::timeout(DRAIN_DEADLINE, &mut down) => end,
            }
        }
        End::VmGone(_) | End::ManagerGone => tokio::select! {
            end = &mut up => end,
            _ = tokio::time::timeout(DRAIN_DEADLINE, &mut down) => end,
        },
    }
}

/// Why a guest's stream ended, if the manager knows it soon enough.
async fn verdict(ticket: &mut SessionTicket, watch: &Watch) -> End {
    let attended = attend(ticket, watch, BuildLimits::default());
    tokio::time::timeout(VERDICT_DEADLINE, attended)
        .await
        .unwrap_or(End::GuestEnded)
}

/// Passes what the client sent before (`held`, which was admitted) and what it sends until it leaves or may not go on. When
/// the guest takes no more, the rest is thrown away: the reason comes from the other direction.
async fn pass_up<R, G>(watch: &Watch, held: Vec<u8>, reader: &mut R, mut guest: G) -> End
where
    R: AsyncRead + Unpin,
    G: AsyncWrite + Unpin,
{
    let mut guest_listens = guest.write_all(&held).await.is_ok();
    drop(held);
    let mut chunk = vec![0; CHUNK];
    // Bytes at the beginning of the chunk that are not decided upon: a part of a number, so that there is room after them.
    let mut n_waiting = 0;
    while let Ok(n @ 1..) = reader.read(&mut chunk[n_waiting..]).await {
        if !guest_listens {
            continue;
        }
        let end = n_waiting + n;
        match watch.admit(&chunk[n_waiting..end]) {
            Admission::Pass => {
                guest_listens = guest.write_all(&chunk[..end]).await.is_ok();
                n_waiting = 0;
            }
            Admission::Wait => n_waiting = end,
            Admission::Refuse => return End::Refused,
        }
    }
    End::ClientLeft
}

/// Passes what the guest sends until it ends, the client takes no more, or it is to stop and has come to a place for it.
async fn pass_down<G, W>(watch: &Watch, early: Vec<u8>, mut guest: G, writer: &mut W) -> End
where
    G: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut chunk = early;
    let mut n = chunk.len();
    chunk.resize(CHUNK.max(n), 0);
    loop {
        if give_client(watch, &chunk[..n], writer).await.is_err() {
            return End::ClientLeft;
        }
        if watch.has_stopped() {
            return End::GuestEnded;
        }
        n = tokio::select! {
            read = guest.read(&mut chunk) => match read {
                Ok(0) | Err(_) => return End::GuestEnded,
                Ok(n) => n,
            },
            () = watch.has_note() => 0,
        };
    }
}

/// Passes what the guest sent, with what the client is told where that can be put in; up to where the passing stops.
async fn give_client<W>(watch: &Watch, mut bytes: &[u8], writer: &mut W) -> std::io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    loop {
        writer.write_all(&watch.take_notes()).await?;
        if bytes.is_empty() || watch.stops_here() {
            break;
        }
        let n_passed = watch.see_guest(bytes);
        writer.write_all(&bytes[..n_passed]).await?;
        bytes = &bytes[n_passed..];
    }
    writer.flush().await?;
    watch.client_has_all();
    Ok(())
}
