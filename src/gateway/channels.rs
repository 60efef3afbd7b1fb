//! The channels of one connection, and how much the client may send on them.

use std::collections::HashMap;

use russh::server::Msg;
use russh::{Channel, ChannelId, ChannelWriteHalf};
use tokio_util::sync::CancellationToken;

use super::inbox::{Inbox, InboxReader};

/// How much a client may send on a channel before it has to wait for word, in bytes.
pub(super) const WINDOW: u32 = 2 << 20;

/// The same for a connection with a full inbox. Not less: with less, russh never looks again whether there is room.
pub(super) const TRICKLE: u32 = 2;

/// The channels that the client has not closed.
#[derive(Debug, Default)]
pub(super) struct Channels {
    states: HashMap<ChannelId, ChannelState>,
}

#[derive(Debug)]
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

impl Channels {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    /// Takes in a channel that the client opens.
    pub(super) fn open(&mut self, channel: Channel<Msg>) {
        // Without the other half russh keeps no bytes for it: they come to the handler only.
        let (_, writer) = channel.split();
        self.states.insert(writer.id(), ChannelState::Open(writer));
    }

    /// Gives both directions of a channel to its one command; `None` if it has one already. `closed` is cancelled when the
    /// client closes the channel.
    pub(super) fn begin(
        &mut self,
        id: ChannelId,
        closed: CancellationToken,
    ) -> Option<(InboxReader, ChannelWriteHalf<Msg>)> {
        let state = self.states.get_mut(&id)?;
        if let ChannelState::Used { .. } = state {
            return None;
        }
        let inbox = Inbox::default();
        let reader = inbox.reader();
        match std::mem::replace(state, ChannelState::Used { inbox, closed }) {
            ChannelState::Open(writer) => Some((reader, writer)),
            ChannelState::Used { .. } => None,
        }
    }

    /// Where a channel's bytes go; `None` before its command.
    pub(super) fn inbox(&self, id: ChannelId) -> Option<&Inbox> {
        match self.states.get(&id)? {
            ChannelState::Used { inbox, .. } => Some(inbox),
            ChannelState::Open(_) => None,
        }
    }

    /// Forgets a channel that the client has closed, and ends what ran on it.
    pub(super) fn close(&mut self, id: ChannelId) {
        if let Some(ChannelState::Used { closed, .. }) = self.states.remove(&id) {
            closed.cancel();
        }
    }

    /// How much the client may send: as much as there is room for, so that it slows down before it has to stop. russh keeps
    /// one value for all channels of a connection, so one full inbox slows all of them.
    ///
    /// With all or nothing here and the handler's rest after every packet, bytes took about three times as long
    /// (`scripts/bench gateway`). Either alone cost little.
    pub(super) fn window(&self) -> u32 {
        let room = |state: &ChannelState| match state {
            ChannelState::Used { inbox, .. } => Some(inbox.room()),
            ChannelState::Open(_) => None,
        };
        let least = self.states.values().filter_map(room).min();
        least.map_or(WINDOW, |room| {
            u32::try_from(room).map_or(WINDOW, |room| room.clamp(TRICKLE, WINDOW))
        })
    }
}
