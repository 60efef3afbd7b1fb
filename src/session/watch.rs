//! What is seen of a session whose bytes pass, and which of the client's may not.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use crate::nix::observe::{Event, Observer, Operation};

/// What both directions know of the session. A lock rather than messages: both look at every chunk, on one task, so it
/// is never contended, and it is never held across an await.
pub(super) struct Watch {
    observed: Mutex<Observed>,
    /// Whether the client may only fetch.
    fetch_only: bool,
    /// For `xpool status`. An event that finds it full is lost; its successor says more.
    events: mpsc::Sender<Event>,
}

struct Observed {
    observer: Observer,
    /// Whether the client has received all that the observer has seen from the guest.
    client_is_current: bool,
    was_building: bool,
}

/// What is to be done with bytes from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// They go on to the guest, after those that wait.
    Pass,
    /// They wait: they are a part of an operation's number, which does not say yet what it is the number of.
    Wait,
    /// They do not go on, nor does anything that waits or comes after them.
    Refuse,
}

/// What the end of a session came upon.
pub(super) struct AtEnd {
    /// What was going on.
    pub(super) during: &'static str,
    /// Whether a build hook listens.
    pub(super) to_hook: bool,
    /// Whether the client would understand an error in the protocol.
    pub(super) can_be_told: bool,
}

impl Watch {
    pub(super) fn new(observer: Observer, fetch_only: bool, events: mpsc::Sender<Event>) -> Self {
        let seen = Observed {
            observer,
            client_is_current: true,
            was_building: false,
        };
        Self {
            observed: Mutex::new(seen),
            fetch_only,
            events,
        }
    }

    /// Looks at what the client sends before it goes on. Everything goes on, whatever it is, unless the client may only
    /// fetch.
    pub(super) fn admit(&self, bytes: &[u8]) -> Admission {
        let (events, admission) = {
            let observer = &mut self.lock().observer;
            (observer.from_client(bytes), admission(observer))
        };
        self.tell(events);
        if self.fetch_only {
            admission
        } else {
            Admission::Pass
        }
    }

    /// Looks at what the guest sends before it goes on; see [`Self::client_has_all`].
    pub(super) fn see_guest(&self, bytes: &[u8]) {
        let events = {
            let mut observed = self.lock();
            observed.client_is_current = false;
            observed.observer.from_server(bytes)
        };
        self.tell(events);
    }

    /// Notes that the client has received all that was seen from the guest.
    pub(super) fn client_has_all(&self) {
        self.lock().client_is_current = true;
    }

    /// Whether the client has received all that was seen from the guest.
    pub(super) fn client_is_current(&self) -> bool {
        self.lock().client_is_current
    }

    /// Whether there may be outputs that the client has not fetched.
    pub(super) fn outputs_remain(&self) -> bool {
        self.lock().observer.outputs_remain()
    }

    /// Whether all that the client did was understood.
    pub(super) fn is_understood(&self) -> bool {
        self.lock().observer.is_watching()
    }

    pub(super) fn at_end(&self) -> AtEnd {
        let seen = self.lock();
        AtEnd {
            during: during(seen.observer.operation()),
            to_hook: seen.was_building,
            can_be_told: seen.client_is_current && seen.observer.error_can_be_sent(),
        }
    }

    fn tell(&self, events: Vec<Event>) {
        for event in events {
            if matches!(event, Event::Building(_)) {
                self.lock().was_building = true;
            }
            let _ = self.events.try_send(event);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be done with what was seen last of a client that may only fetch. What is not understood may be anything, a
/// build too. Clients wait for a reply before they go on, so one chunk never has the end of an operation and the beginning
/// of another one: such a chunk is not understood.
fn admission(observer: &Observer) -> Admission {
    match observer.operation() {
        _ if !observer.is_watching() => Admission::Refuse,
        Some(operation) if operation.builds() => Admission::Refuse,
        Some(_) => Admission::Pass,
        None => Admission::Wait,
    }
}

fn during(operation: Option<Operation>) -> &'static str {
    match operation {
        Some(
            Operation::BuildDerivation | Operation::BuildPaths | Operation::BuildPathsWithResults,
        ) => "in the middle of the build",
        Some(Operation::AddMultipleToStore) => "while inputs were copied to it",
        Some(Operation::NarFromPath) => "while outputs were copied from it",
        Some(_) | None => "in the middle of the session",
    }
}
