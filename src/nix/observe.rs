//! Watching a session without touching its bytes: which operation runs, what is built and fetched, and whether an error of
//! our own could be put into the server's stream without breaking it.
//!
//! Knows the operations that a build hook uses: it asks which inputs are there (31), uploads the others (44), builds (36),
//! and copies the outputs (26, 38); and those of the commands that use a builder as a store: `nix copy`, `nix path-info`, and
//! `nix-build --store`. Anything else, and anything that looks wrong, ends the watching for good. Whether bytes pass is not
//! decided here. Source of the frames: `worker-protocol.hh`, `daemon.cc` and `logging.cc` of Nix 2.8 to 2.34,
//! protocols 1.21 to 1.37.

mod operation;
mod outputs;

use super::nar_walk::NarWalk;
use super::stderr;
use super::walk::{Item, Unexpected, Walk};
use super::wire::Version;
use operation::{Reply, is_success};
use outputs::Outputs;

pub use operation::Operation;

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The client began an operation.
    Started(Operation),
    /// The derivation that is to be built: `/nix/store/…-hello-2.12.drv`.
    Building(String),
    /// The operation ended, with a reply or with an error from the server.
    Ended(Operation),
}

/// Watches both directions of one session, from the first byte after the handshake.
#[derive(Debug)]
pub struct Observer {
    version: Version,
    state: State,
    outputs: Outputs,
}

#[derive(Debug)]
enum State {
    /// Between operations: the next thing is an operation's number from the client.
    Idle(Walk),
    Running(Running),
    /// No longer watching.
    Off,
}

#[derive(Debug)]
struct Running {
    operation: Operation,
    request: Request,
    server: Server,
}

#[derive(Debug)]
enum Request {
    /// The client still sends it.
    Sending(Walk),
    /// All of it was sent; these are the strings that were wanted of it.
    Sent(Vec<Vec<u8>>),
}

/// Where the server's stream is while an operation runs.
#[derive(Debug)]
enum Server {
    /// Exactly between two frames.
    Boundary,
    /// In a frame's number.
    Tag(Walk),
    /// In a frame after which more come.
    Frame(Walk),
    /// In the error that ends the operation.
    Error(Walk),
    /// In the reply after `LAST`.
    Reply(Walk),
    /// In the reply after `LAST`, which is a NAR.
    Nar(NarWalk),
}

/// How an operation ended.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Failed,
    /// With the number that was wanted of the reply.
    Replied(Option<u64>),
}

/// How an operation and a frame begin.
const TAG: &[Item] = &[Item::Number];
const NUMBER: &[Item] = &[Item::Number];
const STRING: &[Item] = &[Item::String];
const FIELDS: Item = Item::List(&[Item::Field]);

const START_ACTIVITY: &[Item] = &[
    Item::Number,
    Item::Number,
    Item::Number,
    Item::String,
    FIELDS,
    Item::Number,
];
const RESULT: &[Item] = &[Item::Number, Item::Number, FIELDS];
const ERROR: &[Item] = &[
    Item::String,
    Item::Number,
    Item::String,
    Item::String,
    Item::Number,
    Item::List(&[Item::Number, Item::String]),
];
const ERROR_BEFORE_1_26: &[Item] = &[Item::String, Item::Number];

impl Observer {
    /// Starts after the handshake in which `version` was agreed on.
    pub fn new(version: Version) -> Self {
        Self {
            version,
            state: State::Idle(Walk::new(TAG)),
            outputs: Outputs::Nothing,
        }
    }

