//! The helper's standard input and output, over which Nix speaks: pipes, or one socket for both.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, fstat};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

/// Standard input.
pub fn input() -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
    let (kind, descriptor) = opened(std::io::stdin())?;
    Ok(match kind {
        FileType::Fifo => Box::new(pipe::Receiver::from_owned_fd(descriptor)?),
        FileType::Socket => Box::new(socket(descriptor)?),
        _ => Box::new(tokio::io::stdin()),
    })
}

/// Standard output.
pub fn output() -> io::Result<Box<dyn AsyncWrite + Send + Unpin>> {
    let (kind, descriptor) = opened(std::io::stdout())?;
    Ok(match kind {
        FileType::Fifo => Box::new(pipe::Sender::from_owned_fd(descriptor)?),
        FileType::Socket => Box::new(socket(descriptor)?),
        _ => Box::new(tokio::io::stdout()),
    })
}

fn opened(stream: impl AsFd) -> io::Result<(FileType, OwnedFd)> {
    let descriptor = stream.as_fd().try_clone_to_owned()?;
    let kind = FileType::from_raw_mode(fstat(&descriptor)?.st_mode);
    Ok((kind, descriptor))
}

fn socket(descriptor: OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(descriptor);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
