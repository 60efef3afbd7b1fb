//! The builds of a system: those that run, and the last that ended.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::counters::BuildCounters;
use super::events::{Events, Happening, wall_clock};
use super::report::{BuildBegan, BuildEnded, BuildProgress, SessionReport};
use super::session::ManagedSession;
use super::status::{BuildOutcome, BuildView, CpuTime};
use crate::nix::System;
use crate::pool::SessionId;

/// How many builds that have ended are remembered: a day's work of a person, a few megabytes.
const MAX_ENDED: usize = 200;

/// How long a process that was killed for want of memory may be why its build fails, in seconds: what it was a part of says so at once. A
/// configure script that has tried how much there is goes on.
const BLAMED_FOR_S: u64 = 15;

/// Numbers for builds, no two alike.
pub(super) type BuildIds = Arc<AtomicU64>;

/// The builds of a system.
pub(super) struct Builds {
    system: System,
    ids: BuildIds,
    events: Events,
    /// A session has one build at a time.
    running: BTreeMap<SessionId, BuildView>,
    /// The process that was killed last for want of memory in the VM of a build that runs, and when, in seconds since the epoch.
    killed: BTreeMap<SessionId, (String, u64)>,
    /// The oldest first.
    ended: VecDeque<BuildView>,
    counters: BuildCounters,
}

impl Builds {
    pub(super) fn new(system: System, ids: BuildIds, events: Events) -> Self {
        Self {
            system,
            ids,
            events,
            running: BTreeMap::new(),
            killed: BTreeMap::new(),
            ended: VecDeque::new(),
            counters: BuildCounters::default(),
        }
    }

    /// Where they are told of.
    pub(super) fn events(&self) -> &Events {
        &self.events
    }

    /// All that have ended, in numbers.
    pub(super) fn counters(&self) -> &BuildCounters {
        &self.counters
    }

    /// All that are remembered, the oldest begin first.
    pub(super) fn views(&self) -> Vec<BuildView> {
        let all = self.ended.iter().chain(self.running.values());
        let mut views: Vec<BuildView> = all.cloned().collect();
        views.sort_by_key(|build| build.id);
        views
    }

    /// Takes note of what a session on a VM of this name tells.
    pub(super) fn note(
        &mut self,
        id: SessionId,
        session: &ManagedSession,
        vm: &str,
        report: &SessionReport,
    ) {
        match report {
            SessionReport::BuildBegan(began) => self.begin(id, session, vm, began),
            SessionReport::Progress(progress) => self.progress(id, progress),
            SessionReport::BuildEnded(BuildEnded { failure, cpu }) => {
                let outcome = match failure {
                    None => BuildOutcome::Built,
                    Some(failure) => failed(failure),
                };
                let cpu = cpu.map(|(user, system)| CpuTime {
                    user_ms: u64::try_from(user.as_millis()).unwrap_or(u64::MAX),
                    system_ms: u64::try_from(system.as_millis()).unwrap_or(u64::MAX),
                });
                self.end(id, outcome, cpu);
            }
            SessionReport::Activity(_)
            | SessionReport::Fetched(_)
            | SessionReport::NotUnderstood => {}
        }
    }

    /// A session is over, and with it a build that has not ended before.
    pub(super) fn session_ended(&mut self, id: SessionId, why: &str) {
        self.end(id, failed(why), None);
    }

    /// Memory ran out in a session's VM, and a process of this name was killed.
    pub(super) fn out_of_memory(&mut self, id: SessionId, process: &str) {
        if self.running.contains_key(&id) {
            self.killed.insert(id, (process.to_owned(), wall_clock()));
        }
    }

    fn begin(&mut self, id: SessionId, session: &ManagedSession, vm: &str, began: &BuildBegan) {
        self.session_ended(id, "the session went on to another build");
        let build = BuildView {
            id: self.ids.fetch_add(1, Ordering::Relaxed) + 1,
            session: id.0,
            system: self.system,
            vm: vm.to_owned(),
            slot: session.request.slot.clone(),
            client: session.request.client.clone(),
            derivation: began.derivation.clone(),
            outputs: began.outputs.clone(),
            progress: BuildProgress::default(),
            began: wall_clock(),
            ended: None,
            outcome: None,
            cpu: None,
        };
        self.events.tell(|| Happening::BuildBegan(build.clone()));
        self.running.insert(id, build);
    }

    /// What passes after the end of a build are its outputs.
    fn progress(&mut self, id: SessionId, progress: &BuildProgress) {
        let ended = self.ended.iter_mut().rev();
        let build = self
            .running
            .get_mut(&id)
            .or_else(|| ended.into_iter().find(|build| build.session == id.0));
        let Some(build) = build else { return };
        build.progress.clone_from(progress);
        let id = build.id;
        self.events.tell(|| Happening::Progress {
            id,
            progress: progress.clone(),
        });
    }

    fn end(&mut self, id: SessionId, outcome: BuildOutcome, cpu: Option<CpuTime>) {
        let Some(build) = self.running.remove(&id) else {
            return;
        };
        let now = wall_clock();
        let killed = self.killed.remove(&id);
        let killed = killed.filter(|(_, at)| now.saturating_sub(*at) <= BLAMED_FOR_S);
        let outcome = match (outcome, killed) {
            (BuildOutcome::Failed { because }, Some((process, _))) => BuildOutcome::Failed {
                because: format!("out of memory: `{process}` was killed; {because}"),
            },
            (outcome, _) => outcome,
        };
        let build = BuildView {
            ended: Some(now),
            outcome: Some(outcome),
            cpu,
            ..build
        };
        self.counters.note(&build);
        self.events.tell(|| Happening::BuildEnded(build.clone()));
        if self.ended.len() == MAX_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(build);
    }
}

fn failed(why: &str) -> BuildOutcome {
    BuildOutcome::Failed {
        because: why.to_owned(),
    }
}
