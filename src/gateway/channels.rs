//! The channels of one connection, and how much the client may send on them.

use std::collections::HashMap;
use std::sync::Arc;

use russh::server::Msg;
use russh::{Channel, ChannelId, ChannelWriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::inbox::{Inbox, InboxReader, Overrun};
use crate::session::account::Account;

/// How much a client may send on a channel before it has to wait for word, in bytes. Not less: while keys are exchanged anew, russh ends a
/// connection on which more than twice this comes, on all channels together.
pub(super) const WINDOW: u32 = 2 << 20;

/// The same for a connection with a full inbox. Not less: with less, russh never looks again whether there is room.
pub(super) const TRICKLE: u32 = 2;

/// The channels that the client has not closed.
#[derive(Debug)]
pub(super) struct Channels {
    account: Arc<Account>,
    states: HashMap<ChannelId, ChannelState>,
    /// The window that russh has given a channel for the bytes that it is about to hand over.
    granted: Option<(ChannelId, u32)>,
}

#[derive(Debug)]
struct ChannelState {
    inbox: Inbox,
    /// Where its command writes; `None` once it has one.
    writer: Option<ChannelWriteHalf<Msg>>,
    /// Cancelled when the client closes it.
    closed: CancellationToken,
    /// One of those that its key may have; its command's, once it has one.
    place: Option<OwnedSemaphorePermit>,
}

/// A channel, as its one command has it.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) reader: InboxReader,
    pub(super) writer: ChannelWriteHalf<Msg>,
    /// Cancelled when the client has closed the channel or is gone.
    pub(super) closed: CancellationToken,
    /// The channel's place, which is free when the command has ended.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

impl Channels {
    /// None yet, of a client with this account.
    pub(super) fn new(account: Arc<Account>) -> Self {
        Self {
            account,
            states: HashMap::new(),
            granted: None,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    /// Forgets channels whose command has ended: russh does not tell when a client closes one that was closed here.
    pub(super) fn tidy(&mut self) {
        let is_over = |state: &ChannelState| state.writer.is_none() && state.inbox.is_abandoned();
        self.states.retain(|_, state| !is_over(state));
    }

    /// Takes in a channel that the client opens.
    pub(super) fn open(&mut self, channel: Channel<Msg>, place: OwnedSemaphorePermit) {
        // Without the other half russh keeps no bytes for it: they come to the handler only.
        let (_, writer) = channel.split();
        let id = writer.id();
        let state = ChannelState {
            inbox: Inbox::new(WINDOW as usize, self.account.charge()),
            writer: Some(writer),
            closed: CancellationToken::new(),
            place: Some(place),
        };
        self.states.insert(id, state);
    }

    /// Gives a channel to its one command; `None` if it has one already. The token is cancelled when the client closes the channel, or
    /// with `parent`.
    pub(super) fn begin(&mut self, id: ChannelId, parent: &CancellationToken) -> Option<Begun> {
        let state = self.states.get_mut(&id)?;
        let writer = state.writer.take()?;
        state.closed = parent.child_token();
        Some(Begun {
            reader: state.inbox.reader(),
            writer,
            closed: state.closed.clone(),
            place: state.place.take(),
        })
    }

    /// A channel's bytes have come. Where they go; `None` if there is no such channel.
    pub(super) fn receive(
        &mut self,
        id: ChannelId,
        sent: usize,
    ) -> Result<Option<&Inbox>, Overrun> {
        let granted = self.granted.take().filter(|(channel, _)| *channel == id);
        let Some(state) = self.states.get(&id) else {
            return Ok(None);
        };
        state.inbox.count(sent, granted.map(|(_, window)| window))?;
        Ok(Some(&state.inbox))
    }

    /// The client sends no more on a channel.
    pub(super) fn end(&self, id: ChannelId) {
        if let Some(state) = self.states.get(&id) {
            state.inbox.end();
        }
    }

    /// Forgets a channel that the client has closed, and ends what ran on it.
    pub(super) fn close(&mut self, id: ChannelId) {
        if let Some(state) = self.states.remove(&id) {
            state.closed.cancel();
        }
    }

    /// Notes the window that a channel was given just now, and says how large the next one is to be, on any channel: russh keeps one
    /// value for all channels of a connection, so one full inbox slows all of them.
    pub(super) fn grant(&mut self, id: ChannelId, window: u32) -> u32 {
        self.granted = Some((id, window));
        self.window()
    }

    /// How much the client may send: as much as there is room for, so that it slows down before it has to stop.
    ///
    /// With all or nothing here and the handler's rest after every packet, bytes took about three times as long
    /// (`scripts/bench gateway`). Either alone cost little.
    fn window(&self) -> u32 {
        let rooms = self.states.values().map(|state| state.inbox.room());
        let least = rooms.min().unwrap_or(usize::MAX);
        u32::try_from(least).map_or(WINDOW, |room| room.clamp(TRICKLE, WINDOW))
    }
}
