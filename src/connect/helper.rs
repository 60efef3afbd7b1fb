//! The helper's end of the local transport: a desk whose manager is another process.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{Shutdown, shutdown};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::wire::{self, Reader, ToHelper, ToManager, Writer};
use crate::manager::ticket::{Grant, InputsOnTheirWay, NewSession, SessionDesk, SessionUpdate};
use crate::vm::Hop;

/// How long a session that waits for a VM waits for a manager to come back: one that is started anew takes a second.
const MANAGER_DEADLINE: Duration = Duration::from_secs(60);

/// How long a manager may be silent before who waits is told so: one that runs answers in milliseconds. Where a service manager
/// listens in its place, a connection says nothing of whether there is one.
const SILENCE: Duration = Duration::from_secs(5);

/// How long until it is given up: longer than one that is started anew may take to let builds end.
const ANSWER_DEADLINE: Duration = Duration::from_secs(300);

/// How often a manager that has gone is looked for. Nobody tells when it is back.
const LOOK: Duration = Duration::from_millis(200);

/// A manager that takes sessions.
#[derive(Debug)]
pub struct Connection {
    socket: PathBuf,
    stream: UnixStream,
}

impl Connection {
    /// Connects to the manager that listens here.
    pub async fn open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let socket = socket.to_owned();
        Ok(Self { socket, stream })
    }

    /// A desk for one session, whose tickets come from this manager.
    pub fn desk(self) -> SessionDesk {
        let (desk, mut sessions) = SessionDesk::channel();
        tokio::spawn(async move {
            if let Some(session) = sessions.recv().await {
                relay(session, self).await;
            }
        });
        desk
    }
}

/// How passing on news to and from a manager ended.
enum Relayed {
    /// The session is over.
    Over,
    /// The manager has gone.
    ManagerGone,
}

/// Passes on what a session and its manager have to say to each other, until the session is over.
async fn relay(mut session: NewSession, manager: Connection) {
    let Connection { socket, stream } = manager;
    let mut vm = None;
    let mut stream = Some(stream);
    while let Some(manager) = stream.take() {
        let relayed = relay_to(&mut session, manager, &mut vm).await;
        match relayed {
            Relayed::Over => break,
            // It has all that it needs: only the hold on its VM is kept for it.
            Relayed::ManagerGone if vm.is_some() => session.updates.closed().await,
            Relayed::ManagerGone => stream = manager_again(&session, &socket).await,
        }
    }
    // Without an answer the ticket hears that there is no manager.
    drop(vm);
}

/// Another connection to a manager, for a session that waits. `None` when none comes, or the session has gone.
async fn manager_again(session: &NewSession, socket: &Path) -> Option<UnixStream> {
    let text = "the manager has gone; waiting for it to come back".to_owned();
    // A session that has much news to read has no need of this.
    let _ = session.updates.try_send(SessionUpdate::Waiting(text));
    let deadline = Instant::now() + MANAGER_DEADLINE;
    let looking = async {
        loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => return stream,
                Err(error) => debug!(%error, "no manager yet"),
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        found = timeout_at(deadline, looking) => found.ok(),
        () = session.updates.closed() => None,
    }
}

/// What a session has of its VM beside the way into it.
struct Held {
    /// The guest's port, to end its reads by.
    port: OwnedFd,
    /// As long as this is open, no manager ends the VM.
    _hold: Option<OwnedFd>,
}

async fn relay_to(session: &mut NewSession, manager: UnixStream, vm: &mut Option<Held>) -> Relayed {
    let (mut reader, writer) = wire::split(manager);
    let open = ToManager::Open {
        slot: session.request.slot.clone(),
        // Kept, as it may be told to another manager.
        first: session.request.first.clone(),
        version: Some(wire::VERSION),
    };
    if writer.send(&open).await.is_err() {
        return Relayed::ManagerGone;
    }
    let mut inputs = None;
    let mut answer = Answer::awaited();
    loop {
        tokio::select! {
            () = session.updates.closed() => {
                // QEMU sees the port close when nobody has it open any more, before the manager hears of it.
                *vm = None;
                return ended(session, &writer).await;
            }
            Some(report) = session.reports.recv() => {
                if writer.send(&ToManager::Report(report)).await.is_err() {
                    return Relayed::ManagerGone;
                }
            }
            silent = answer.missing() => {
                let is_over = matches!(silent, SessionUpdate::Rejected(_));
                send(&session.updates, silent).await;
                if is_over {
                    return Relayed::Over;
                }
            }
            message = reader.next() => match message {
                Ok(Some(message)) => {
                    answer.has_come();
                    take(message, session, &mut reader, vm, &mut inputs).await;
                }
                Ok(None) => return Relayed::ManagerGone,
                Err(error) => {
                    debug!(%error, "the connection to the manager broke");
                    return Relayed::ManagerGone;
                }
            },
        }
    }
}

