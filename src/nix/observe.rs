//! Watching a session without touching its bytes: which operation runs, what is built and fetched, what a build logs, and
//! whether an error of our own could be put into the server's stream without breaking it.
//!
//! Knows the operations that a build hook uses: it asks which inputs are there (31), uploads the others (44), builds (36),
//! and copies the outputs (26, 38); and those of the commands that use a builder as a store: `nix copy`, `nix path-info`, and
//! `nix-build --store`. Anything else, and anything that looks wrong, ends the watching for good. Whether bytes pass is not
//! decided here. Source of the frames: `worker-protocol.hh`, `daemon.cc` and `logging.cc` of Nix 2.8 to 2.34,
//! protocols 1.21 to 1.37.

mod log;
mod operation;
mod outputs;
mod result;
mod running;

use super::store_path::StorePath;
use super::walk::{Unexpected, Walk};
use super::wire::Version;
use outputs::Outputs;
use result::is_success;
use running::{Ending, Request, Running, TAG};

pub use log::{BuildLog, MAX_LINE, MAX_LINES};
pub use operation::Operation;
pub use result::BuildResult;

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The client began an operation.
    Started(Operation),
    /// The client has asked for a build.
    Building(Building),
    /// The build ended.
    Built(BuildResult),
    /// The client was sent a path in full.
    Fetched {
        /// As it asked for it.
        path: String,
        /// The size of its NAR, in bytes.
        size: u64,
    },
    /// The operation ended, with a reply or with an error from the server.
    Ended(Operation),
}

/// What is to be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Building {
    /// The derivation: `/nix/store/…-hello-2.12.drv`.
    pub derivation: String,
    /// Its outputs' paths, of those that are known before the build.
    pub outputs: Vec<StorePath>,
}

/// Watches both directions of one session, from the first byte after the handshake.
#[derive(Debug)]
pub struct Observer {
    version: Version,
    state: State,
    outputs: Outputs,
    log: BuildLog,
}

#[derive(Debug)]
enum State {
    /// Between operations: the next thing is an operation's number from the client.
    Idle(Box<Walk>),
    Running(Box<Running>),
    /// No longer watching.
    Off,
}

impl Observer {
    /// Starts after the handshake in which `version` was agreed on.
    pub fn new(version: Version) -> Self {
        Self {
            version,
            state: State::Idle(Box::new(Walk::new(TAG))),
            outputs: Outputs::Nothing,
            log: BuildLog::default(),
        }
    }

    /// Whether an error could be sent to the client now such that it is understood: an operation runs, and the server's
    /// stream is exactly between two frames. Holds only once all that was given to [`Self::from_server`] was passed on.
    pub fn error_can_be_sent(&self) -> bool {
        let State::Running(running) = &self.state else {
            return false;
        };
        running.is_between_frames()
    }

    /// Whether the server sends frames between which something could be put in, or is about to: not its reply.
    pub fn is_among_frames(&self) -> bool {
        matches!(&self.state, State::Running(running) if running.is_among_frames())
    }

    /// Whether what the client sends is still understood. Never again once it was not.
    pub fn is_watching(&self) -> bool {
        !matches!(self.state, State::Off)
    }

    /// The operation that runs. As soon as its number has arrived in full, and none while only a part of it has.
    pub fn operation(&self) -> Option<Operation> {
        match &self.state {
            State::Running(running) => Some(running.operation),
            State::Idle(_) | State::Off => None,
        }
    }

    /// Whether the server may have outputs that the client has not. Known from a build that worked to the end of the last
    /// output's NAR, where a derivation says which paths it has.
    ///
    /// Yes whenever it is not known: where only the build finds its outputs' paths, after something that is not watched, and
    /// when the client asks for what another session has built. Such a session fetches one output of several, and cannot
    /// tell whether it was the last.
    pub fn outputs_remain(&self) -> bool {
        matches!(self.state, State::Off) || self.outputs.remain()
    }

    /// What the build that runs has logged, or the last one that ran.
    pub fn build_log(&self) -> &BuildLog {
        &self.log
    }

