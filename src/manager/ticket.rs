//! What a front end holds while a session waits for a VM and uses it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

pub use super::look_up::LookUp;
pub use super::report::{BuildBegan, BuildEnded, BuildProgress, SessionReport};
use crate::nix::System;
use crate::nix::store_path::StorePath;
// Part of what a front end says, which knows the desk and nothing behind it.
pub use crate::pool::policy::{BuildLimits, Share};
use crate::store::{HostStore, Inputs};
use crate::vm::Hop;

/// What a front end says about a session that wants a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRequest {
    /// The platform it builds for.
    pub system: System,
    /// The slot it came in by, which over ssh is its user name: `riscv64-03`. That of a VM, `vm-riscv64-1`, is for that VM
    /// and no other.
    pub slot: String,
    /// What the sessions of one build have in common, as far as the front end can tell. Over ssh the slot, and where the
    /// process is known that has the build done, that process.
    pub seat: String,
    /// Who it is, for people: a key's name, an address, and the key's fingerprint.
    pub client: String,
    /// What tells one client from another: its key's fingerprint.
    pub key: String,
    /// What its key may see of this machine's store.
    pub share: Share,
    /// Whether its builds may know private names of this machine's network, and passwords.
    pub secrets: bool,
    /// What it asks for first.
    pub first: First,
}

/// What a session's first operation asks for, as far as it matters for what the session is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum First {
    /// Nothing of interest, or nothing yet.
    #[default]
    Other,
    /// Which of these paths are there? They are inputs of a build.
    Inputs(Vec<StorePath>),
    /// What an earlier session has built; this path, where it names one. Some clients connect anew for each output (2.26 is
    /// one, `RemoteStore::ConnectionHandle`), and the VM that has it is the only one of use.
    Output(Option<StorePath>),
}

impl First {
    /// Whether it fetches what an earlier session has built.
    pub fn fetches(&self) -> bool {
        matches!(self, Self::Output(_))
    }

    /// The inputs that it asks for, of which nobody else needs to know.
    pub(super) fn take_inputs(&mut self) -> Vec<StorePath> {
        match self {
            Self::Inputs(paths) => std::mem::take(paths),
            Self::Other | Self::Output(_) => Vec::new(),
        }
    }
}

/// News for a session.
#[derive(Debug)]
pub enum SessionUpdate {
    /// It waits; the text is for the person who waits: `starting riscv64-1: waiting for the guest agent`.
    Waiting(String),
    /// It has a VM.
    Granted(Grant),
    /// It gets none; the text says why and what to do next.
    Rejected(String),
    /// Something for the person who waits that changes nothing for the session: `riscv64-1 ran out of memory …`.
    Note(String),
    /// The VM it was using has ended.
    VmGone {
        /// The VM's name.
        vm: String,
        /// What happened: `QEMU was killed by signal 9`.
        cause: String,
        /// The console log to read.
        log: PathBuf,
    },
}

/// A VM that a session was given.
#[derive(Debug)]
pub struct Grant {
    /// The VM's name.
    pub vm: String,
    /// The way into it.
    pub hop: Hop,
    /// Whether nothing may be built on it any more, nor brought to it: it has had its one build, and is kept for who fetches
    /// that. A claim is judged by a session's first operation, so the front end has to look at all others.
    pub fetch_only: bool,
    /// Inputs of the session that this machine's store has, on their way into the VM.
    pub inputs: InputsOnTheirWay,
    /// How long its builds may take.
    pub limits: BuildLimits,
}

/// Inputs on their way into a VM, from which a guest is told what it need not be sent.
#[derive(Debug, Default)]
pub struct InputsOnTheirWay(Option<oneshot::Receiver<()>>);

impl InputsOnTheirWay {
    /// Some, and where to tell that they are there, or that they will not be.
    pub fn channel() -> (oneshot::Sender<()>, Self) {
        let (arrived, on_their_way) = oneshot::channel();
        (arrived, Self(Some(on_their_way)))
    }

    /// Returns when the guest has them, or when it will not have them. Until then it must not be asked which it has. Cancel
    /// safe.
    pub async fn arrived(&mut self) {
        if let Some(on_their_way) = &mut self.0 {
            // Without word of it there is nobody to wait for.
            let _ = on_their_way.await;
            self.0 = None;
        }
    }
}

/// Inputs on their way into a VM, and where to tell that they are there.
pub(crate) type InputsForVm = (Inputs, oneshot::Sender<()>);

/// Has inputs registered in a VM.
#[derive(Debug)]
pub struct InputsTaker {
    to_vm: mpsc::Sender<InputsForVm>,
}

impl InputsTaker {
    /// One, and the end at which the VM's supervisor receives.
    pub(crate) fn channel() -> (Self, mpsc::Receiver<InputsForVm>) {
        let (to_vm, inputs) = mpsc::channel(1);
        (Self { to_vm }, inputs)
    }

