//! Watching a session without touching its bytes: which operation runs, what is built, and whether an error of our own
//! could be put into the server's stream without breaking it.
//!
//! Knows the operations that a build hook uses up to the end of its build (31, 44, 36). Anything else, and anything that
//! looks wrong, ends the watching for good; the passing of bytes does not depend on it. Source of the shapes:
//! `worker-protocol.hh`, `daemon.cc`, `remote-store.cc` and `logging.cc` of Nix 2.8 to 2.34, protocols 1.21 to 1.37.

use super::stderr;
use super::walk::{Item, Unexpected, Walk};
use super::wire::Version;

/// An operation that can be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// 31: which inputs does the guest have?
    QueryValidPaths,
    /// 44: take these inputs.
    AddMultipleToStore,
    /// 36: build this.
    BuildDerivation,
}

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
    /// The rest of the request; `None` when the client has sent all of it.
    request: Option<Walk>,
    server: Server,
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
}

/// A number, wanted as bytes: how an operation and a frame begin.
const TAG: &[Item] = &[Item::Number];
const NUMBER: &[Item] = &[Item::Number];
const STRING: &[Item] = &[Item::String];
const STRINGS: &[Item] = &[Item::List(STRING)];
const FIELDS: Item = Item::List(&[Item::Field]);

const QUERY_VALID_PATHS: &[Item] = &[Item::List(STRING), Item::Number];
const QUERY_VALID_PATHS_BEFORE_1_27: &[Item] = STRINGS;
/// Repair, no signature checks, then infos and NARs in frames.
const ADD_MULTIPLE_TO_STORE: &[Item] = &[Item::Number, Item::Number, Item::Frames];
const BUILD_DERIVATION: &[Item] = &[
    Item::Wanted,
    Item::List(&[Item::String, Item::String, Item::String, Item::String]), // outputs
    Item::List(STRING),                                                    // input sources
    Item::String,                                                          // platform
    Item::String,                                                          // builder
    Item::List(STRING),                                                    // arguments
    Item::List(&[Item::String, Item::String]),                             // environment
    Item::Number,                                                          // build mode
];

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

impl Operation {
    fn from_number(number: u64) -> Option<Self> {
        match number {
            31 => Some(Self::QueryValidPaths),
            36 => Some(Self::BuildDerivation),
            44 => Some(Self::AddMultipleToStore),
            _ => None,
        }
    }

    fn request(self, version: Version) -> &'static [Item] {
        match self {
            Self::QueryValidPaths if version.has(27) => QUERY_VALID_PATHS,
            Self::QueryValidPaths => QUERY_VALID_PATHS_BEFORE_1_27,
            Self::AddMultipleToStore => ADD_MULTIPLE_TO_STORE,
            Self::BuildDerivation => BUILD_DERIVATION,
        }
    }

    /// The reply's shape, as far as it is followed.
    fn reply(self) -> &'static [Item] {
        match self {
            Self::QueryValidPaths => STRINGS,
            Self::AddMultipleToStore | Self::BuildDerivation => &[],
        }
    }
}

impl Observer {
    /// Starts after the handshake in which `version` was agreed on.
    pub fn new(version: Version) -> Self {
        Self {
            version,
            state: State::Idle(Walk::new(TAG)),
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

    /// The operation that runs.
    pub fn operation(&self) -> Option<Operation> {
        match &self.state {
            State::Running(running) => Some(running.operation),
            State::Idle(_) | State::Off => None,
        }
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
                    if !running.walk_response(&mut bytes, self.version)? {
                        return Ok(());
                    }
                    events.push(Event::Ended(running.operation));
                    self.state = match (running.operation, &running.request) {
                        // A build's result has a shape that depends on too much; and after an error before the end of a
                        // request, its rest cannot be told from what follows.
                        (Operation::BuildDerivation, _) | (_, Some(_)) => State::Off,
                        (_, None) => State::Idle(Walk::new(TAG)),
                    };
                }
            }
        }
    }
}

impl Running {
    fn begin(number: u64, version: Version) -> Result<Self, Unexpected> {
        let operation = Operation::from_number(number).ok_or(Unexpected)?;
        Ok(Self {
            operation,
            request: Some(Walk::new(operation.request(version))),
            server: Server::Boundary,
        })
    }

    fn walk_request(
        &mut self,
        bytes: &mut &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), Unexpected> {
        // A client waits for the reply before it goes on.
        let walk = self.request.as_mut().ok_or(Unexpected)?;
        if walk.advance(bytes)? {
            if self.operation == Operation::BuildDerivation {
                let path = String::from_utf8_lossy(walk.wanted()).into_owned();
                events.push(Event::Building(path));
            }
            self.request = None;
        }
        Ok(())
    }

    /// True at the end of the response.
    fn walk_response(&mut self, bytes: &mut &[u8], version: Version) -> Result<bool, Unexpected> {
        loop {
            match &mut self.server {
                Server::Boundary if bytes.is_empty() => return Ok(false),
                Server::Boundary => self.server = Server::Tag(Walk::new(TAG)),
                Server::Tag(walk) => {
                    if !walk.advance(bytes)? {
                        return Ok(false);
                    }
                    self.server = self.operation.after_tag(walk.last_number(), version)?;
                }
                Server::Frame(walk) => {
                    if !walk.advance(bytes)? {
                        return Ok(false);
                    }
                    self.server = Server::Boundary;
                }
                Server::Error(walk) | Server::Reply(walk) => return walk.advance(bytes),
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
            stderr::LAST => Ok(Server::Reply(Walk::new(self.reply()))),
            // `READ` among them: the client would answer outside of its request.
            _ => Err(Unexpected),
        }
    }
}

#[cfg(test)]
mod tests;
