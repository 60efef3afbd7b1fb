//! What happens in the pools, as a stream for whoever watches. Nobody who watches slowly holds anything up: what they have
//! missed is counted and said.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::report::BuildProgress;
use super::status::BuildView;
use crate::forecast::Review;
use crate::nix::System;
use crate::pool::decision::Decision;

/// How many events wait for whoever reads them slowly. One with a build's last lines takes some kilobytes.
const MAX_WAITING: usize = 256;

/// Something that happened, and when; a line of the event stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PoolEvent {
    /// Seconds since the epoch.
    pub at: u64,
    /// What.
    #[serde(flatten)]
    pub happening: Happening,
}

/// Something that happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "event",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case"
)]
pub enum Happening {
    /// A client has asked for something.
    SessionOpened {
        /// Its number.
        session: u64,
        /// Of which system.
        system: System,
        /// The slot it came in by.
        slot: String,
        /// Who it is.
        client: String,
    },
    /// It is over.
    SessionClosed {
        /// Its number.
        session: u64,
    },
    /// A build began.
    BuildBegan(BuildView),
    /// A build goes on, or its outputs are copied.
    Progress {
        /// The build's number.
        id: u64,
        /// How far it has come.
        #[serde(flatten)]
        progress: BuildProgress,
    },
    /// A build ended, in whatever way.
    BuildEnded(BuildView),
    /// A VM is being started.
    VmStarted {
        /// Its name.
        vm: String,
    },
    /// It can serve.
    VmReady {
        /// Its name.
        vm: String,
        /// How long its start took, in milliseconds.
        boot_ms: u64,
    },
    /// It is gone.
    VmEnded {
        /// Its name.
        vm: String,
        /// Why.
        because: String,
    },
    /// A pool has decided to start or to stop VMs, or what holds a start back.
    Decided {
        /// Of which system.
        system: System,
        /// In words.
        what: String,
        /// And in figures.
        #[serde(flatten)]
        decision: Decision,
    },
    /// An hour has ended that a forecast had said something of.
    ForecastEnded {
        /// Of which system.
        system: System,
        /// What it had said, and what came.
        review: Review,
    },
    /// Starts of a system's VMs have failed so often that builds are refused at once.
    PoolDegraded {
        /// Which one.
        system: System,
        /// Why the last start failed.
        because: String,
    },
    /// One has worked again.
    PoolHealed {
        /// Which one.
        system: System,
    },
    /// Whoever reads this was too slow.
    Missed {
        /// So many events are not in the stream.
        events: u64,
    },
}

impl PoolEvent {
    fn now(happening: Happening) -> Self {
        Self {
            at: wall_clock(),
            happening,
        }
    }
}

/// Where events come from.
#[derive(Clone, Debug)]
pub(super) struct Events(broadcast::Sender<Arc<PoolEvent>>);

impl Events {
    pub(super) fn new() -> Self {
        Self(broadcast::Sender::new(MAX_WAITING))
    }

    /// Tells whoever watches.
    pub(super) fn tell(&self, happening: impl FnOnce() -> Happening) {
        if self.0.receiver_count() > 0 {
            // The last one may have gone in this moment.
            let _ = self.0.send(Arc::new(PoolEvent::now(happening())));
        }
    }

    /// Where to watch for as long as this is there.
    pub(super) fn source(&self) -> EventSource {
        EventSource(self.0.downgrade())
    }
}

/// Where streams of events begin.
#[derive(Clone)]
pub struct EventSource(broadcast::WeakSender<Arc<PoolEvent>>);

impl fmt::Debug for EventSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSource")
    }
}

impl EventSource {
    /// What happens from now on; `None` when the manager has ended.
    pub fn subscribe(&self) -> Option<EventStream> {
        Some(EventStream(self.0.upgrade()?.subscribe()))
    }
}

/// What happens from some moment on.
#[derive(Debug)]
pub struct EventStream(broadcast::Receiver<Arc<PoolEvent>>);

impl EventStream {
    /// The next event; `None` when the manager has ended.
    pub async fn next(&mut self) -> Option<Arc<PoolEvent>> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(events)) => {
                Some(Arc::new(PoolEvent::now(Happening::Missed { events })))
            }
            Err(RecvError::Closed) => None,
        }
    }
}

/// Seconds since the epoch, for people and other programs. What is decided goes by the other clock.
pub(super) fn wall_clock() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
