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
    /// The session waits; the text is for the person who waits.
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
mod tests {
    use std::io::{Read as _, Write as _};
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::session::account::Account;

    /// Where another text comes out, [`VERSION`] has to be another, unless those who know the old one understand it.
    #[test]
    fn messages_of_this_version_look_like_this() {
        let open = ToManager::Open {
            slot: "riscv64-00".into(),
            first: First::Other,
            version: Some(VERSION),
        };
        let granted = ToHelper::Granted {
            vm: "riscv64-1".into(),
            greeted: vec![1],
            fetch_only: false,
            limits: BuildLimits::default(),
        };
        let texts = [
            serde_json::to_string(&open).unwrap(),
            serde_json::to_string(&ToManager::Ended { unfetched: true }).unwrap(),
            serde_json::to_string(&granted).unwrap(),
            serde_json::to_string(&ToHelper::InputsArrived).unwrap(),
        ];
        insta::assert_snapshot!(texts.join("\n"), @r#"
        {"open":{"slot":"riscv64-00","first":"other","version":1}}
        {"ended":{"unfetched":true}}
        {"granted":{"vm":"riscv64-1","greeted":[1],"fetch_only":false,"limits":{"timeout":null,"max-silent-time":null}}}
        "inputs-arrived"
        "#);
        let from_before = r#"{"open":{"slot":"riscv64-00","first":"other"}}"#;
        let from_before: ToManager = serde_json::from_str(from_before).unwrap();
        assert!(matches!(from_before, ToManager::Open { version: None, .. }));
    }

    #[tokio::test]
    async fn messages_arrive_whole_and_in_order() {
        let (one, other) = UnixStream::pair().unwrap();
        let ((_, writer), (mut reader, _)) = (split(one), split(other));
        let long = "x".repeat(1 << 20);
        let sending = tokio::spawn({
            let long = long.clone();
            async move {
                writer.send(&ToHelper::Waiting("one".into())).await.unwrap();
                writer.send(&ToHelper::Waiting(long)).await.unwrap();
            }
        });
        for expected in ["one".to_owned(), long] {
            match reader.next().await.unwrap() {
                Some(ToHelper::Waiting(text)) => assert!(text == expected),
                other => panic!("{other:?}"),
            }
        }
        sending.await.unwrap();
        assert!(reader.next::<ToHelper>().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_descriptor_arrives_with_its_message() {
        let (one, other) = UnixStream::pair().unwrap();
        let ((_, writer), (mut reader, _)) = (split(one), split(other));
        let (mut near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let message = ToHelper::InputsArrived;
        writer.send_with(&message, &[far.as_fd()]).await.unwrap();
        drop(far);
        reader.next::<ToHelper>().await.unwrap().unwrap();
        let passed = reader.descriptor().unwrap();
        near.write_all(b"through").unwrap();
        drop(near);
        let mut text = String::new();
        std::os::unix::net::UnixStream::from(passed)
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "through");
        assert!(reader.descriptor().is_none());
    }

    #[tokio::test]
    async fn descriptors_that_nobody_wants_end_the_connection() {
        let (one, other) = UnixStream::pair().unwrap();
        let (_, writer) = split(one);
        let charge = Account::unlimited().charge();
        let (mut reader, _) = split_without_descriptors(Arc::new(other), Some(charge));
        let (_near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let message = ToManager::Ended { unfetched: true };
        writer.send(&message).await.unwrap();
        reader.next::<ToManager>().await.unwrap().unwrap();
        writer.send_with(&message, &[far.as_fd()]).await.unwrap();
        let error = reader.next::<ToManager>().await.unwrap_err();
        assert!(error.to_string().contains("sends descriptors"), "{error}");
    }

    #[tokio::test]
    async fn who_makes_the_manager_hold_too_much_has_a_share() {
        const BEGUN: usize = 300 << 10;
        let account = Account::new(1 << 20);
        let mut waiting = Vec::new();
        let mut refused = 0;
        for _ in 0..10 {
            let (mut one, other) = UnixStream::pair().unwrap();
            let charge = Some(account.charge());
            let (mut reader, _) = split_without_descriptors(Arc::new(other), charge);
            let before = account.held();
            let reading = tokio::spawn(async move { reader.next::<ToManager>().await });
            // Fails where nobody reads any more. A line without its end is no message.
            let _ = one.write_all(&[b'x'; 300].repeat(1024)).await;
            let settled = async {
                while !reading.is_finished() && account.held() < before + BEGUN {
                    tokio::task::yield_now().await;
                }
            };
            let deadline = Duration::from_secs(60);
            tokio::time::timeout(deadline, settled).await.unwrap();
            if reading.is_finished() {
                reading.await.unwrap().unwrap_err();
                refused += 1;
            } else {
                waiting.push((one, reading));
            }
        }
        assert!(account.held() <= 2 << 20, "{}", account.held());
        assert!(refused > 0 && !waiting.is_empty());
    }

    #[tokio::test]
    async fn a_line_may_be_so_long_and_no_longer() {
        let (one, other) = UnixStream::pair().unwrap();
        let ((_, writer), (mut reader, _)) = (split(one), split(other));
        reader.shorten(1000);
        let sending = tokio::spawn(async move {
            let long = ToHelper::Waiting("x".repeat(1 << 20));
            // Fails when nobody reads any more.
            let _ = writer.send(&long).await;
        });
        reader.next::<ToHelper>().await.unwrap_err();
        drop(reader);
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_message_is_an_error() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut reader, _) = split(other);
        one.try_write(b"GET / HTTP/1.1\r\n").unwrap();
        reader.next::<ToManager>().await.unwrap_err();
    }
}
