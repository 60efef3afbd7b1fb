//! What a client has sent on one channel and its session has not read.
//!
//! russh gives a client new room as soon as it has received its bytes, read or not, and lets a channel whose reader is slow
//! hold up the whole connection. Then nobody sees that the client has gone, and a client that waits for room in the other
//! direction waits for ever, because its own message about room is behind its bytes. So the handler never waits for a
//! session: it puts bytes here, and while there are too many it lets the client have next to no room.
//!
//! russh takes what a client sends beyond the window that it was given (0.65, `Encrypted::adjust_window_size`), so the window is
//! counted here a second time, and a client that sends more is cut (RFC 4254, 5.2).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, Read};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};

use super::channels::WINDOW;
use crate::session::account::Charge;

/// From how many bytes on a client gets next to no room. A guest takes 100 MB/s, so this is 20 ms of its work.
const FULL: usize = 2 << 20;

/// From how many bytes on a client has sent a full inbox's worth in what little room there is.
const OVERFULL: usize = FULL + WINDOW as usize;

/// What a channel may hold of a key that makes the gateway hold too much, in bytes.
const SHARE: usize = 64 << 10;

/// A buffer that was larger is given back when it is empty, in bytes.
const KEPT: usize = 256 << 10;

/// A client has sent more than its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client sent {sent} bytes into a window of {window}")]
pub(super) struct Overrun {
    sent: usize,
    window: usize,
}

/// The end that the handler fills. A lock rather than messages: what counts is the number of bytes, not of messages.
#[derive(Clone, Debug)]
pub(super) struct Inbox {
    state: Arc<Mutex<State>>,
}

/// The end that the session reads.
#[derive(Debug)]
pub(super) struct InboxReader {
    inbox: Inbox,
}

#[derive(Debug)]
struct State {
    bytes: VecDeque<u8>,
    /// How many bytes the client may still send.
    window: usize,
    /// What its key's account is charged for the bytes.
    charged: Charge,
    /// The client sends no more.
    has_ended: bool,
    /// The session reads no more.
    is_abandoned: bool,
    reader: Option<Waker>,
    /// Who waits until it holds less.
    filler: Option<Waker>,
}

impl Inbox {
    /// One of a channel that was opened with a window of so many bytes. What it holds is charged.
    pub(super) fn new(window: usize, charged: Charge) -> Self {
        let state = State {
            bytes: VecDeque::new(),
            window,
            charged,
            has_ended: false,
            is_abandoned: false,
            reader: None,
            filler: None,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The end to read from. There is one.
    pub(super) fn reader(&self) -> InboxReader {
        let inbox = self.clone();
        InboxReader { inbox }
    }

    /// Takes so many bytes off the window. If russh has given the client a new one for them, that is what it has now.
    pub(super) fn count(&self, sent: usize, granted: Option<u32>) -> Result<(), Overrun> {
        let mut state = self.lock();
        let window = state.window;
        let left = window.checked_sub(sent).ok_or(Overrun { sent, window })?;
        state.window = granted.map_or(left, |granted| granted as usize);
        Ok(())
    }

    /// Adds bytes, which were counted; drops them if nobody reads any more.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if !state.is_abandoned {
            state.bytes.extend(bytes);
        }
        state.charge();
        state.wake();
    }

    /// Returns once it holds no more than its share, where its key makes the gateway hold too much. Meanwhile nothing is read of the
    /// connection at all, which is why what a session reads now counts and not what others of the key hold. Cancel safe.
    pub(super) async fn has_its_share(&self) {
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.is_abandoned || state.has_its_share() {
                return Poll::Ready(());
            }
            state.filler = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Whether nobody reads it any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.lock().is_abandoned
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

    /// Whether the client has sent on for long although it should not.
    pub(super) fn is_overfull(&self) -> bool {
        self.lock().bytes.len() >= OVERFULL
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
    fn charge(&mut self) {
        self.charged.set(self.bytes.len());
        if self.has_its_share()
            && let Some(filler) = self.filler.take()
        {
            filler.wake();
        }
    }

    /// Whether it holds no more than it may while its key makes the gateway hold too much.
    fn has_its_share(&self) -> bool {
        self.bytes.len() <= SHARE || !self.charged.account().is_short()
    }

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
        state.charge();
        Poll::Ready(Ok(()))
    }
}

impl Drop for InboxReader {
    fn drop(&mut self) {
        let mut state = self.inbox.lock();
        state.is_abandoned = true;
        state.bytes = VecDeque::new();
        state.charge();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::session::account::Account;

    fn inbox(window: usize) -> (Arc<Account>, Inbox) {
        let account = Account::unlimited();
        let inbox = Inbox::new(window, account.charge());
        (account, inbox)
    }

    #[tokio::test]
    async fn bytes_come_out_in_order_and_then_the_end() {
        let (_, inbox) = inbox(100);
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
        let (_, inbox) = inbox(3 * FULL);
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

    #[test]
    fn a_client_may_send_its_window_and_no_more() {
        let (_, inbox) = inbox(10);
        inbox.count(7, None).unwrap();
        let overrun = Overrun { sent: 4, window: 3 };
        assert_eq!(inbox.count(4, None), Err(overrun));
        inbox.count(3, Some(20)).unwrap();
        inbox.count(20, None).unwrap();
        inbox.count(1, Some(20)).unwrap_err();
    }

    #[tokio::test]
    async fn a_key_is_charged_for_what_is_unread() {
        let (account, inbox) = inbox(10);
        let mut reader = inbox.reader();
        inbox.push(&[0; 10]);
        assert_eq!(account.held(), 10);
        reader.read_exact(&mut [0; 4]).await.unwrap();
        assert_eq!(account.held(), 6);
        drop(reader);
        assert_eq!(account.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_holds_too_much_has_a_share_for_each_channel() {
        let account = Account::new(FULL);
        let inbox = || Inbox::new(FULL, account.charge());
        let (parked, busy) = (inbox(), inbox());
        let (_parked_reader, mut reader) = (parked.reader(), busy.reader());
        parked.push(&vec![0; FULL]);
        busy.push(&vec![0; SHARE]);
        busy.has_its_share().await;
        busy.push(&[0; 1]);
        let waiting = tokio::time::timeout(Duration::from_secs(60), busy.has_its_share());
        waiting.await.unwrap_err();
        // What others hold is not waited for.
        let reading = tokio::spawn(async move {
            reader.read_exact(&mut [0; 1]).await.unwrap();
            reader
        });
        busy.has_its_share().await;
        reading.await.unwrap();
        parked.push(&[0; 1]);
        let waiting = tokio::time::timeout(Duration::from_secs(60), parked.has_its_share());
        waiting.await.unwrap_err();
    }
}
