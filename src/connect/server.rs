//! The manager's end of the local transport: who may connect, and what a helper is given.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use super::hook::{Hook, Watched};
use super::users::{Place, Users};
use super::wire::{self, Reader, ToHelper, ToManager, Writer};
use crate::accept;
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

/// Helpers of the group's members at a time, so that root and the owner always find room. Further ones are told so.
const MOST_OF_MEMBERS: usize = MOST_HELPERS / 2;

/// Helpers of one member.
const MOST_PER_MEMBER: usize = MOST_OF_MEMBERS / 2;

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
    /// Where outputs are kept: a system, a key, a seat.
    watched: Watched<(System, String, String)>,
    users: Users,
    handover: Handover,
    stop: CancellationToken,
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

/// What a helper is told that is left to the next manager.
const LEFT: &str = "the manager is being started anew, after the builds that run";

impl Shared {
    /// Keeps a helper until this manager has ended, when it looks for the next one. Before that it would find this one.
    async fn leave(&self, reader: &mut Reader, writer: &Writer) -> io::Result<()> {
        writer.send(&ToHelper::Waiting(LEFT.to_owned())).await?;
        tokio::select! {
            () = self.stop.cancelled() => Ok(()),
            // Its client has gone, or it breaks the rules.
            message = reader.next::<ToManager>() => message.map(drop),
        }
    }
}

/// Serves helpers until `stop` is cancelled. Sessions that run then go on; their helpers have all that they need. Those that any
/// manager can serve are the next one's from the handover on.
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
        watched: Watched::new(),
        users: Users::new(MOST_PER_MEMBER, MOST_OF_MEMBERS),
        handover,
        stop: stop.clone(),
    });
    let room = Arc::new(Semaphore::new(MOST_HELPERS));
    let helpers = TaskTracker::new();
    let accept = async {
        while let Ok(place) = room.clone().acquire_owned().await {
            let (stream, _) =
                accept::next("the local transport", |cx| listener.poll_accept(cx)).await;
            let (stream, shared) = (Arc::new(stream), shared.clone());
            helpers.spawn(async move {
                let mut users_place = None;
                if let Err(error) = serve_one(stream.clone(), &shared, &mut users_place).await {
                    debug!(%error, "a helper's connection broke");
                }
                close((stream, place, users_place));
            });
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = accept => {}
    }
}

/// Closes a connection, with all that was sent and not read: the closing of descriptors among that may take as long as who sent them
/// likes. So it is done by a thread of its own, and the places are taken until then.
fn close(connection: impl Send + 'static) {
    let closing = std::thread::Builder::new().name("closing".to_owned());
    // Without a thread it is closed here.
    let _ = closing.spawn(move || drop(connection));
}

async fn serve_one(
    stream: Arc<UnixStream>,
    shared: &Shared,
    place: &mut Option<Place>,
) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let is_member = ![0, shared.allowed.owner].contains(&peer.uid());
    let has_room = !is_member || {
        *place = shared.users.take(peer.uid());
        place.is_some()
    };
    let charge = place.as_ref().map(|place| place.account.charge());
    let (mut reader, writer) = wire::split_without_descriptors(stream, charge);
    if !shared.allowed.allows(peer.uid(), peer.gid(), peer.pid()) {
        info!(
            uid = peer.uid(),
            "refused a user who may not use this manager"
        );
        let why = "this manager is for its owner, root, and the group in section `[local]` of its xpool.toml";
        return writer.send(&ToHelper::Rejected(why.to_owned())).await;
    }
    if !has_room {
        let why = "there are as many sessions of members of this group as there may be".to_owned();
        return writer.send(&ToHelper::Rejected(why)).await;
    }
    // A client may take its time before it asks for anything: Nix connects first and then waits for its locks.
    let Some(ToManager::Open {
        slot,
        first,
        version,
    }) = reader.next().await?
    else {
        return Ok(());
    };
    // Outputs are in this manager's VMs, and so is what was named.
    let is_anybodys = !first.fetches() && !is_named(&slot);
    if is_anybodys && shared.handover.has_begun() {
        return shared.leave(&mut reader, &writer).await;
    }
    if let Some(why) = other_version(version) {
        return writer.send(&ToHelper::Rejected(why)).await;
    }
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
    // All that it says from now on is short.
    reader.shorten(wire::LONGEST_REPORT);
    let (key, seat) = (request.key.clone(), request.seat.clone());
    let ticket = match shared.desk.open(request).await {
        Ok(ticket) => ticket,
        Err(_) if is_anybodys && shared.handover.has_begun() => {
            return shared.leave(&mut reader, &writer).await;
        }
        Err(gone) => return writer.send(&ToHelper::Rejected(gone.to_string())).await,
    };
    ticket.set_unfetched(unfetched);
    let unfetched = ticket.unfetched();
    // A session without a VM leaves nothing, and what breaks may.
    let mut keeps = true;
    let (session, left) = (Session::new(ticket, writer), shared.handover.clone());
    let served = match session.run(&mut reader, is_anybodys.then_some(left)).await {
        Ok(Served::Over { had_vm }) => {
            keeps = had_vm;
            Ok(())
        }
        Ok(Served::Left(writer)) => shared.leave(&mut reader, &writer).await,
        Err(error) => Err(error),
    };
    if let Some(hook) = hook.filter(|_| keeps && unfetched.load(Ordering::Acquire)) {
        // What it left is kept until its lease ends, or nobody can come for it any more.
        let seat_gone = shared.seat_gone.clone();
        let gone = move |(system, key, seat)| seat_gone(system, key, seat);
        shared.watched.keep(hook, (system, key, seat), gone);
    }
    served
}

