//! What is seen of a session whose bytes pass, which of the client's may not, and what of it the manager has not been told.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::limits::{Limit, Reached};
use super::outbox::Outbox;
use crate::manager::ticket::{
    BuildBegan, BuildEnded, BuildLimits, BuildProgress, Reports, SessionReport,
};
use crate::nix::observe::{BuildResult, Event, Observer, Operation};
use crate::nix::stderr;
use crate::nix::store_path::StorePath;

/// What is said of a build of which nothing more is understood.
const UNWATCHED: &str = "not known: what the client or the guest sent is not understood";

/// Lines for the client are few; beyond this many bytes they are dropped.
const MOST_NOTES: usize = 4096;

/// What both directions know of the session. A lock rather than messages: both look at every chunk, on one task, so it
/// is never contended, and it is never held across an await.
pub(super) struct Watch {
    observed: Mutex<Observed>,
    /// Whether the client may only fetch.
    fetch_only: bool,
    /// Told when there is something to tell the manager.
    news: Notify,
    /// Told when there is something to tell the client.
    notes: Notify,
}

struct Observed {
    observer: Observer,
    /// Whether the client has received all that the observer has seen from the guest.
    client_is_current: bool,
    was_building: bool,
    /// Whether no more is passed to the client once an error could be put in.
    stops: bool,
    /// What the client is told where a line can be put in.
    notes: Vec<u8>,
    build: Option<RunningBuild>,
    bytes_in: u64,
    bytes_out: u64,
    outbox: Outbox,
}

struct RunningBuild {
    derivation: String,
    began: Instant,
    /// When it last gave a sign of life, and how many there were until then.
    last_sign: Instant,
    n_signs: u64,
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
    pub(super) fn new(observer: Observer, fetch_only: bool) -> Self {
        let seen = Observed {
            observer,
            client_is_current: true,
            was_building: false,
            stops: false,
            notes: Vec::new(),
            build: None,
            bytes_in: 0,
            bytes_out: 0,
            outbox: Outbox::default(),
        };
        Self {
            observed: Mutex::new(seen),
            fetch_only,
            news: Notify::new(),
            notes: Notify::new(),
        }
    }

    /// Looks at what the client sends before it goes on. Everything goes on, whatever it is, unless the client may only
    /// fetch.
    pub(super) fn admit(&self, bytes: &[u8]) -> Admission {
        let mut observed = self.lock();
        observed.bytes_in += bytes.len() as u64;
        let events = observed.observer.from_client(bytes);
        self.note(&mut observed, events);
        if self.fetch_only {
            admission(&observed.observer)
        } else {
            Admission::Pass
        }
    }

    /// Looks at what the guest sends before it goes on, and says how much of it does; see [`Self::client_has_all`].
    pub(super) fn see_guest(&self, bytes: &[u8]) -> usize {
        let mut observed = self.lock();
        observed.client_is_current = false;
        let looks_for_a_place = !observed.notes.is_empty() && observed.observer.is_among_frames();
        let (events, n_passed) = if observed.stops || looks_for_a_place {
            up_to_boundary(&mut observed.observer, bytes)
        } else {
            (observed.observer.from_server(bytes), bytes.len())
        };
        observed.bytes_out += n_passed as u64;
        self.note(&mut observed, events);
        n_passed
    }

    /// A line for the client, at the next place where one can be put in.
    pub(super) fn note_for_client(&self, text: &str) {
        let mut observed = self.lock();
        // Without a place for it nothing is kept for one.
        if observed.observer.is_watching() && observed.notes.len() < MOST_NOTES {
            let line = stderr::line(&format!("xpool: {text}"));
            observed.notes.extend(line);
            self.notes.notify_one();
        }
    }

    /// Returns when there may be such a line.
    pub(super) async fn has_note(&self) {
        self.notes.notified().await;
    }

    /// Such lines, where they can be put in after all that was seen from the guest, which the client has received.
    pub(super) fn take_notes(&self) -> Vec<u8> {
        let mut observed = self.lock();
        if observed.observer.error_can_be_sent() {
            std::mem::take(&mut observed.notes)
        } else {
            Vec::new()
        }
    }

    /// Notes that the client has received all that was seen from the guest.
    pub(super) fn client_has_all(&self) {
        self.lock().client_is_current = true;
    }

    /// Whether the client has received all that was seen from the guest.
    pub(super) fn client_is_current(&self) -> bool {
        self.lock().client_is_current
    }

    /// Ends the passing to the client at the next place where an error can be put in.
    pub(super) fn stop(&self) {
        self.lock().stops = true;
    }

    /// Whether what was seen from the guest ends at that place.
    pub(super) fn stops_here(&self) -> bool {
        let observed = self.lock();
        observed.stops && observed.observer.error_can_be_sent()
    }

