//! The manager's end of the local transport: who may connect, and what a helper is given.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::hook::Hook;
use super::wire::{self, Reader, ToHelper, ToManager, Writer};
use crate::activation::Handover;
use crate::manager::ticket::{
    Grant, InputsOnTheirWay, SessionDesk, SessionReport, SessionRequest, SessionTicket,
    SessionUpdate, Share,
};
use crate::nix::System;
use crate::nix::slot::{Slot, SlotName};
use crate::vm::{DetachedPort, Hop};

/// Helpers at a time. Further ones wait in the listener's backlog.
const MOST_HELPERS: usize = 2048;

/// How long to wait after a failed accept: out of file descriptors is what fails, and only time helps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// Who may use the local transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// The user that the manager runs as. Root may as well.
    pub owner: u32,
    /// A group whose members may, where one is configured.
    pub group: Option<u32>,
}

impl Allowed {
    /// Whether this peer may. A group is looked for among all of a process's groups.
    pub(super) fn allows(self, user: u32, group: u32, process: Option<i32>) -> bool {
        let is_member =
            |wanted| group == wanted || process.is_some_and(|pid| groups_of(pid).contains(&wanted));
        user == 0 || user == self.owner || self.group.is_some_and(is_member)
    }
}

/// The further groups of a process, as far as they can be read.
fn groups_of(pid: i32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    let groups = groups.unwrap_or_default().split_whitespace();
    groups.filter_map(|group| group.parse().ok()).collect()
}

/// Told that no further session of a key will come by a seat.
pub type SeatGone = dyn Fn(System, String, String) + Send + Sync;

/// What all helpers share.
struct Shared {
    allowed: Allowed,
    slots: BTreeMap<String, System>,
    desk: SessionDesk,
    seat_gone: Arc<SeatGone>,
    handover: Handover,
}

impl Shared {
    /// What a slot is for: one of those that there are, or a VM of a system that has some.
    fn system(&self, slot: &str) -> Option<System> {
        match SlotName::parse(slot) {
            Some(SlotName {
                system,
                slot: Slot::Vm(_),
            }) => self.slots.values().copied().find(|known| *known == system),
            _ => self.slots.get(slot).copied(),
        }
    }
}

