//! The manager's end of the local transport: who may connect, and what a helper is given.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use super::hook::{Hook, Watched};
use super::session::{Ended, Session};
use super::users::{Gate, Place};
use super::wire::{self, Reader, ToHelper, ToManager, Writer};
use crate::accept;
use crate::activation::Handover;
use crate::manager::ticket::{First, SessionDesk, SessionRequest, Share};
use crate::nix::System;
use crate::nix::slot::{Slot, SlotName};

/// Helpers at a time. Further ones wait in the listener's backlog.
const MOST_HELPERS: usize = 2048;

/// Helpers of the group's members at a time, so that root and the owner always find room. Further ones are told so.
const MOST_OF_MEMBERS: usize = MOST_HELPERS / 2;

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
    gate: Gate,
    slots: BTreeMap<String, System>,
    desk: SessionDesk,
    seat_gone: Arc<SeatGone>,
    /// Where outputs are kept: a system, a key, a seat.
    watched: Watched<(System, String, String)>,
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

impl Shared {
    /// The system of a slot that a helper of this version asks for; what it is told otherwise.
    fn system_for(&self, slot: &str, version: Option<u32>) -> Result<System, String> {
        if let Some(why) = other_version(version) {
            return Err(why);
        }
        let missing = || format!("this manager has no slot `{}`", slot.escape_debug());
        self.system(slot).ok_or_else(missing)
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
        gate: Gate::new(allowed, MOST_OF_MEMBERS),
        slots,
        desk,
        seat_gone,
        watched: Watched::new(),
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

/// Serves a helper: who it is, what it asks for, its session, and what that leaves.
async fn serve_one(
    stream: Arc<UnixStream>,
    shared: &Shared,
    place: &mut Option<Place>,
) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let admitted = shared.gate.admit(peer.uid(), peer.gid(), peer.pid());
    let refusal = match admitted {
        Ok(given) => {
            *place = given;
            None
        }
        Err(refused) => Some(refused.to_string()),
    };
    let charge = place.as_ref().map(|place| place.account.charge());
    let (mut reader, writer) = wire::split_without_descriptors(stream, charge);
    if let Some(why) = refusal {
        info!(uid = peer.uid(), why, "refused a user");
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
    // All that it says from now on is short.
    reader.shorten(wire::LONGEST_REPORT);
    // Outputs are in this manager's VMs, and so is what was named.
    let is_anybodys = !first.fetches() && !is_named(&slot);
    if is_anybodys && shared.handover.has_begun() {
        return shared.leave(&mut reader, &writer).await;
    }
    let system = match shared.system_for(&slot, version) {
        Ok(system) => system,
        Err(why) => return writer.send(&ToHelper::Rejected(why)).await,
    };
    let unfetched = first.fetches();
    let hook = peer.pid().and_then(Hook::of);
    let request = request(system, slot, first, peer.uid(), hook);
    let left = (system, request.key.clone(), request.seat.clone());
    let ticket = match shared.desk.open(request).await {
        Ok(ticket) => ticket,
        Err(_) if is_anybodys && shared.handover.has_begun() => {
            return shared.leave(&mut reader, &writer).await;
        }
        Err(gone) => return writer.send(&ToHelper::Rejected(gone.to_string())).await,
    };
    ticket.set_unfetched(unfetched);
    let unfetched = ticket.unfetched();
    let handover = is_anybodys.then(|| shared.handover.clone());
    let ended = Session::new(ticket, writer)
        .run(&mut reader, handover)
        .await;
    // A session without a VM leaves nothing, and one whose connection broke may.
    let may_leave = !matches!(ended, Ok(Ended::Over { had_vm: false } | Ended::Left(_)));
    if let Some(hook) = hook.filter(|_| may_leave && unfetched.load(Ordering::Acquire)) {
        // What it left is kept until its lease ends, or nobody can come for it any more.
        let seat_gone = shared.seat_gone.clone();
        let gone = move |(system, key, seat)| seat_gone(system, key, seat);
        shared.watched.keep(hook, left, gone);
    }
    match ended? {
        Ended::Over { .. } => Ok(()),
        Ended::Left(writer) => shared.leave(&mut reader, &writer).await,
    }
}

fn request(
    system: System,
    slot: String,
    first: First,
    user: u32,
    hook: Option<Hook>,
) -> SessionRequest {
    SessionRequest {
        system,
        seat: hook.map_or_else(|| slot.clone(), |hook| hook.seat(&slot)),
        slot,
        client: format!("local, uid {user}"),
        key: format!("uid {user}"),
        share: Share::Host,
        // They would be fetched by the same names on this machine.
        secrets: true,
        first,
    }
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