    /// Whether that place was reached, and the client has received all that was before it.
    pub(super) fn has_stopped(&self) -> bool {
        self.stops_here() && self.client_is_current()
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

    /// The limit that the build that runs reaches next, unless it says something before.
    pub(super) fn next_limit(&self, limits: BuildLimits) -> Option<Reached> {
        let observed = self.lock();
        let build = observed.build.as_ref()?;
        let reached = |limit: Limit, since: Instant| Reached {
            at: since + limit.duration(),
            limit,
            derivation: build.derivation.clone(),
        };
        let timeout = limits
            .timeout
            .map(|time| reached(Limit::Timeout(time), build.began));
        let silence = limits
            .max_silent_time
            .map(|time| reached(Limit::Silence(time), build.last_sign));
        timeout
            .into_iter()
            .chain(silence)
            .min_by_key(|reached| reached.at)
    }

    /// Notes that the session ends, and with it a build that runs.
    pub(super) fn end(&self, why: &str) {
        let mut observed = self.lock();
        observed.end_build(why);
        observed.tell_progress();
    }

    /// Returns when there is something new to tell the manager.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// Puts the progress that there is among what the manager is told.
    pub(super) fn tell_progress(&self) {
        self.lock().tell_progress();
    }

    /// Tells the manager what it has room for. True if some is left.
    pub(super) fn send(&self, reports: &Reports) -> bool {
        self.lock().outbox.send(reports)
    }

    /// Takes note of what was seen in a chunk.
    fn note(&self, observed: &mut Observed, events: Vec<Event>) {
        let is_news = !events.is_empty() || !observed.outbox.has_progress;
        observed.outbox.has_progress = true;
        for event in events {
            observed.note(event);
        }
        observed.note_signs();
        if is_news {
            self.news.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observed {
    fn note(&mut self, event: Event) {
        if let Some(activity) = activity(&event) {
            self.outbox.tell(SessionReport::Activity(activity));
        }
        match event {
            Event::Building(building) => {
                let now = Instant::now();
                self.was_building = true;
                self.build = Some(RunningBuild {
                    derivation: drv_name(&building.derivation).escape_debug().to_string(),
                    began: now,
                    last_sign: now,
                    n_signs: self.observer.build_log().n_signs(),
                });
                self.outbox.tell(SessionReport::BuildBegan(BuildBegan {
                    derivation: building.derivation,
                    outputs: building.outputs,
                }));
            }
            Event::Built(BuildResult { failure, cpu, .. }) => {
                if self.build.take().is_some() {
                    self.tell_progress();
                    self.outbox
                        .tell(SessionReport::BuildEnded(BuildEnded { failure, cpu }));
                }
            }
            Event::Fetched { path, .. } => {
                if let Some(path) = StorePath::parse(path.as_bytes()) {
                    self.outbox.tell(SessionReport::Fetched(path));
                }
            }
            Event::Started(_) | Event::Ended(_) => {}
        }
    }

    /// Takes note of whether the build has said something.
    fn note_signs(&mut self) {
        if !self.observer.is_watching() {
            self.end_build(UNWATCHED);
        }
        let n_signs = self.observer.build_log().n_signs();
        if let Some(build) = &mut self.build
            && build.n_signs != n_signs
        {
            build.n_signs = n_signs;
            build.last_sign = Instant::now();
        }
    }

    fn end_build(&mut self, why: &str) {
        if self.build.take().is_some() {
            self.tell_progress();
            self.outbox.tell(SessionReport::BuildEnded(BuildEnded {
                failure: Some(why.to_owned()),
                cpu: None,
            }));
        }
    }

    fn tell_progress(&mut self) {
        if !self.outbox.has_progress {
            return;
        }
        self.outbox.has_progress = false;
        let log = self.observer.build_log();
        let progress = BuildProgress {
            phase: log.phase().map(str::to_owned),
            last_lines: log.lines(),
            n_lines: log.n_lines(),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
        };
        self.outbox.tell(SessionReport::Progress(progress));
    }
}

/// Looks at what the guest sends as far as the next place where an error can be put in; and how far that is.
fn up_to_boundary(observer: &mut Observer, bytes: &[u8]) -> (Vec<Event>, usize) {
    let mut events = Vec::new();
    for (n_before, byte) in bytes.iter().enumerate() {
        if observer.error_can_be_sent() {
            return (events, n_before);
        }
        events.extend(observer.from_server(&[*byte]));
    }
    (events, bytes.len())
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

/// What a person would call it.
fn activity(event: &Event) -> Option<String> {
    match event {
        Event::Building(building) => {
            let name = drv_name(&building.derivation);
            Some(format!("building {}", name.escape_debug()))
        }
        Event::Started(Operation::QueryValidPaths) => Some("looking for inputs".to_owned()),
        Event::Started(Operation::AddMultipleToStore) => Some("copying inputs".to_owned()),
        Event::Started(Operation::NarFromPath) | Event::Ended(Operation::BuildDerivation) => {
            Some("copying outputs".to_owned())
        }
        Event::Started(_) | Event::Ended(_) | Event::Built(_) | Event::Fetched { .. } => None,
    }
}

/// `hello-2.12.drv` of `/nix/store/8bz3i8cqlvgmgsv2njsm40kwqjb3f8ys-hello-2.12.drv`.
fn drv_name(path: &str) -> &str {
    let base = path.rsplit('/').next().unwrap_or(path);
    base.split_once('-').map_or(base, |(_, name)| name)
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
