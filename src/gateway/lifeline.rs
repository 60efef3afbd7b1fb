//! A socket that can be cut from outside.
//!
//! russh owns its stream, and can end a connection only by asking the client to. A login that takes for ever must end
//! without asking.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

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