/// Why a helper cannot be served, if it speaks another version.
fn other_version(helper: Option<u32>) -> Option<String> {
    let helper = helper.filter(|version| *version != wire::VERSION)?;
    let what = if helper < wire::VERSION {
        "is older than its manager: `xpool machines --install` has Nix run the new one, as root where root did it before"
    } else {
        "is newer than its manager: have the manager started anew, with `xpool down` and `xpool up` or by `systemctl restart xpool`"
    };
    Some(format!(
        "the xpool that Nix runs {what} (they speak versions {helper} and {} of the local transport)",
        wire::VERSION
    ))
}

/// Whether a slot is that of one certain VM.
fn is_named(slot: &str) -> bool {
    SlotName::parse(slot).is_some_and(|name| matches!(name.slot, Slot::Vm(_)))
}

/// How a session ended.
enum Served {
    /// It has, with a VM or before it had one.
    Over { had_vm: bool },
    /// This manager has no VM for it any more, and the next one will.
    Left(Writer),
}

/// A helper's session, as the manager's end keeps it.
struct Session {
    ticket: SessionTicket,
    writer: Writer,
    /// Once it has a VM. Ends when the guest has closed the port.
    hop: Option<Hop>,
    /// What is on its way to the guest, until it is there.
    inputs: Option<InputsOnTheirWay>,
    /// Whether it was given a VM.
    had_vm: bool,
}

impl Session {
    fn new(ticket: SessionTicket, writer: Writer) -> Self {
        Self {
            ticket,
            writer,
            hop: None,
            inputs: None,
            had_vm: false,
        }
    }

    /// Passes on news both ways until the session is over. Dropping it then gives the VM back. With a handover, it is left to the
    /// next manager if this one has no VM for it any more.
    async fn run(mut self, reader: &mut Reader, left: Option<Handover>) -> io::Result<Served> {
        let is_left = || left.as_ref().is_some_and(Handover::has_begun);
        loop {
            tokio::select! {
                update = self.ticket.next() => match update {
                    Some(SessionUpdate::Rejected(_)) if is_left() => return Ok(Served::Left(self.writer)),
                    Some(update) => self.update(update).await?,
                    // A helper that has a VM goes on without a manager; one that waits looks for another manager.
                    None => return Ok(self.over()),
                },
                message = reader.next() => match message? {
                    Some(ToManager::Report(report)) => self.report(report).await,
                    Some(ToManager::Ended { unfetched }) => {
                        self.ticket.set_unfetched(unfetched);
                        return Ok(self.over());
                    }
                    Some(ToManager::Open { .. }) => return Err(io::Error::other("a second session over one connection")),
                    None => return Ok(self.over()),
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

    fn over(&self) -> Served {
        let had_vm = self.had_vm;
        Served::Over { had_vm }
    }

    /// Passes a report on, as much of it as is kept. None is lost: the helper waits.
    async fn report(&self, report: SessionReport) {
        let report = report.cut();
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
        self.had_vm = true;
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