/// The first answer of a manager, for as long as it is awaited.
struct Answer {
    /// When to say that it is missing.
    note_at: Option<Instant>,
    /// When to give up.
    end_at: Option<Instant>,
}

impl Answer {
    fn awaited() -> Self {
        let now = Instant::now();
        Self {
            note_at: Some(now + SILENCE),
            end_at: Some(now + ANSWER_DEADLINE),
        }
    }

    fn has_come(&mut self) {
        (self.note_at, self.end_at) = (None, None);
    }

    /// What a session is told of its absence, when it is time. Cancel safe.
    async fn missing(&mut self) -> SessionUpdate {
        let what = "no manager answers: it is being started anew, hangs, or cannot start (`systemctl status xpool`)";
        tokio::select! {
            () = until(self.note_at) => {
                self.note_at = None;
                SessionUpdate::Waiting(what.to_owned())
            }
            () = until(self.end_at) => SessionUpdate::Rejected(format!(
                "{what}; given up after {} minutes",
                ANSWER_DEADLINE.as_secs() / 60
            )),
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Tells the manager that the session is over.
async fn ended(session: &mut NewSession, writer: &Writer) -> Relayed {
    while let Ok(report) = session.reports.try_recv() {
        if writer.send(&ToManager::Report(report)).await.is_err() {
            break;
        }
    }
    let unfetched = session.is_unfetched();
    // Its end is told by that of the connection as well.
    let _ = writer.send(&ToManager::Ended { unfetched }).await;
    Relayed::Over
}

async fn take(
    message: ToHelper,
    session: &NewSession,
    reader: &mut Reader,
    vm: &mut Option<Held>,
    inputs: &mut Option<oneshot::Sender<()>>,
) {
    let update = match message {
        ToHelper::Waiting(text) if vm.is_some() => SessionUpdate::Note(text),
        ToHelper::Waiting(text) => SessionUpdate::Waiting(text),
        ToHelper::Rejected(text) => SessionUpdate::Rejected(text),
        ToHelper::VmGone { vm, cause, log } => SessionUpdate::VmGone { vm, cause, log },
        ToHelper::InputsArrived => {
            if let Some(arrived) = inputs.take() {
                // A session that has gone waits for nothing.
                let _ = arrived.send(());
            }
            return;
        }
        ToHelper::GuestClosed => {
            if let Some(vm) = vm {
                // What is in the socket can still be read, and then it ends. Fails when QEMU has ended it already.
                let _ = shutdown(&vm.port, Shutdown::Read);
            }
            return;
        }
        ToHelper::Granted {
            vm: name,
            greeted,
            fetch_only,
            limits,
        } => {
            let (arrived, on_their_way) = InputsOnTheirWay::channel();
            *inputs = Some(arrived);
            match hop(reader, greeted) {
                Ok((hop, held)) => {
                    *vm = Some(held);
                    SessionUpdate::Granted(Grant {
                        vm: name,
                        hop,
                        fetch_only,
                        inputs: on_their_way,
                        limits,
                    })
                }
                Err(error) => SessionUpdate::Rejected(format!("{name} cannot be reached: {error}")),
            }
        }
    };
    send(&session.updates, update).await;
}

/// The way into a guest, from the descriptors that came with it.
fn hop(reader: &mut Reader, greeted: Vec<u8>) -> io::Result<(Hop, Held)> {
    let missing = || io::Error::other("the manager has sent no way into it");
    let port = reader.descriptor().ok_or_else(missing)?;
    let held = Held {
        port: port.try_clone()?,
        _hold: reader.descriptor(),
    };
    let stream = std::os::unix::net::UnixStream::from(port);
    stream.set_nonblocking(true)?;
    let mut hop = Hop::new(UnixStream::from_std(stream)?);
    hop.greeted = greeted;
    Ok((hop, held))
}

/// Sends an update to a session that reads its news at once, or has gone.
async fn send(updates: &mpsc::Sender<SessionUpdate>, update: SessionUpdate) {
    let _ = updates.send(update).await;
}