    /// Returns when the guest has them, or when it will not.
    pub async fn take(self, inputs: Inputs) {
        let (given, is_given) = oneshot::channel();
        if self.to_vm.send((inputs, given)).await.is_ok() {
            // Without an answer the VM is gone, which the session hears otherwise.
            let _ = is_given.await;
        }
    }
}

/// A session's place in the pool. Dropping it ends the session, whether it still waits or not.
#[derive(Debug)]
pub struct SessionTicket {
    updates: mpsc::Receiver<SessionUpdate>,
    reports: mpsc::Sender<SessionReport>,
    unfetched: Arc<AtomicBool>,
}

impl SessionTicket {
    /// Says whether outputs that were built are still to be fetched, perhaps by a further session: then the VM is kept for
    /// a while after this one. What was said last counts, and nothing was built before anything is said.
    pub fn set_unfetched(&self, unfetched: bool) {
        self.unfetched.store(unfetched, Ordering::Release);
    }

    /// What was said last of that, also after the session.
    pub fn unfetched(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.unfetched)
    }

    /// The next piece of news; `None` when the manager is gone.
    pub async fn next(&mut self) -> Option<SessionUpdate> {
        self.updates.recv().await
    }

    /// Where to tell what is done in the session.
    pub fn reports(&self) -> Reports {
        Reports(self.reports.clone())
    }
}

/// Where to tell what is done in a session.
#[derive(Clone, Debug)]
pub struct Reports(mpsc::Sender<SessionReport>);

impl Reports {
    /// Tells it, or gives it back where there is no room for it now. Never waits.
    pub fn send(&self, report: SessionReport) -> Result<(), SessionReport> {
        match self.0.try_send(report) {
            Err(TrySendError::Full(report)) => Err(report),
            // Without a manager there is nobody to tell.
            Ok(()) | Err(TrySendError::Closed(_)) => Ok(()),
        }
    }

    /// Returns when there is room. There is none while the manager has not heard what was said before.
    pub async fn room(&self) {
        let _ = self.0.reserve().await;
    }
}

/// The manager's side of a new session.
#[derive(Debug)]
pub struct NewSession {
    /// What the front end said of it.
    pub request: SessionRequest,
    /// News for it. Closed when the ticket was dropped, which ends the session.
    pub updates: mpsc::Sender<SessionUpdate>,
    /// What is done in it.
    pub reports: mpsc::Receiver<SessionReport>,
    /// Whether outputs are still to be fetched; see [`SessionTicket::set_unfetched`].
    pub unfetched: Arc<AtomicBool>,
    /// The inputs that it asks for, where its VM will see this machine's store.
    pub look_up: Option<LookUp>,
}

impl NewSession {
    /// Whether outputs are still to be fetched, as its front end said last.
    pub fn is_unfetched(&self) -> bool {
        self.unfetched.load(Ordering::Acquire)
    }
}

/// Where every front end gets its tickets: a handle to the manager.
#[derive(Clone, Debug)]
pub struct SessionDesk {
    to_manager: mpsc::Sender<NewSession>,
    /// The store that VMs see, by the systems whose VMs see one.
    stores: BTreeMap<System, Arc<HostStore>>,
}

/// The manager is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the xpool manager is shutting down; start it again with `xpool up`")]
pub struct ManagerGone;

impl SessionDesk {
    /// A desk, and the end at which the manager receives the sessions.
    pub fn channel() -> (Self, mpsc::Receiver<NewSession>) {
        // Full only while the manager is busy with one event; a front end then waits for a moment.
        let (to_manager, new_sessions) = mpsc::channel(64);
        let desk = Self {
            to_manager,
            stores: BTreeMap::new(),
        };
        (desk, new_sessions)
    }

    /// The same, where VMs of these systems see a store.
    #[must_use]
    pub fn with_stores(self, stores: BTreeMap<System, Arc<HostStore>>) -> Self {
        Self { stores, ..self }
    }

    /// The store that a session's VM will see; `None` where it sees none.
    fn store(&self, request: &SessionRequest) -> Option<Arc<HostStore>> {
        match request.share {
            Share::Host => self.stores.get(&request.system).cloned(),
            Share::None => None,
        }
    }

    /// Queues a session, and begins to look for its inputs.
    pub async fn open(&self, mut request: SessionRequest) -> Result<SessionTicket, ManagerGone> {
        // `Waiting` news is dropped by the manager when there is no room: its successor says as much.
        let (to_session, updates) = mpsc::channel(8);
        let (reports, from_session) = mpsc::channel(64);
        let unfetched = Arc::new(AtomicBool::new(false));
        let look_up = self.store(&request).and_then(|store| {
            let inputs = request.first.take_inputs();
            (!inputs.is_empty()).then(|| LookUp::begin(store, inputs))
        });
        let session = NewSession {
            request,
            look_up,
            updates: to_session,
            reports: from_session,
            unfetched: Arc::clone(&unfetched),
        };
        self.to_manager
            .send(session)
            .await
            .map_err(|_| ManagerGone)?;
        Ok(SessionTicket {
            updates,
            reports,
            unfetched,
        })
    }
}
