//! What a client asks of one connection, and the short answers. Anything that takes time is given to a task.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::{HashAlg, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::channels::{Channels, TRICKLE};
use super::exec::{self, Command};
use super::inbox::Inbox;
use super::lobby::Place;
use super::quota::Quota;
use super::{Client, Shared, relay};
use crate::manager::ticket::{First, SessionRequest};

/// How long a connection with a full inbox rests after a packet of a trickle: a client with no more room sends one of two
/// bytes whenever it may. Not after larger ones, which were under way: meanwhile nothing goes to the client either.
const REST: Duration = Duration::from_millis(5);

/// The same for one that has sent a further inbox's worth in that way.
const LONG_REST: Duration = Duration::from_secs(1);

/// One connection's state.
pub(super) struct Handler {
    shared: Arc<Shared>,
    peer: SocketAddr,
    /// Who logged in, and as which slot.
    login: Option<Login>,
    logged_in: CancellationToken,
    place: Arc<Place>,
    alive: CancellationToken,
    /// russh drops the handler when the connection ends: that ends its sessions.
    _end_sessions: DropGuard,
}

/// A client that has logged in.
struct Login {
    /// The slot.
    user: String,
    client: Client,
    quota: Arc<Quota>,
    channels: Channels,
    /// One of the connections that its key may have.
    _connection: OwnedSemaphorePermit,
}

impl Handler {
    pub(super) fn new(
        shared: Arc<Shared>,
        peer: SocketAddr,
        alive: CancellationToken,
        logged_in: CancellationToken,
        place: Arc<Place>,
    ) -> Self {
        Self {
            shared,
            peer,
            login: None,
            logged_in,
            place,
            _end_sessions: alive.clone().drop_guard(),
            alive,
        }
    }

    /// Who this is; none of those that may log in with this key as this user.
    fn client(&self, user: &str, key: &PublicKey) -> Option<&(Client, Arc<Quota>)> {
        let config = &self.shared.config;
        let mut clients = self.shared.clients.iter();
        let client = clients.find(|(client, _)| client.key.key_data() == key.key_data());
        let known = client.filter(|_| config.slot(user).is_some());
        if known.is_none() {
            let fingerprint = key.fingerprint(HashAlg::Sha256);
            let client = client.map(|(client, _)| &client.name);
            tracing::debug!(peer = %self.peer, ?user, ?client, %fingerprint, "login refused");
        }
        known
    }

    fn request(&self) -> Option<(SessionRequest, crate::nix::handshake::Promise)> {
        let Login { user, client, .. } = self.login.as_ref()?;
        let slot = self.shared.config.slot(user)?;
        let key = client.key.fingerprint(HashAlg::Sha256).to_string();
        let request = SessionRequest {
            system: slot.system,
            slot: user.clone(),
            seat: user.clone(),
            client: format!("{} {} {key}", client.name, self.peer),
            key,
            share: client.share,
            secrets: client.secrets,
            // The session knows when it has seen its first operation.
            first: First::Other,
        };
        Some((request, slot.promise.clone()))
    }

    /// Starts a session on a channel that has none.
    fn start(&mut self, id: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        let Some((request, promise)) = self.request() else {
            return session.channel_failure(id);
        };
        let Some(login) = &mut self.login else {
            return session.channel_failure(id);
        };
        let Some(begun) = login.channels.begin(id, &self.alive) else {
            return session.channel_failure(id);
        };
        session.channel_success(id)?;
        let (charge, desk) = (login.quota.account.charge(), self.shared.desk.clone());
        tokio::spawn(relay::run(begun, charge, desk, request, promise));
        Ok(())
    }

    /// Ends a channel with a reason that its user sees.
    fn refuse(
        &mut self,
        id: ChannelId,
        why: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let channels = self.login.as_mut().map(|login| &mut login.channels);
        if channels
            .and_then(|channels| channels.begin(id, &self.alive))
            .is_none()
        {
            return session.channel_failure(id);
        }
        tracing::info!(peer = %self.peer, why, "refused a client's command");
        session.channel_success(id)?;
        session.extended_data(id, relay::STDERR, format!("xpool: {why}\n"))?;
        session.exit_status_request(id, relay::FAILED)?;
        session.eof(id)?;
        session.close(id)
    }

