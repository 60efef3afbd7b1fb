//! What a client has sent on one channel and its session has not read.
//!
//! russh gives a client new room as soon as it has received its bytes, read or not, and lets a channel whose reader is slow
//! hold up the whole connection. Then nobody sees that the client has gone, and a client that waits for room in the other
//! direction waits for ever, because its own message about room is behind its bytes. So the handler never waits for a
//! session: it puts bytes here, and while there are too many it lets the client have next to no room.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};

/// From how many bytes on a client gets next to no room. A guest takes 100 MB/s, so this is 20 ms of its work.
const FULL: usize = 2 << 20;

/// A buffer that was larger is given back when it is empty, in bytes.
const KEPT: usize = 256 << 10;

/// The end that the handler fills. A lock rather than messages: what counts is the number of bytes, not of messages.
#[derive(Clone, Debug, Default)]
pub(super) struct Inbox {
    state: Arc<Mutex<State>>,
}

/// The end that the session reads.
#[derive(Debug)]
pub(super) struct InboxReader {
    inbox: Inbox,
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    /// The client sends no more.
    has_ended: bool,
    /// The session reads no more.
    is_abandoned: bool,
    reader: Option<Waker>,
}

impl Inbox {
    /// The end to read from. There is one.
    pub(super) fn reader(&self) -> InboxReader {
        let inbox = self.clone();
        InboxReader { inbox }
    }

    /// Adds bytes; drops them if nobody reads any more.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if !state.is_abandoned {
            state.bytes.extend(bytes);
        }
        state.wake();
    }

    /// Says that the client sends no more.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.has_ended = true;
        state.wake();
    }

    /// Whether the client should not send more for now.
    pub(super) fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// How many more bytes it may hold. A client that has just been given room may send more than that.
    pub(super) fn room(&self) -> usize {
        FULL.saturating_sub(self.lock().bytes.len())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl AsyncRead for InboxReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.inbox.lock();
        if state.bytes.is_empty() && !state.has_ended {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = state.bytes.read(buf.initialize_unfilled())?;
        buf.advance(n);
        if state.bytes.is_empty() && state.bytes.capacity() > KEPT {
            state.bytes = VecDeque::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for InboxReader {
    fn drop(&mut self) {
        let mut state = self.inbox.lock();
        state.is_abandoned = true;
        state.bytes = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn bytes_come_out_in_order_and_then_the_end() {
        let inbox = Inbox::default();
        let mut reader = inbox.reader();
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).await.unwrap();
            all
        });
        tokio::task::yield_now().await;
        inbox.push(b"one ");
        tokio::task::yield_now().await;
        inbox.push(b"two ");
        inbox.push(b"three");
        inbox.end();
        assert_eq!(reading.await.unwrap(), b"one two three");
    }

    #[tokio::test]
    async fn it_is_full_until_somebody_reads() {
        let inbox = Inbox::default();
        let mut reader = inbox.reader();
        inbox.push(&vec![1; FULL]);
        assert!(inbox.is_full());
        let mut chunk = vec![0; 1];
        reader.read_exact(&mut chunk).await.unwrap();
        assert!(!inbox.is_full());
        inbox.push(&chunk);
        drop(reader);
        assert!(!inbox.is_full(), "what nobody reads takes no room");
        inbox.push(&vec![1; FULL]);
        assert!(!inbox.is_full());
    }
}
