//! One operation while it runs: where its request and its response are.
//!
//! What a build logs is kept here as its frames pass, in one walk that all frames share: nothing is allocated for a line.

use super::log::BuildLog;
use super::operation::{Operation, Reply};
use crate::nix::nar_walk::NarWalk;
use crate::nix::stderr;
use crate::nix::walk::{Item, Unexpected, Walk};
use crate::nix::wire::Version;

/// An operation that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) operation: Operation,
    pub(super) request: Request,
    server: Server,
    /// In the frame, the error or the reply that the server is in.
    pub(super) response: Walk,
    /// Bytes of the NAR that is the reply.
    pub(super) n_nar: u64,
}

/// Where the client's stream is.
#[derive(Debug)]
pub(super) enum Request {
    /// The client still sends it.
    Sending(Box<Walk>),
    /// All of it was sent; these are the strings that were wanted of it.
    Sent(Vec<Vec<u8>>),
}

/// Where the server's stream is.
#[derive(Debug)]
enum Server {
    /// Exactly between two frames.
    Boundary,
    /// In a frame's number.
    Tag,
    /// In a frame after which more come.
    Frame(Frame),
    /// In the error that ends the operation.
    Error,
    /// In the reply after `LAST`.
    Reply,
    /// In the reply after `LAST`, which is a NAR.
    Nar(Box<NarWalk>),
}

/// What a frame after which more come has for us.
#[derive(Clone, Copy, Debug)]
enum Frame {
    /// A line for the person who waits. During a build of an older Nix (2.3, `flushLine`), one of its log.
    Line,
    /// News of an activity, which may be a line of the log.
    Result,
    Other,
}

/// How an operation ended; what was wanted of it is in the response's walk.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    Failed,
    Replied,
}

/// How an operation and a frame begin.
pub(super) const TAG: &[Item] = &[Item::Number];
const NUMBER: &[Item] = &[Item::Number];
const STRING: &[Item] = &[Item::String];
const LINE: &[Item] = &[Item::Wanted];
const FIELDS: Item = Item::List(&[Item::Field]);

const START_ACTIVITY: &[Item] = &[
    Item::Number,
    Item::Number,
    Item::Number,
    Item::String,
    FIELDS,
    Item::Number,
];
/// Of which activity, what kind of news, and what.
const RESULT: &[Item] = &[
    Item::Number,
    Item::WantedNumber,
    Item::List(&[Item::WantedField]),
];
const ERROR: &[Item] = &[
    Item::String,
    Item::Number,
    Item::String,
    Item::Wanted,
    Item::Number,
    Item::List(&[Item::Number, Item::String]),
];
const ERROR_BEFORE_1_26: &[Item] = &[Item::Wanted, Item::Number];

/// Kinds of news (`ResultType` in `logging.hh`): a line of a build's log, and the phase that it is in.
const BUILD_LOG_LINE: u64 = 101;
const SET_PHASE: u64 = 104;

impl Running {
    /// Begins with an operation's number.
    pub(super) fn begin(number: u64, version: Version) -> Result<Self, Unexpected> {
        let operation = Operation::from_number(number)
            .filter(|operation| operation.has_shape(version))
            .ok_or(Unexpected)?;
        Ok(Self {
            operation,
            request: Request::Sending(Box::new(Walk::new(operation.request(version)))),
            server: Server::Boundary,
            response: Walk::new(TAG),
            n_nar: 0,
        })
    }

    /// Whether the server sends frames: the reply has not begun.
    pub(super) fn is_among_frames(&self) -> bool {
        matches!(
            self.server,
            Server::Boundary | Server::Tag | Server::Frame(_)
        )
    }

    /// Whether the server's stream is exactly between two frames.
    pub(super) fn is_between_frames(&self) -> bool {
        matches!(self.server, Server::Boundary)
    }

    /// The strings that were wanted of the request, at its end.
    pub(super) fn walk_request(
        &mut self,
        bytes: &mut &[u8],
    ) -> Result<Option<&[Vec<u8>]>, Unexpected> {
        let Request::Sending(walk) = &mut self.request else {
            // A client waits for the reply before it goes on.
            return Err(Unexpected);
        };
        if !walk.advance(bytes)? {
            return Ok(None);
        }
        self.request = Request::Sent(walk.wanted().to_vec());
        match &self.request {
            Request::Sent(wanted) => Ok(Some(wanted)),
            Request::Sending(_) => Ok(None),
        }
    }

    /// How the operation ended, at the end of the response. What is logged meanwhile is kept in `log`.
    pub(super) fn walk_response(
        &mut self,
        bytes: &mut &[u8],
        version: Version,
        log: &mut BuildLog,
    ) -> Result<Option<Ending>, Unexpected> {
        loop {
            match &mut self.server {
                Server::Boundary if bytes.is_empty() => return Ok(None),
                Server::Boundary => self.go_on(Server::Tag, TAG),
                Server::Tag => {
                    if !self.response.advance(bytes)? {
                        return Ok(None);
                    }
                    self.after_tag(self.response.last_number(), version)?;
                }
                Server::Frame(frame) => {
                    if !self.response.advance(bytes)? {
                        return Ok(None);
                    }
                    let frame = *frame;
                    self.server = Server::Boundary;
                    if self.operation == Operation::BuildDerivation {
                        self.keep(frame, log);
                    }
                }
                Server::Error => {
                    return Ok(self.response.advance(bytes)?.then_some(Ending::Failed));
                }
                Server::Reply => {
                    return Ok(self.response.advance(bytes)?.then_some(Ending::Replied));
                }
                Server::Nar(nar) => {
                    let before = bytes.len();
                    let ended = nar.advance(bytes)?;
                    self.n_nar += (before - bytes.len()) as u64;
                    return Ok(ended.then_some(Ending::Replied));
                }
            }
        }
    }

    fn go_on(&mut self, server: Server, items: &'static [Item]) {
        self.server = server;
        self.response.restart(items);
    }

    /// Goes on after a frame's number.
    fn after_tag(&mut self, tag: u64, version: Version) -> Result<(), Unexpected> {
        match tag {
            stderr::NEXT => self.go_on(Server::Frame(Frame::Line), LINE),
            stderr::WRITE => self.go_on(Server::Frame(Frame::Other), STRING),
            stderr::START_ACTIVITY => self.go_on(Server::Frame(Frame::Other), START_ACTIVITY),
            stderr::STOP_ACTIVITY => self.go_on(Server::Frame(Frame::Other), NUMBER),
            stderr::RESULT => self.go_on(Server::Frame(Frame::Result), RESULT),
            stderr::ERROR if version.has(26) => self.go_on(Server::Error, ERROR),
            stderr::ERROR => self.go_on(Server::Error, ERROR_BEFORE_1_26),
            stderr::LAST => match self.operation.reply(version) {
                Reply::Items(items) => self.go_on(Server::Reply, items),
                Reply::Nar => self.server = Server::Nar(Box::default()),
            },
            // `READ` among them: the client would answer outside of its request.
            _ => return Err(Unexpected),
        }
        Ok(())
    }

    /// Keeps what a frame of a build says.
    fn keep(&self, frame: Frame, log: &mut BuildLog) {
        let kind = self.response.wanted_numbers().first().copied().flatten();
        let Some(text) = self.response.wanted().first() else {
            return;
        };
        match (frame, kind) {
            (Frame::Line, _) | (Frame::Result, Some(BUILD_LOG_LINE)) => log.line(text),
            (Frame::Result, Some(SET_PHASE)) => log.enter_phase(text),
            (Frame::Result | Frame::Other, _) => {}
        }
    }
}
