//! What a pool is told, and what it says to do.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::VmId;
use super::claim::{Claim, Outputs, Seat};
use super::shape::Shape;
use crate::nix::store_path::StorePath;

/// One session of one pool, numbered in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was told to.
    Stopped,
    /// It did not start, or ended by itself.
    Failed {
        /// Why, for people.
        reason: String,
        /// Whether another try may help.
        retry: Retry,
    },
}

/// Whether another try may help after a failed start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It may: the machine was short of something for a moment.
    Later,
    /// It will not before somebody has changed something: there is no image, no QEMU.
    Pointless,
}

/// How fast a pool is taken down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Down {
    /// Sessions that have a VM end first.
    Drain,
    /// Now: what runs is lost.
    Now,
}

/// What happens to a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session wants a VM.
    SessionOpened(SessionId, Claim),
    /// A session's client has gone, and its slot is not free yet. Said before [`Event::SessionClosed`], where there is time
    /// between the two.
    SessionLeft(SessionId, Outputs),
    /// A session ended and its slot is free, or it went while it was waiting.
    SessionClosed(SessionId, Outputs),
    /// A session lost its VM, which is gone, before it had used it: it waits again, in its old place.
    SessionReturned(SessionId, Claim),
    /// A build of a session has worked, with these outputs, which are only in its VM yet. None: they are not known.
    Built(SessionId, Vec<StorePath>),
    /// A build of a session has failed.
    Failed(SessionId),
    /// A session's client has received this output in full.
    Fetched(SessionId, StorePath),
    /// Nobody will come by this seat any more: the process that had something built has ended.
    SeatGone(Seat),
    /// A VM can serve.
    VmReady(VmId),
    /// A VM is gone.
    VmExited(VmId, Exit),
    /// Somebody wants this many VMs to be there until the pool is taken down.
    Up(u32),
    /// Somebody wants the pool to end.
    Down(Down),
    /// Somebody wants this VM to take no further sessions, and to end with those that it has.
    DrainVm(VmId),
    /// Another build may not find enough room on this VM's disk: it takes no further sessions.
    Worn(VmId),
    /// Sessions of another system wait for room on this machine: an idle VM, if there is one, is of less use.
    MakeRoom,
    /// The host runs out of memory: this VM, the first of [`super::Pool::first_for_memory`], ends at once.
    MemoryIsOut(VmId),
    /// [`Pool::deadline`] has come.
    DeadlineReached,
}

/// What the manager is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a VM like this.
    Boot(VmId, Shape),
    /// Give a session a slot of a VM.
    Assign {
        /// Who gets it.
        session: SessionId,
        /// Where.
        vm: VmId,
        /// Whether it may only fetch what was built there: the VM has had its one build.
        fetch_only: bool,
    },
    /// Tell a session that it gets no VM.
    Reject {
        /// Whom to tell.
        session: SessionId,
        /// Why.
        reason: Rejection,
    },
    /// Shut a VM down.
    PowerDown(VmId),
    /// End a VM at once: it is a copy that is thrown away, or somebody does not want to wait.
    Kill(VmId),
}

/// Why a session gets no VM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The pool was taken down.
    #[error("the pool is down")]
    Down,
    /// Too many wait already.
    #[error("{waiting} sessions wait already, which is as many as may")]
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
    /// It has named a VM that is not there.
    #[error("there is no VM {}", vm.0)]
    NoSuchVm {
        /// The one that it has named.
        vm: VmId,
        /// Those that it may name.
        there: Vec<VmId>,
    },
    /// It has named a VM that sees more or less of the machine's store than its sessions do.
    #[error("VM {} is of the other kind", vm.0)]
    OtherKind {
        /// Which one.
        vm: VmId,
    },
    /// It has named a VM that serves or has served another client.
    #[error("VM {} is another client's", vm.0)]
    OtherClients {
        /// Which one.
        vm: VmId,
    },
    /// It has waited as long as anybody may.
    #[error("no VM was free for {}, which is as long as `wait-timeout` allows", humantime::format_duration(*after))]
    WaitTimeout {
        /// How long.
        after: Duration,
    },
    /// VMs cannot be started, and it is not time for the next try.
    #[error(
        "the last {failures} starts failed, and the next one is tried in {retry_in_s} s: {reason}"
    )]
    Degraded {
        /// How many in a row.
        failures: u32,
        /// In how many seconds, at the earliest.
        retry_in_s: u64,
        /// Why the last one failed.
        reason: String,
    },
    /// VMs cannot be started.
    #[error("no VM could be started: {reason}")]
    StartFailed {
        /// Why the last start failed.
        reason: String,
    },
}