/// Serves helpers until `stop` is cancelled, or a handover has begun. Sessions that run then go on; their helpers have all that
/// they need.
pub async fn serve(
    listener: UnixListener,
    allowed: Allowed,
    slots: BTreeMap<String, System>,
    desk: SessionDesk,
    seat_gone: Arc<SeatGone>,
    handover: Handover,
    stop: CancellationToken,
) {
    let shared = Arc::new(Shared {
        allowed,
        slots,
        desk,
        seat_gone,
        handover,
    });
    let room = Arc::new(Semaphore::new(MOST_HELPERS));
    let helpers = TaskTracker::new();
    let accept = async {
        while let Ok(place) = room.clone().acquire_owned().await {
            let (stream, shared) = (accept(&listener).await, shared.clone());
            helpers.spawn(async move {
                if let Err(error) = serve_one(stream, &shared).await {
                    debug!(%error, "a helper's connection broke");
                }
                drop(place);
            });
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = shared.handover.begun() => {}
        () = accept => {}
    }
}

async fn accept(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                warn!(%error, "the local transport cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_one(stream: UnixStream, shared: &Shared) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let (mut reader, writer) = wire::split(stream);
    if !shared.allowed.allows(peer.uid(), peer.gid(), peer.pid()) {
        info!(
            uid = peer.uid(),
            "refused a user who may not use this manager"
        );
        let why = "this manager is for its owner, root, and the group in section `[local]` of its xpool.toml";
        return writer.send(&ToHelper::Rejected(why.to_owned())).await;
    }
    // A client may take its time before it asks for anything: Nix connects first and then waits for its locks.
    let Some(ToManager::Open { slot, first }) = reader.next().await? else {
        return Ok(());
    };
    let Some(system) = shared.system(&slot) else {
        let why = format!("this manager has no slot `{}`", slot.escape_debug());
        return writer.send(&ToHelper::Rejected(why)).await;
    };
    let unfetched = first.fetches();
    let hook = peer.pid().and_then(Hook::of);
    let request = SessionRequest {
        system,
        seat: hook.map_or_else(|| slot.clone(), |hook| hook.seat(&slot)),
        slot,
        client: format!("local, uid {}", peer.uid()),
        key: format!("uid {}", peer.uid()),
        share: Share::Host,
        first,
    };
    let (key, seat) = (request.key.clone(), request.seat.clone());
    let ticket = match shared.desk.open(request).await {
        Ok(ticket) => ticket,
        // It looks for the next manager.
        Err(_) if shared.handover.has_begun() => return Ok(()),
        Err(gone) => return writer.send(&ToHelper::Rejected(gone.to_string())).await,
    };
    ticket.set_unfetched(unfetched);
    let session = Session::new(ticket, writer, shared.handover.clone());
    let served = session.run(&mut reader).await;
    if let Some(hook) = hook {
        // What it left is kept until its lease ends, or nobody can come for it any more.
        let seat_gone = shared.seat_gone.clone();
        tokio::spawn(async move {
            hook.gone().await;
            seat_gone(system, key, seat);
        });
    }
    served
}

/// A helper's session, as the manager's end keeps it.
struct Session {
    ticket: SessionTicket,
    writer: Writer,
    /// Once it has a VM. Ends when the guest has closed the port.
    hop: Option<Hop>,
    /// What is on its way to the guest, until it is there.
    inputs: Option<InputsOnTheirWay>,
    handover: Handover,
}

impl Session {
    fn new(ticket: SessionTicket, writer: Writer, handover: Handover) -> Self {
        Self {
            ticket,
            writer,
            hop: None,
            inputs: None,
            handover,
        }
    }

    /// Passes on news both ways until the session is over. Dropping it then gives the VM back.
    async fn run(mut self, reader: &mut Reader) -> io::Result<()> {
        loop {
            tokio::select! {
                update = self.ticket.next() => match update {
                    // It is not to hear that this manager ends: its helper looks for the next one.
                    Some(SessionUpdate::Rejected(_)) if self.handover.has_begun() => return Ok(()),
                    Some(update) => self.update(update).await?,
                    // A helper that has a VM goes on without a manager; one that waits looks for another manager.
                    None => return Ok(()),
                },
                message = reader.next() => match message? {
                    Some(ToManager::Report(report)) => self.report(report).await,
                    Some(ToManager::Ended { unfetched }) => {
                        self.ticket.set_unfetched(unfetched);
                        return Ok(());
                    }
                    Some(ToManager::Open { .. }) => return Err(io::Error::other("a second session over one connection")),
                    None => return Ok(()),
                },
                () = closed(&mut self.hop) => {
                    // It has done its duty, and its end is told once.
                    self.hop = None;
                    self.writer.send(&ToHelper::GuestClosed).await?;
                }
                () = arrived(&mut self.inputs) => self.writer.send(&ToHelper::InputsArrived).await?,
            }
        }
    }

    /// Passes a report on. None is lost: the helper waits.
    async fn report(&self, report: SessionReport) {
        // A helper that is killed, as Nix does with what it started, says no more than this.
        let leaves_outputs = match &report {
            SessionReport::BuildEnded(ended) => ended.failure.is_none(),
            SessionReport::NotUnderstood => true,
            _ => false,
        };
        if leaves_outputs {
            self.ticket.set_unfetched(true);
        }
        let reports = self.ticket.reports();
        let mut waiting = Some(report);
        while let Some(Err(report)) = waiting.take().map(|report| reports.send(report)) {
            reports.room().await;
            waiting = Some(report);
        }
    }

    async fn update(&mut self, update: SessionUpdate) -> io::Result<()> {
        let message = match update {
            SessionUpdate::Granted(grant) => return self.granted(grant).await,
            SessionUpdate::Waiting(text) => ToHelper::Waiting(text),
            SessionUpdate::Rejected(text) => ToHelper::Rejected(text),
            SessionUpdate::VmGone { vm, cause, log } => ToHelper::VmGone { vm, cause, log },
        };
        self.writer.send(&message).await
    }

    async fn granted(&mut self, grant: Grant) -> io::Result<()> {
        let Grant {
            vm,
            mut hop,
            fetch_only,
            inputs,
            limits,
        } = grant;
        let detached = match hop.detach().await {
            Ok(detached) => detached,
            Err(error) => {
                let why = format!("cannot use {vm}: {error:#}");
                return self.writer.send(&ToHelper::Rejected(why)).await;
            }
        };
        let message = ToHelper::Granted {
            vm,
            greeted: std::mem::take(&mut hop.greeted),
            fetch_only,
            limits,
        };
        self.inputs = Some(inputs);
        let Some(DetachedPort { stream, hold }) = detached else {
            let descriptors = [hop.stream.as_fd()];
            return self.writer.send_with(&message, &descriptors).await;
        };
        self.hop = Some(hop);
        let descriptors = [stream.as_fd(), hold.as_fd()];
        self.writer.send_with(&message, &descriptors).await
    }
}

/// Resolves when a guest has closed its port. Cancel safe.
async fn closed(hop: &mut Option<Hop>) {
    match hop {
        // Nothing comes over the hop itself any more but its end.
        Some(hop) => drop(hop.stream.read(&mut [0]).await),
        None => std::future::pending().await,
    }
}

/// Resolves once when inputs have arrived. Cancel safe.
async fn arrived(inputs: &mut Option<InputsOnTheirWay>) {
    match inputs {
        Some(on_their_way) => on_their_way.arrived().await,
        None => std::future::pending().await,
    }
    *inputs = None;
}