    /// Whether an error could be sent to the client now such that it is understood: an operation runs, and the server's
    /// stream is exactly between two frames. Holds only once all that was given to [`Self::from_server`] was passed on.
    pub fn error_can_be_sent(&self) -> bool {
        let State::Running(running) = &self.state else {
            return false;
        };
        matches!(running.server, Server::Boundary)
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
                        self.state = State::Running(running);
                    }
                }
                State::Running(running) => running.walk_request(&mut bytes, events)?,
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
                    let Some(ending) = running.walk_response(&mut bytes, self.version)? else {
                        return Ok(());
                    };
                    events.push(Event::Ended(running.operation));
                    self.state = match &running.request {
                        Request::Sent(wanted) => {
                            self.outputs.note(running.operation, wanted, ending);
                            State::Idle(Walk::new(TAG))
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
    fn note(&mut self, operation: Operation, wanted: &[Vec<u8>], ending: Ending) {
        match (operation, ending, wanted) {
            (Operation::BuildDerivation, Ending::Replied(Some(status)), [_, paths @ ..])
                if is_success(status) =>
            {
                self.built(paths);
            }
            (Operation::NarFromPath, Ending::Replied(_), [path]) => self.fetched(path),
            _ => {}
        }
    }
}

impl Running {
    fn begin(number: u64, version: Version) -> Result<Self, Unexpected> {
        let operation = Operation::from_number(number)
            .filter(|operation| operation.has_shape(version))
            .ok_or(Unexpected)?;
        Ok(Self {
            operation,
            request: Request::Sending(Walk::new(operation.request(version))),
            server: Server::Boundary,
        })
    }

    fn walk_request(
        &mut self,
        bytes: &mut &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), Unexpected> {
        let Request::Sending(walk) = &mut self.request else {
            // A client waits for the reply before it goes on.
            return Err(Unexpected);
        };
        if walk.advance(bytes)? {
            if let (Operation::BuildDerivation, [drv, ..]) = (self.operation, walk.wanted()) {
                let path = String::from_utf8_lossy(drv).into_owned();
                events.push(Event::Building(path));
            }
            self.request = Request::Sent(walk.wanted().to_vec());
        }
        Ok(())
    }

    /// How the operation ended, at the end of the response.
    fn walk_response(
        &mut self,
        bytes: &mut &[u8],
        version: Version,
    ) -> Result<Option<Ending>, Unexpected> {
        loop {
            match &mut self.server {
                Server::Boundary if bytes.is_empty() => return Ok(None),
                Server::Boundary => self.server = Server::Tag(Walk::new(TAG)),
                Server::Tag(walk) => {
                    if !walk.advance(bytes)? {
                        return Ok(None);
                    }
                    self.server = self.operation.after_tag(walk.last_number(), version)?;
                }
                Server::Frame(walk) => {
                    if !walk.advance(bytes)? {
                        return Ok(None);
                    }
                    self.server = Server::Boundary;
                }
                Server::Error(walk) => return Ok(walk.advance(bytes)?.then_some(Ending::Failed)),
                Server::Reply(walk) => {
                    let ended = walk.advance(bytes)?;
                    return Ok(ended.then(|| Ending::Replied(walk.wanted_number())));
                }
                Server::Nar(nar) => {
                    let ended = nar.advance(bytes)?;
                    return Ok(ended.then_some(Ending::Replied(None)));
                }
            }
        }
    }
}

impl Operation {
    /// What follows a frame's number.
    fn after_tag(self, tag: u64, version: Version) -> Result<Server, Unexpected> {
        let frame = |items| Ok(Server::Frame(Walk::new(items)));
        match tag {
            stderr::NEXT | stderr::WRITE => frame(STRING),
            stderr::START_ACTIVITY => frame(START_ACTIVITY),
            stderr::STOP_ACTIVITY => frame(NUMBER),
            stderr::RESULT => frame(RESULT),
            stderr::ERROR if version.has(26) => Ok(Server::Error(Walk::new(ERROR))),
            stderr::ERROR => Ok(Server::Error(Walk::new(ERROR_BEFORE_1_26))),
            stderr::LAST => Ok(match self.reply(version) {
                Reply::Items(items) => Server::Reply(Walk::new(items)),
                Reply::Nar => Server::Nar(NarWalk::new()),
            }),
            // `READ` among them: the client would answer outside of its request.
            _ => Err(Unexpected),
        }
    }
}

#[cfg(test)]
mod tests;
