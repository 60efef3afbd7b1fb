//! A session that has its VM: bytes pass both ways until either side ends, then both are closed in full.
//!
//! Never half a close: the guest's daemon only notices a full one, and would go on building for nobody.

use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::Outcome;
use super::client::Client;
use super::park::MANAGER_GONE;
use crate::manager::ticket::{SessionTicket, SessionUpdate};
use crate::nix::observe::{Event, Observer, Operation};

/// Bytes that are under way in one direction of one session.
const CHUNK: usize = 64 * 1024;

/// How long the manager may take to say why a VM's stream ended.
const VERDICT_DEADLINE: Duration = Duration::from_secs(1);

/// How long the last bytes of a dead VM may take to reach the client.
const DRAIN_DEADLINE: Duration = Duration::from_millis(500);

/// What both directions know of the session. A lock rather than messages: both look at every chunk, on one task, so it
/// is never contended, and it is never held across an await.
struct Watch {
    observed: Mutex<Observed>,
    /// For `xpool status`. An event that finds it full is lost; its successor says more.
    events: mpsc::Sender<Event>,
}

struct Observed {
    observer: Observer,
    /// Whether the client has received all that the observer has seen from the guest.
    client_is_current: bool,
    was_building: bool,
}

/// A session's place, and what is known of the session. However it ends, dropped halfway too, the place is given up with
/// word of whether outputs are still to be fetched.
struct Seat {
    ticket: SessionTicket,
    watch: Watch,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let remain = self.watch.lock().observer.outputs_remain();
        self.ticket.set_unfetched(remain);
    }
}

/// Why the passing of bytes ended.
enum End {
    ClientLeft,
    GuestEnded,
    /// The text says why.
    VmGone(String),
    ManagerGone,
}

/// What the end of a session came upon.
struct AtEnd {
    /// What was going on.
    during: &'static str,
    /// Whether a build hook listens.
    to_hook: bool,
    /// Whether the client would understand an error in the protocol.
    can_be_told: bool,
}

/// Passes bytes between a client and a guest that have both shaken hands, and ends the session. `early` is what the guest
/// sent right after its handshake.
pub(super) async fn splice<R, W>(
    mut client: Client<R, W>,
    ticket: SessionTicket,
    vm: String,
    mut stream: UnixStream,
    early: Vec<u8>,
) -> Outcome
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (events, noticed) = mpsc::channel(8);
    let watch = Watch::new(Observer::new(client.version), events);
    let mut seat = Seat { ticket, watch };
    let end = pass(&mut client, &mut seat, &mut stream, early, noticed).await;
    let AtEnd {
        during,
        to_hook,
        can_be_told,
    } = seat.watch.at_end();
    // The guest's side is closed in full and the place given up before the client hears why.
    drop((stream, seat));
    let text = match end {
        End::ClientLeft => return Outcome::Served { vm },
        End::GuestEnded => format!("xpool: the nix-daemon in {vm} hung up {during}"),
        End::VmGone(why) => format!("xpool: {vm} ended {during}: {why}"),
        End::ManagerGone => MANAGER_GONE.to_owned(),
    };
    if !can_be_told {
        return Outcome::Untold { text, to_hook };
    }
    client.fail(&text).await
}

/// Passes bytes until there is an end, and finds out why it came.
async fn pass<R, W>(
    client: &mut Client<R, W>,
    Seat { ticket, watch }: &mut Seat,
    stream: &mut UnixStream,
    early: Vec<u8>,
    mut noticed: mpsc::Receiver<Event>,
) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let held = std::mem::take(&mut client.held);
    watch.see_client(&held);
    let (from_guest, to_guest) = stream.split();
    let mut up = pin!(watch.pass_up(held, &mut client.reader, to_guest));
    let mut down = pin!(watch.pass_down(early, from_guest, &mut client.writer));
    let end = tokio::select! {
        () = &mut up => End::ClientLeft,
        end = &mut down => end,
        end = bad_news(ticket, &mut noticed) => end,
    };
    match end {
        End::ClientLeft => end,
        End::GuestEnded => tokio::select! {
            () = &mut up => End::ClientLeft,
            end = verdict(ticket, &mut noticed) => end,
        },
        End::VmGone(_) | End::ManagerGone => tokio::select! {
            () = &mut up => End::ClientLeft,
            _ = tokio::time::timeout(DRAIN_DEADLINE, &mut down) => end,
        },
    }
}

