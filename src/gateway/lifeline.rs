//! A socket that can be cut from outside.
//!
//! russh owns its stream and has no way to end a connection that does not listen, and while one of its channels is full it
//! does not read, so it does not see that the client has gone either. Both are needed: a login that takes for ever must
//! end, and a client that has gone must not keep its place in the queue.

use std::future::{Future, pending};
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How often a connection with traffic is looked at. One without costs nothing.
const LOOK: Duration = Duration::from_secs(1);

/// A TCP stream that fails to read and write once it is cut.
#[derive(Debug)]
pub(super) struct Lifeline {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Lifeline {
    /// Cancelling `cut` ends the stream.
    pub(super) fn new(stream: TcpStream, cut: CancellationToken) -> Self {
        Self {
            stream,
            cut: Box::pin(cut.cancelled_owned()),
        }
    }

    fn poll_uncut(&mut self, cx: &mut Context<'_>) -> io::Result<&mut TcpStream> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(&mut self.stream),
        }
    }
}

impl AsyncRead for Lifeline {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(self.poll_uncut(cx)?).poll_read(cx, buf)
    }
}

impl AsyncWrite for Lifeline {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.poll_uncut(cx)?).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.poll_uncut(cx)?).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.poll_uncut(cx)?).poll_shutdown(cx)
    }
}

/// Sees whether the peer of a socket has closed it, without reading from it.
#[derive(Debug)]
pub(super) struct HangUp {
    /// The same socket under another number, so that its readiness can be cleared without the reader missing anything.
    socket: TcpStream,
}

impl HangUp {
    /// Watches the socket of `stream`, which goes on to be used.
    pub(super) fn watch(stream: &TcpStream) -> io::Result<Self> {
        let socket = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
        let socket = TcpStream::from_std(socket)?;
        Ok(Self { socket })
    }

    /// Resolves a second after the peer has closed the socket: whoever reads from it should notice sooner, and then
    /// ends in better order.
    pub(super) async fn happened(&self) {
        let mut looks = tokio::time::interval(LOOK);
        loop {
            looks.tick().await;
            let Ok(ready) = self.socket.ready(Interest::READABLE).await else {
                return pending().await;
            };
            if ready.is_read_closed() {
                looks.reset();
                looks.tick().await;
                return;
            }
            // Wait for the next change rather than for what is there already.
            let unread = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _ = self.socket.try_io(Interest::READABLE, unread);
        }
    }
}
