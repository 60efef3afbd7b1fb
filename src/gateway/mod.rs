//! The SSH front end: a russh server on loopback that Nix connects to.
//!
//! Gives every `nix-daemon --stdio` that a known key asks for to the session code, and refuses everything else. Knows
//! nothing of VMs. Never does slow work in a handler: that would stall the connection and everything else on it.

mod channels;
mod connection;
mod exec;
mod handler;
mod inbox;
pub mod keys;
mod lifeline;
mod lobby;
mod quota;
mod relay;
mod ssh;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::{PrivateKey, PublicKey};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept;
use crate::activation::Handover;
use crate::manager::ticket::{SessionDesk, Share};
use crate::nix::System;
use crate::nix::handshake::Promise;
use crate::nix::slot::{self, SlotName};

use lobby::Lobby;
use quota::Quota;

/// What a gateway needs to know.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// The key that the gateway is known by.
    pub host_key: PrivateKey,
    /// Who may connect. With none, the gateway does not start.
    pub clients: Vec<Client>,
    /// The user names there are, and what each is for; those of VMs go without saying. With none, the gateway does not
    /// start.
    pub slots: BTreeMap<String, Slot>,
    /// How much of everything there may be.
    pub limits: Limits,
}

impl GatewayConfig {
    /// What a user name stands for: one of the slots, or a VM of a system that has slots, whether it is there or not. The
    /// session finds that out, which can say so inside the protocol.
    fn slot(&self, user: &str) -> Option<&Slot> {
        match SlotName::parse(user) {
            Some(SlotName {
                system,
                slot: slot::Slot::Vm(_),
            }) => self.slots.values().find(|slot| slot.system == system),
            _ => self.slots.get(user),
        }
    }
}

/// Who may connect, told by a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// What it is called where people see it.
    pub name: String,
    /// Its key.
    pub key: PublicKey,
    /// What its sessions may see of this machine's store.
    pub share: Share,
    /// Whether its builds may know private names of this machine's network, and passwords.
    pub secrets: bool,
}

/// What a user name stands for: `riscv64-00` is one build at a time for one system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The platform that is built for.
    pub system: System,
    /// What clients are told of the guests' Nix before there is a guest.
    pub promise: Promise,
}

/// How much of everything there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A connection that has not logged in this long after it was accepted is cut, whatever it sends. Time in which this
    /// machine is too busy to serve it does not count.
    pub login_grace: Duration,
    /// Connections that have not logged in. For a further one another makes room; none is ever refused, because a refused
    /// connection fails a build.
    pub max_logins: usize,
    /// How long a login may get no further before it has to make room for another one.
    pub login_patience: Duration,
    /// Connections in all. Where nobody can make room, further ones wait in the listener's backlog.
    pub max_connections: usize,
    /// Channels of one connection. Further ones are refused: Nix opens one, or `max-connections` of a store.
    pub max_channels: usize,
    /// Channels of all connections of one key. Further ones are refused.
    pub max_channels_per_key: usize,
    /// What the clients of one key may make the gateway hold, in bytes, of what they have sent and nobody has read. Beyond, each of their
    /// channels has a small share.
    pub max_held_per_key: usize,
    /// How long a silent connection waits until it is asked for a sign of life. It ends after ten of these without one.
    pub keepalive: Duration,
    /// How long connections may go on after the gateway was told to stop: their sessions are told why by the manager.
    pub closing_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            login_grace: Duration::from_secs(20),
            max_logins: 1024,
            // Clients give a connection up after 20 s without a greeting.
            login_patience: Duration::from_secs(5),
            max_connections: 2048,
            max_channels: 64,
            max_channels_per_key: 2048,
            max_held_per_key: 256 << 20,
            keepalive: Duration::from_secs(30),
            closing_grace: Duration::from_secs(5),
        }
    }
}

/// Files that are left for other things than connections: VMs, their sessions, commands.
const OTHER_FILES: u64 = 512;

impl Limits {
    /// The usual ones, for a process that may have so many files open: a gateway without any for the VMs serves nobody.
    #[must_use]
    pub fn within(open_files: Option<u64>) -> Self {
        let usual = Self::default();
        let Some(files) = open_files else {
            return usual;
        };
        // Half of what there is where that is little.
        let files = files.saturating_sub(OTHER_FILES).max(files / 2);
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        Self {
            max_connections: usual.max_connections.min(files),
            ..usual
        }
    }
}

/// Why a gateway does not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// Nobody could log in.
    #[error("no client key is allowed to use the gateway")]
    NoClients,
    /// There is nothing to log in as.
    #[error("the gateway has no slots")]
    NoSlots,
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    config: GatewayConfig,
    /// The clients of the configuration, each with what its key may have.
    clients: Vec<(Client, Arc<Quota>)>,
    ssh: Arc<russh::server::Config>,
    desk: SessionDesk,
}

/// Serves clients until `stop` is cancelled; then takes no more, and returns when the last one has gone or was cut. Where there
/// will be another manager, it takes no more from the handover on.
pub async fn serve(
    listener: TcpListener,
    config: GatewayConfig,
    desk: SessionDesk,
    handover: Handover,
    stop: CancellationToken,
) -> Result<(), GatewayError> {
    if config.clients.is_empty() {
        return Err(GatewayError::NoClients);
    }
    if config.slots.is_empty() {
        return Err(GatewayError::NoSlots);
    }
    let closing_grace = config.limits.closing_grace;
    let quota = || Arc::new(Quota::new(&config.limits));
    let clients = config.clients.iter();
    let shared = Arc::new(Shared {
        clients: clients.map(|client| (client.clone(), quota())).collect(),
        ssh: Arc::new(ssh::config(&config.host_key, config.limits.keepalive)),
        config,
        desk,
    });
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    tokio::select! {
        () = stop.cancelled() => {}
        () = handover.begun() => {}
        () = accept_forever(&listener, &shared, &connections, &cut) => {}
    }
    drop(listener);
    stop.cancelled().await;
    connections.close();
    if tokio::time::timeout(closing_grace, connections.wait())
        .await
        .is_err()
    {
        cut.cancel();
        connections.wait().await;
    }
    Ok(())
}

async fn accept_forever(
    listener: &TcpListener,
    shared: &Arc<Shared>,
    connections: &TaskTracker,
    cut: &CancellationToken,
) {
    let lobby = Lobby::new(&shared.config.limits);
    loop {
        // Accepted before there is a place: only for somebody who has come does another one make room.
        let (stream, peer) = accept::next("the gateway", |cx| listener.poll_accept(cx)).await;
        let cut = cut.child_token();
        let place = lobby.enter(&cut).await;
        let shared = Arc::clone(shared);
        connections.spawn(connection::run(stream, peer, shared, place, cut));
    }
}

/// Whether a client may run this command; for the fuzz targets.
#[doc(hidden)]
pub fn may_run(command: &[u8]) -> bool {
    exec::parse(command) == exec::Command::NixDaemon
}
