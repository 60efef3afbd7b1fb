//! What a front end holds while a session waits for a VM and uses it.

use std::path::PathBuf;

use tokio::sync::mpsc;

use crate::nix::System;
use crate::vm::Hop;

/// What a front end says about a session that wants a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRequest {
    /// The platform it builds for.
    pub system: System,
    /// The slot it came in by, which is also its user name: `riscv64-03`.
    pub slot: String,
    /// Who it is, for people: an address and a key's fingerprint.
    pub client: String,
}

/// News for a session.
#[derive(Debug)]
pub enum SessionUpdate {
    /// It waits; the text is for the person who waits: `starting riscv64-1: waiting for the guest agent`.
    Waiting(String),
    /// It has a VM.
    Granted {
        /// The VM's name.
        vm: String,
        /// The way into it.
        hop: Hop,
    },
    /// It gets none; the text says why and what to do next.
    Rejected(String),
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

/// A session's place in the pool. Dropping it ends the session, whether it still waits or not.
#[derive(Debug)]
pub struct SessionTicket {
    updates: mpsc::Receiver<SessionUpdate>,
    activity: mpsc::Sender<String>,
}

impl SessionTicket {
    /// A ticket and the manager's ends of its channels.
    pub fn new() -> (Self, mpsc::Sender<SessionUpdate>, mpsc::Receiver<String>) {
        // An update that finds no room is dropped by the manager only if it is `Waiting`, whose successor says as much.
        let (to_session, updates) = mpsc::channel(8);
        let (activity, from_session) = mpsc::channel(8);
        (Self { updates, activity }, to_session, from_session)
    }

    /// The next piece of news; `None` when the manager is gone.
    pub async fn next(&mut self) -> Option<SessionUpdate> {
        self.updates.recv().await
    }

    /// Says what the session is doing, for `xpool status`: the derivation that it builds. Never waits.
    pub fn describe(&self, what: &str) {
        // Only for people to see, so a full channel may lose it.
        let _ = self.activity.try_send(what.to_owned());
    }
}

/// Where sessions get their tickets from: the manager, for every front end.
pub trait TicketOffice: Clone + Send + Sync + 'static {
    /// Queues a session. An error means that the manager is shutting down; its text is for the client.
    fn open_session(
        &self,
        request: SessionRequest,
    ) -> impl Future<Output = Result<SessionTicket, String>> + Send;
}