    /// Looks at bytes from the client, in order, before they are passed on.
    pub fn from_client(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        if self.walk_client(bytes, &mut events).is_err() {
            self.state = State::Off;
        }
        events
    }

    /// Looks at bytes from the server, in order, before they are passed on.
    pub fn from_server(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        if self.walk_server(bytes, &mut events).is_err() {
            self.state = State::Off;
        }
        events
    }

    fn walk_client(&mut self, mut bytes: &[u8], events: &mut Vec<Event>) -> Result<(), Unexpected> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Off => return Ok(()),
                State::Idle(walk) => {
                    if walk.advance(&mut bytes)? {
                        let running = Running::begin(walk.last_number(), self.version)?;
                        self.outputs.note_start(running.operation);
                        events.push(Event::Started(running.operation));
                        self.state = State::Running(Box::new(running));
                    }
                }
                State::Running(running) => {
                    let operation = running.operation;
                    if let Some(wanted) = running.walk_request(&mut bytes)?
                        && let Some(building) = building(operation, wanted)
                    {
                        self.log.clear();
                        events.push(Event::Building(building));
                    }
                }
            }
        }
        Ok(())
    }

    fn walk_server(&mut self, mut bytes: &[u8], events: &mut Vec<Event>) -> Result<(), Unexpected> {
        loop {
            match &mut self.state {
                // A server says nothing unasked.
                State::Idle(_) if !bytes.is_empty() => return Err(Unexpected),
                State::Idle(_) | State::Off => return Ok(()),
                State::Running(running) => {
                    let Some(ending) =
                        running.walk_response(&mut bytes, self.version, &mut self.log)?
                    else {
                        return Ok(());
                    };
                    events.extend(outcome(running, ending));
                    events.push(Event::Ended(running.operation));
                    self.state = match &running.request {
                        Request::Sent(wanted) => {
                            self.outputs.note(running, wanted, ending);
                            State::Idle(Box::new(Walk::new(TAG)))
                        }
                        // After an error before the end of a request, its rest cannot be told from what follows.
                        Request::Sending(_) => State::Off,
                    };
                }
            }
        }
    }
}

impl Outputs {
    /// An operation begins.
    fn note_start(&mut self, operation: Operation) {
        if operation.asks_for_outputs() {
            self.asked_for();
        }
        // Their derivations are in the store, and their paths are not looked at.
        if let Operation::BuildPaths | Operation::BuildPathsWithResults = operation {
            *self = Self::Unknown;
        }
    }

    /// An operation has ended; `wanted` is what was wanted of its request.
    fn note(&mut self, running: &Running, wanted: &[Vec<u8>], ending: Ending) {
        let number = running.response.wanted_numbers().first().copied().flatten();
        match (running.operation, ending, wanted) {
            (Operation::BuildDerivation, Ending::Replied, [_, paths @ ..])
                if number.is_some_and(is_success) =>
            {
                self.built(paths);
            }
            (Operation::NarFromPath, Ending::Replied, [path]) => self.fetched(path),
            _ => {}
        }
    }
}

/// What a request that was sent asks to be built.
fn building(operation: Operation, wanted: &[Vec<u8>]) -> Option<Building> {
    let (Operation::BuildDerivation, [derivation, outputs @ ..]) = (operation, wanted) else {
        return None;
    };
    let known = outputs.iter().filter_map(|path| StorePath::parse(path));
    Some(Building {
        derivation: String::from_utf8_lossy(derivation).into_owned(),
        outputs: known.collect(),
    })
}

/// What came of an operation that has ended, where that is of interest.
fn outcome(running: &Running, ending: Ending) -> Option<Event> {
    let response = &running.response;
    match (running.operation, ending, &running.request) {
        (Operation::BuildDerivation, Ending::Replied, _) => {
            Some(Event::Built(BuildResult::of_reply(response)))
        }
        (Operation::BuildDerivation, Ending::Failed, _) => {
            Some(Event::Built(BuildResult::of_error(response)))
        }
        (Operation::NarFromPath, Ending::Replied, Request::Sent(wanted)) => {
            let path = wanted.first()?;
            Some(Event::Fetched {
                path: String::from_utf8_lossy(path).into_owned(),
                size: running.n_nar,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