/// Passes on to the manager what the session does, until the manager says that the VM cannot be used any more.
async fn bad_news(ticket: &mut SessionTicket, noticed: &mut mpsc::Receiver<Event>) -> End {
    loop {
        tokio::select! {
            update = ticket.next() => match update {
                Some(SessionUpdate::VmGone { cause, log, .. }) => {
                    return End::VmGone(format!("{cause}; its console is in {}", log.display()));
                }
                Some(SessionUpdate::Rejected(text)) => return End::VmGone(text),
                Some(SessionUpdate::Waiting(_) | SessionUpdate::Granted { .. }) => {}
                None => return End::ManagerGone,
            },
            Some(event) = noticed.recv() => if let Some(activity) = activity(&event) {
                ticket.describe(&activity);
            },
        }
    }
}

/// Why a guest's stream ended, if the manager knows it soon enough.
async fn verdict(ticket: &mut SessionTicket, noticed: &mut mpsc::Receiver<Event>) -> End {
    tokio::time::timeout(VERDICT_DEADLINE, bad_news(ticket, noticed))
        .await
        .unwrap_or(End::GuestEnded)
}

/// What a person would call it.
fn activity(event: &Event) -> Option<String> {
    match event {
        Event::Building(path) => Some(format!("building {}", drv_name(path).escape_debug())),
        Event::Started(Operation::QueryValidPaths) => Some("looking for inputs".to_owned()),
        Event::Started(Operation::AddMultipleToStore) => Some("copying inputs".to_owned()),
        Event::Started(Operation::NarFromPath) | Event::Ended(Operation::BuildDerivation) => {
            Some("copying outputs".to_owned())
        }
        Event::Started(_) | Event::Ended(_) => None,
    }
}

/// `hello-2.12.drv` of `/nix/store/8bz3i8cqlvgmgsv2njsm40kwqjb3f8ys-hello-2.12.drv`.
fn drv_name(path: &str) -> &str {
    let base = path.rsplit('/').next().unwrap_or(path);
    base.split_once('-').map_or(base, |(_, name)| name)
}

fn during(operation: Option<Operation>) -> &'static str {
    match operation {
        Some(Operation::BuildDerivation) => "in the middle of the build",
        Some(Operation::AddMultipleToStore) => "while inputs were copied to it",
        Some(Operation::NarFromPath) => "while outputs were copied from it",
        Some(_) | None => "in the middle of the session",
    }
}

impl Watch {
    fn new(observer: Observer, events: mpsc::Sender<Event>) -> Self {
        let seen = Observed {
            observer,
            client_is_current: true,
            was_building: false,
        };
        Self {
            observed: Mutex::new(seen),
            events,
        }
    }

    /// Passes what the client sent before (`held`, which was seen) and what it sends until it leaves. When the guest takes
    /// no more, the rest is thrown away: the reason comes from the other direction.
    async fn pass_up<R, G>(&self, held: Vec<u8>, reader: &mut R, mut guest: G)
    where
        R: AsyncRead + Unpin,
        G: AsyncWrite + Unpin,
    {
        let mut guest_listens = guest.write_all(&held).await.is_ok();
        drop(held);
        let mut chunk = vec![0; CHUNK];
        while let Ok(n @ 1..) = reader.read(&mut chunk).await {
            if guest_listens {
                self.see_client(&chunk[..n]);
                guest_listens = guest.write_all(&chunk[..n]).await.is_ok();
            }
        }
    }

    /// Passes what the guest sends until it ends or the client takes no more.
    async fn pass_down<G, W>(&self, early: Vec<u8>, mut guest: G, writer: &mut W) -> End
    where
        G: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut chunk = early;
        let mut n = chunk.len();
        chunk.resize(CHUNK.max(n), 0);
        loop {
            if n > 0 && self.give_client(&chunk[..n], writer).await.is_err() {
                return End::ClientLeft;
            }
            n = match guest.read(&mut chunk).await {
                Ok(0) | Err(_) => return End::GuestEnded,
                Ok(n) => n,
            };
        }
    }

    async fn give_client<W>(&self, bytes: &[u8], writer: &mut W) -> std::io::Result<()>
    where
        W: AsyncWrite + Unpin,
    {
        let events = {
            let mut observed = self.lock();
            observed.client_is_current = false;
            observed.observer.from_server(bytes)
        };
        self.tell(events);
        writer.write_all(bytes).await?;
        writer.flush().await?;
        self.lock().client_is_current = true;
        Ok(())
    }

    fn see_client(&self, bytes: &[u8]) {
        let events = self.lock().observer.from_client(bytes);
        self.tell(events);
    }

    fn tell(&self, events: Vec<Event>) {
        for event in events {
            if matches!(event, Event::Building(_)) {
                self.lock().was_building = true;
            }
            let _ = self.events.try_send(event);
        }
    }

    fn at_end(&self) -> AtEnd {
        let seen = self.lock();
        AtEnd {
            during: during(seen.observer.operation()),
            to_hook: seen.was_building,
            can_be_told: seen.client_is_current && seen.observer.error_can_be_sent(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
