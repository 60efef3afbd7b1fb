//! A session as the manager keeps it: what it wants, what it is told, what it left behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::{Semaphore, mpsc};

use super::status::InputsView;
use super::ticket::{First, LookUp, SessionReport, SessionRequest, SessionUpdate};
use super::{News, SessionNews};
use crate::nix::System;
use crate::nix::slot::{Slot, SlotName};
use crate::nix::store_path::StorePath;
use crate::pool::claim::{Claim, Outputs, Purpose, Seat};
use crate::pool::{Event, SessionId, VmId};

/// One session, from its coming to its end.
pub(super) struct ManagedSession {
    pub(super) request: SessionRequest,
    pub(super) updates: mpsc::Sender<SessionUpdate>,
    pub(super) unfetched: Arc<AtomicBool>,
    /// What it asks for of this machine's store, until it has a VM.
    pub(super) look_up: Option<LookUp>,
    pub(super) opened: Instant,
    pub(super) vm: Option<VmId>,
    /// Whether it may only fetch there what was built.
    pub(super) fetch_only: bool,
    /// When it was given a way into the VM: from then on something may have been done there.
    pub(super) granted: Option<Instant>,
    /// Whether it has begun to build something, or may have.
    pub(super) has_built: bool,
    /// Whether its front end has let go of it: then only the VM's slot is still to be freed.
    pub(super) is_over: bool,
    /// How often its VM ended before that.
    pub(super) returns: u32,
    pub(super) activity: String,
    /// The outputs of what it builds now, as far as they are known.
    pub(super) building: Vec<StorePath>,
    /// What it was given of this machine's store.
    pub(super) inputs: Option<InputsView>,
}

/// How often a session may lose its VM before it has used it: enough for an accident, too little for a circle.
const MOST_RETURNS: u32 = 2;

impl ManagedSession {
    pub(super) fn claim(&self) -> Claim {
        let request = &self.request;
        Claim {
            seat: Seat {
                client: request.key.clone(),
                slot: request.seat.clone(),
            },
            purpose: self.purpose(),
            share: request.share,
        }
    }

    /// What it wants.
    pub(super) fn purpose(&self) -> Purpose {
        match (self.named_vm(), &self.request.first) {
            (Some(vm), _) => Purpose::Pinned(vm),
            (None, First::Output(path)) => Purpose::Fetch(path.clone()),
            (None, First::Other | First::Inputs(_)) => Purpose::Build,
        }
    }

    /// The VM that it wants and no other.
    pub(super) fn named_vm(&self) -> Option<VmId> {
        match SlotName::parse(&self.request.slot)?.slot {
            Slot::Vm(number) => Some(VmId(number)),
            Slot::Number(_) => None,
        }
    }

    /// What a report means for the outputs that are to be fetched.
    pub(super) fn outputs_event(&mut self, id: SessionId, report: &SessionReport) -> Option<Event> {
        match report {
            SessionReport::BuildBegan(began) => {
                self.building.clone_from(&began.outputs);
                None
            }
            SessionReport::BuildEnded(ended) => {
                let outputs = std::mem::take(&mut self.building);
                Some(match ended.failure {
                    None => Event::Built(id, outputs),
                    Some(_) => Event::Failed(id),
                })
            }
            SessionReport::Fetched(path) => Some(Event::Fetched(id, path.clone())),
            // What is done from now on may be a build.
            SessionReport::NotUnderstood => Some(Event::Built(id, Vec::new())),
            SessionReport::Activity(_) | SessionReport::Progress(_) => None,
        }
    }

    /// Takes note of what is done in it.
    pub(super) fn note(&mut self, report: SessionReport) {
        match report {
            SessionReport::Activity(activity) => self.activity = activity,
            SessionReport::BuildBegan(_) | SessionReport::NotUnderstood => self.has_built = true,
            SessionReport::Progress(_)
            | SessionReport::BuildEnded(_)
            | SessionReport::Fetched(_) => {}
        }
    }

    /// What became of what it has built, as it said last.
    pub(super) fn outputs(&self) -> Outputs {
        if self.unfetched.load(Ordering::Acquire) {
            Outputs::Unfetched
        } else {
            Outputs::Fetched
        }
    }

    /// Whether nothing was done for it yet and its client is still there.
    pub(super) fn can_be_returned(&self) -> bool {
        self.granted.is_none() && self.returns < MOST_RETURNS && !self.updates.is_closed()
    }

    /// Never waits: a session reads its news at once, and `Waiting` and `Note` leave room for what must not be lost.
    pub(super) fn tell(&self, update: SessionUpdate) {
        let can_be_lost = matches!(update, SessionUpdate::Waiting(_) | SessionUpdate::Note(_));
        if can_be_lost && self.updates.capacity() <= RESERVED_UPDATES {
            return;
        }
        // A session whose front end has gone is about to be reported as dropped.
        let _ = self.updates.try_send(update);
    }
}

/// Room for `Granted` or `Rejected`, and `VmGone`.
const RESERVED_UPDATES: usize = 2;

/// What a session may have said that the manager has not heard yet. What it says beside waits with it, so that a session that says much
/// keeps nobody else waiting for long.
const MOST_UNHEARD: usize = 2;

/// Passes on what a session does, and that it ended, until it has.
pub(super) async fn watch_session(
    system: System,
    id: SessionId,
    updates: mpsc::Sender<SessionUpdate>,
    mut reports: mpsc::Receiver<SessionReport>,
    news: mpsc::UnboundedSender<News>,
) {
    let tell = |told| {
        // Without a manager there is nobody to tell.
        let _ = news.send(News::Session(system, id, told));
    };
    let room = Arc::new(Semaphore::new(MOST_UNHEARD));
    while let Some(report) = reports.recv().await {
        let Ok(place) = room.clone().acquire_owned().await else {
            break;
        };
        tell(SessionNews::Report(report, place));
    }
    updates.closed().await;
    tell(SessionNews::Dropped);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_session_that_says_much_waits_until_it_is_heard() {
        let (updates, _held) = mpsc::channel(8);
        let (say, reports) = mpsc::channel(1);
        let (news, mut heard) = mpsc::unbounded_channel();
        let (system, id) = (System::Riscv64Linux, SessionId(1));
        tokio::spawn(watch_session(system, id, updates, reports, news));
        let saying = tokio::spawn(async move {
            for n in 0..1000 {
                let report = SessionReport::Activity(n.to_string());
                say.send(report).await.unwrap();
            }
        });
        for n in 0..1000 {
            let News::Session(_, _, SessionNews::Report(report, _place)) =
                heard.recv().await.unwrap()
            else {
                panic!("no report");
            };
            assert_eq!(report, SessionReport::Activity(n.to_string()));
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert!(heard.len() <= MOST_UNHEARD, "{}", heard.len());
        }
        saying.await.unwrap();
    }
}
