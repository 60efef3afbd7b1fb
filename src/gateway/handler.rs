//! What a client asks of one connection, and the short answers. Anything that takes time is given to a task.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::{HashAlg, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, Pty};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::exec::{self, Command};
use super::inbox::Inbox;
use super::{Shared, relay};
use crate::manager::ticket::SessionRequest;

/// How much a client may send on a channel before it has to wait for word, in bytes.
pub(super) const WINDOW: u32 = 2 << 20;

/// The same for a connection with a full inbox. Not less: with less, russh never looks again whether there is room.
const TRICKLE: u32 = 2;

/// How long a connection with a full inbox rests after each packet. A client with no room but a trickle sends a packet of
/// two bytes whenever it may.
const REST: Duration = Duration::from_millis(5);

/// One connection's state.
pub(super) struct Handler {
    shared: Arc<Shared>,
    peer: SocketAddr,
    /// Who logged in: slot and key.
    login: Option<(String, PublicKey)>,
    channels: HashMap<ChannelId, ChannelState>,
    logged_in: CancellationToken,
    /// A place among those that have not logged in.
    login_room: Option<OwnedSemaphorePermit>,
    alive: CancellationToken,
    /// russh drops the handler when the connection ends: that ends its sessions.
    _end_sessions: DropGuard,
}

enum ChannelState {
    /// Opened; nothing runs on it yet.
    Open(ChannelWriteHalf<Msg>),
    /// Has its one command.
    Used {
        inbox: Inbox,
        /// Cancelled when the client closes it.
        closed: CancellationToken,
    },
}

impl Handler {
    pub(super) fn new(
        shared: Arc<Shared>,
        peer: SocketAddr,
        alive: CancellationToken,
        logged_in: CancellationToken,
        login_room: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            shared,
            peer,
            login: None,
            channels: HashMap::new(),
            logged_in,
            login_room: Some(login_room),
            _end_sessions: alive.clone().drop_guard(),
            alive,
        }
    }

    fn knows(&self, user: &str, key: &PublicKey) -> bool {
        let config = &self.shared.config;
        let is_client = config
            .clients
            .iter()
            .any(|client| client.key_data() == key.key_data());
        let known = is_client && config.slots.contains_key(user);
        if !known {
            let fingerprint = key.fingerprint(HashAlg::Sha256);
            tracing::debug!(peer = %self.peer, ?user, is_client, %fingerprint, "login refused");
        }
        known
    }

    fn request(&self) -> Option<(SessionRequest, crate::nix::handshake::Promise)> {
        let (user, key) = self.login.as_ref()?;
        let slot = self.shared.config.slots.get(user)?;
        let request = SessionRequest {
            system: slot.system,
            slot: user.clone(),
            client: format!("{} {}", self.peer, key.fingerprint(HashAlg::Sha256)),
        };
        Some((request, slot.promise.clone()))
    }

    /// Starts a session on a channel that has none. False if it cannot have one.
    fn start(&mut self, id: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        let Some((request, promise)) = self.request() else {
            return session.channel_failure(id);
        };
        let Some(writer) = self.take(id) else {
            return session.channel_failure(id);
        };
        session.channel_success(id)?;
        let (inbox, closed) = (Inbox::default(), self.alive.child_token());
        let channel = relay::Channel {
            reader: inbox.reader(),
            writer,
            closed: closed.clone(),
        };
        self.channels
            .insert(id, ChannelState::Used { inbox, closed });
        let desk = self.shared.desk.clone();
        tokio::spawn(relay::run(channel, desk, request, promise));
        Ok(())
    }

    /// Ends a channel with a reason that its user sees.
    fn refuse(
        &mut self,
        id: ChannelId,
        why: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        if self.take(id).is_none() {
            return session.channel_failure(id);
        }
        let (inbox, closed) = (Inbox::default(), CancellationToken::new());
        drop(inbox.reader());
        self.channels
            .insert(id, ChannelState::Used { inbox, closed });
        tracing::info!(peer = %self.peer, why, "refused a client's command");
        session.channel_success(id)?;
        session.extended_data(id, relay::STDERR, format!("xpool: {why}\r\n"))?;
        session.exit_status_request(id, relay::FAILED)?;
        session.eof(id)?;
        session.close(id)
    }

    /// The channel, if it is open and unused.
    fn take(&mut self, id: ChannelId) -> Option<ChannelWriteHalf<Msg>> {
        match self.channels.remove(&id)? {
            ChannelState::Open(channel) => Some(channel),
            used @ ChannelState::Used { .. } => {
                self.channels.insert(id, used);
                None
            }
        }
    }

    fn inbox(&self, id: ChannelId) -> Option<&Inbox> {
        match self.channels.get(&id)? {
            ChannelState::Used { inbox, .. } => Some(inbox),
            ChannelState::Open(_) => None,
        }
    }
}

impl russh::server::Handler for Handler {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(if self.knows(user, offer.public_key) {
            Auth::Accept
        } else {
            Auth::reject()
        })
    }

    // Decides again, although the key was offered before: an offer proves nothing, and the signed key may be another one.
    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        if !self.knows(user, key.public_key) {
            return Ok(Auth::reject());
        }
        self.login = Some((user.to_owned(), key.public_key.clone()));
        Ok(Auth::Accept)
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Self::Error> {
        self.logged_in.cancel();
        self.login_room = None;
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.channels.len() >= self.shared.config.limits.max_channels {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        // Without the other half russh keeps no bytes for it: they come to `data` only.
        let (_, writer) = channel.split();
        self.channels
            .insert(writer.id(), ChannelState::Open(writer));
        reply.accept().await;
        Ok(())
    }

    async fn channel_close(
        &mut self,
        id: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(ChannelState::Used { closed, .. }) = self.channels.remove(&id) {
            closed.cancel();
        }
        Ok(())
    }

    async fn data(
        &mut self,
        id: ChannelId,
        data: &[u8],
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(inbox) = self.inbox(id) else {
            return Ok(());
        };
        inbox.push(data);
        if inbox.is_full() {
            tokio::time::sleep(REST).await;
        }
        Ok(())
    }

    async fn channel_eof(
        &mut self,
        id: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(inbox) = self.inbox(id) {
            inbox.end();
        }
        Ok(())
    }

    // russh keeps one value for all channels of a connection, so one full inbox slows all of them.
    fn adjust_window(&mut self, _channel: ChannelId, _current: u32) -> u32 {
        let is_full = |state: &ChannelState| matches!(state, ChannelState::Used { inbox, .. } if inbox.is_full());
        if self.channels.values().any(is_full) {
            TRICKLE
        } else {
            WINDOW
        }
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match exec::parse(command) {
            Command::NixDaemon => self.start(id, session),
            Command::Refused(why) => self.refuse(id, &why, session),
        }
    }

    async fn shell_request(
        &mut self,
        id: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.refuse(id, &exec::no_shell(), session)
    }

    // What follows is refused by name, because russh's own methods answer nothing at all. Forwarding (of ports, sockets,
    // the agent) needs no words: russh refuses what no method accepts.

    async fn pty_request(
        &mut self,
        id: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        _name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        _name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }
}
