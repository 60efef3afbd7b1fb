//! What the manager and the local helper say to each other over a Unix socket: a JSON object a line, some with descriptors.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::manager::ticket::{BuildLimits, First, SessionReport};
use crate::session::account::Charge;

/// The longest line, in bytes: the inputs of a build, a hundred thousand paths at the most.
const LONGEST_LINE: usize = 16 << 20;

/// The longest line that says what is done in a session, in bytes: a build with a thousand outputs.
pub(super) const LONGEST_REPORT: usize = 1 << 20;

/// How much of a line may be held of who makes the manager hold too much.
const SHARE: usize = 64 << 10;

/// The most descriptors of one message: a port and the hold on its VM, or the streams of a shell.
const MOST_DESCRIPTORS: usize = 3;

/// The version of what both say. It changes with every change that one side would not understand of the other.
pub(super) const VERSION: u32 = 1;

/// What a helper says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ToManager {
    /// It wants a VM: the first message, and the only one of its kind.
    Open {
        /// What it came in by: `riscv64-03`.
        slot: String,
        /// What its client asks for first.
        first: First,
        /// The helper's [`VERSION`]; none of one from before there were versions, which says the same as the first.
        #[serde(default)]
        version: Option<u32>,
    },
    /// What is done in the session.
    Report(SessionReport),
    /// The session is over: the last message.
    Ended {
        /// Whether outputs may still be fetched.
        unfetched: bool,
    },
}

/// What the manager says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ToHelper {
    /// The session waits; the text is for the person who waits. For a session that has a VM it is a note, which changes nothing.
    Waiting(String),
    /// It has a VM. Comes with the port of the guest, and with a hold on the VM where there is one.
    Granted {
        /// The VM's name.
        vm: String,
        /// What the guest's nix-daemon has said already; see [`Hop::greeted`](crate::vm::Hop).
        greeted: Vec<u8>,
        /// See [`Grant::fetch_only`](crate::manager::ticket::Grant).
        fetch_only: bool,
        /// How long its builds may take.
        limits: BuildLimits,
    },
    /// The guest has the inputs that it need not be sent, or will not have them.
    InputsArrived,
    /// The guest has closed the port. What it had sent can still be read.
    GuestClosed,
    /// The session gets no VM, for this reason.
    Rejected(String),
    /// The VM that it was using has ended.
    VmGone {
        /// The VM's name.
        vm: String,
        /// What happened.
        cause: String,
        /// The console log to read.
        log: PathBuf,
    },
}

/// Both directions of a connection to a manager, which sends descriptors.
pub(crate) fn split(stream: UnixStream) -> (Reader, Writer) {
    split_with(Arc::new(stream), Descriptors::Taken)
}

/// Both directions of a connection to somebody who may send none. They are of no use to a manager, which would run out of them;
/// and one whose closing takes time would hold it up. What was received of a line is charged, where there is an account.
pub(crate) fn split_without_descriptors(
    stream: Arc<UnixStream>,
    charge: Option<Charge>,
) -> (Reader, Writer) {
    let (reader, writer) = split_with(stream, Descriptors::Refused);
    (Reader { charge, ..reader }, writer)
}

fn split_with(stream: Arc<UnixStream>, from_there: Descriptors) -> (Reader, Writer) {
    let reader = Reader {
        stream: stream.clone(),
        received: Vec::new(),
        searched: 0,
        longest: LONGEST_LINE,
        charge: None,
        from_there,
        descriptors: VecDeque::new(),
    };
    (reader, Writer { stream })
}

/// What is done with descriptors that the other side sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Descriptors {
    Taken,
    /// They are left where they are, and the connection is of no use any more.
    Refused,
}

/// The receiving direction.
#[derive(Debug)]
pub(crate) struct Reader {
    stream: Arc<UnixStream>,
    received: Vec<u8>,
    /// How many of these bytes are known to have no line's end.
    searched: usize,
    /// The longest line that is read.
    longest: usize,
    charge: Option<Charge>,
    from_there: Descriptors,
    descriptors: VecDeque<OwnedFd>,
}

impl Reader {
    /// The next message; `None` at the end of the connection. Cancel safe.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some(end) = self.received[self.searched..]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let line: Vec<u8> = self.received.drain(..=self.searched + end).collect();
                self.searched = 0;
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            self.searched = self.received.len();
            if self.searched > self.longest || self.is_too_much() {
                return Err(io::Error::other("the other side says too much at once"));
            }
            if self.receive().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Whether more of a long line would be too much of who sends it.
    fn is_too_much(&mut self) -> bool {
        let held = self.received.capacity();
        self.charge.as_mut().is_some_and(|charge| {
            charge.set(held);
            held > SHARE && charge.account().is_short()
        })
    }

    /// Reads no lines from now on that are longer than this, in bytes.
    pub(super) fn shorten(&mut self, longest: usize) {
        self.longest = longest;
    }

    /// The next descriptor that came with what was received so far.
    pub(crate) fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    async fn receive(&mut self) -> io::Result<usize> {
        let Self {
            stream,
            received,
            descriptors,
            from_there,
            ..
        } = self;
        let read = || {
            let mut chunk = [0; 16 * 1024];
            let length = match from_there {
                Descriptors::Taken => receive(stream, &mut chunk, descriptors)?,
                Descriptors::Refused => receive_bytes(stream, &mut chunk)?,
            };
            received.extend_from_slice(&chunk[..length]);
            Ok(length)
        };
        stream.async_io(Interest::READABLE, read).await
    }
}

/// Receives bytes, and what descriptors come with them.
fn receive(
    stream: &UnixStream,
    chunk: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(stream, &mut [IoSliceMut::new(chunk)], &mut control, flags)?;
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
            descriptors.extend(rights);
        }
    }
    Ok(message.bytes)
}

/// Receives bytes that come without descriptors; an error at the first that come with some.
fn receive_bytes(stream: &UnixStream, chunk: &mut [u8]) -> io::Result<usize> {
    // Without room for them, the kernel makes none here, and says that it had some; looked at, they stay with the socket. To make and
    // close one would flush it, which takes as long as a file system of the other side's likes.
    let mut nowhere = RecvAncillaryBuffer::default();
    let buffer = &mut [IoSliceMut::new(chunk)];
    let message = recvmsg(stream, buffer, &mut nowhere, RecvFlags::PEEK)?;
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("the other side sends descriptors"));
    }
    let length = message.bytes;
    // Not a byte more, which might come with some.
    Ok(recv(stream, &mut chunk[..length], RecvFlags::empty())?.0)
}

/// The sending direction.
#[derive(Debug)]
pub(crate) struct Writer {
    stream: Arc<UnixStream>,
}

impl Writer {
    /// Sends a message.
    pub(crate) async fn send(&self, message: &impl Serialize) -> io::Result<()> {
        self.send_with(message, &[]).await
    }

    /// Sends a message with descriptors, which stay open here.
    pub(crate) async fn send_with(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let mut sent = 0;
        while sent < line.len() {
            // With the first bytes only.
            let with = if sent == 0 { descriptors } else { &[] };
            let write = || {
                let mut space =
                    [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !with.is_empty() && !control.push(SendAncillaryMessage::ScmRights(with)) {
                    return Err(io::Error::other("too many descriptors for one message"));
                }
                let rest = [IoSlice::new(&line[sent..])];
                let n = sendmsg(
                    self.stream.as_fd(),
                    &rest,
                    &mut control,
                    SendFlags::NOSIGNAL,
                )?;
                Ok(n)
            };
            sent += self.stream.async_io(Interest::WRITABLE, write).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