    /// Where a channel's bytes go; `None` if there is no such channel. The error ends the connection.
    fn receive(&mut self, id: ChannelId, sent: usize) -> Result<Option<&Inbox>, russh::Error> {
        let Some(login) = &mut self.login else {
            return Ok(None);
        };
        login.channels.receive(id, sent).map_err(|overrun| {
            tracing::warn!(peer = %self.peer, client = login.client.name, %overrun, "cut a client that breaks SSH's rules");
            russh::Error::from(std::io::Error::other(overrun))
        })
    }
}

/// Waits until an inbox has its share, or for a moment: others of its key may hold less by then. Fails when the connection is to end.
async fn wait(inbox: &Inbox, alive: &CancellationToken) -> Result<bool, russh::Error> {
    tokio::select! {
        // First: for most packets no timer is needed.
        biased;
        () = inbox.has_its_share() => Ok(true),
        () = tokio::time::sleep(LONG_REST) => Ok(false),
        () = alive.cancelled() => Err(russh::Error::Disconnect),
    }
}

impl russh::server::Handler for Handler {
    type Error = russh::Error;

    // Refused, as russh does by itself; but it tells that keys were exchanged.
    async fn auth_none(&mut self, _user: &str) -> Result<Auth, Self::Error> {
        self.place.got_further();
        Ok(Auth::reject())
    }

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        self.place.got_further();
        Ok(if self.client(user, offer.public_key).is_some() {
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
        let Some((client, quota)) = self.client(user, key.public_key).cloned() else {
            return Ok(Auth::reject());
        };
        // Not waited for: nothing else of the connection would go on, its end included.
        let Ok(connection) = quota.connections.clone().try_acquire_owned() else {
            tracing::warn!(peer = %self.peer, client = client.name, "refused a login: its key has all the connections that one may have");
            return Ok(Auth::reject());
        };
        self.login = Some(Login {
            user: user.to_owned(),
            client,
            channels: Channels::new(quota.account.clone()),
            quota,
            _connection: connection,
        });
        Ok(Auth::Accept)
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Self::Error> {
        self.logged_in.cancel();
        self.place.logged_in();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let most = self.shared.config.limits.max_channels;
        let mut login = self.login.as_mut();
        if let Some(login) = &mut login {
            login.channels.tidy();
        }
        let login = login.filter(|login| login.channels.len() < most);
        let place = login.and_then(|login| {
            let place = login.quota.channels.clone().try_acquire_owned().ok()?;
            Some((login, place))
        });
        let Some((login, place)) = place else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        login.channels.open(channel, place);
        reply.accept().await;
        Ok(())
    }

    async fn channel_close(
        &mut self,
        id: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(login) = &mut self.login {
            login.channels.close(id);
        }
        Ok(())
    }

    async fn data(
        &mut self,
        id: ChannelId,
        data: &[u8],
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let alive = self.alive.clone();
        let Some(inbox) = self.receive(id, data.len())? else {
            return Ok(());
        };
        inbox.push(data);
        while !wait(inbox, &alive).await? {}
        if data.len() <= TRICKLE as usize && inbox.is_full() {
            let rest = if inbox.is_overfull() { LONG_REST } else { REST };
            tokio::time::sleep(rest).await;
        }
        Ok(())
    }

    // Nobody reads it, but it takes room.
    async fn extended_data(
        &mut self,
        id: ChannelId,
        _code: u32,
        data: &[u8],
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.receive(id, data.len()).map(drop)
    }

    async fn channel_eof(
        &mut self,
        id: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(login) = &self.login {
            login.channels.end(id);
        }
        Ok(())
    }

    // Called when russh has given `current`, and before the bytes are handed over for which it has.
    fn adjust_window(&mut self, channel: ChannelId, current: u32) -> u32 {
        let login = self.login.as_mut();
        login.map_or(current, |login| login.channels.grant(channel, current))
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
