//! A hop: an open session into a guest's nix-daemon, and the pump that carries its bytes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use rustix::fs::{FlockOperation, flock};
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::sync::oneshot;

/// Large enough that the native side is never what a transfer waits for.
const CHUNK: usize = 64 * 1024;

/// How often a pump whose guest reads nothing looks whether the hop is still wanted.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// After the guest has closed its port, QEMU may still pass on what it wrote before. QEMU's main loop has had its turn
/// when it answers; twice, because what is read makes room for what it could not pass on yet.
pub(super) const QUIET_TURNS: u32 = 2;

/// A byte stream to the nix-daemon of a guest. Closing it fully (dropping it) ends what the guest does for it.
#[derive(Debug)]
pub struct Hop {
    /// Bytes to and from the nix-daemon. Reads end when the guest has closed its side.
    pub stream: UnixStream,
    /// What the nix-daemon has answered to the number that a client's greeting begins with, where that was sent already.
    /// Empty on a hop over which nothing went yet.
    pub greeted: Vec<u8>,
    /// Where the port itself can be had, in place of a pump that carries its bytes.
    port: Option<PortOnRequest>,
}

/// Asks the one who pumps a port's bytes for the port.
#[derive(Debug)]
pub(super) struct PortOnRequest {
    request: oneshot::Sender<oneshot::Sender<UnixStream>>,
    /// The VM's private folder.
    folder: PathBuf,
    slot: u32,
}

/// A guest's port itself, for another process to go on with. Closing it closes the hop.
#[derive(Debug)]
pub struct DetachedPort {
    /// QEMU's socket. Its reads do not end when the guest closes the port; the hop's do.
    pub stream: UnixStream,
    /// As long as somebody has this open, a manager that comes after this one leaves the VM alone.
    pub hold: File,
}

/// How the files in a VM's private folder begin, one for each slot, on which there is a lock while a process other than the manager uses
/// the slot.
const HOLD: &str = "held.";

/// Locks a VM's folder for a process that goes on with one of its ports. The lock belongs to the open file, and so to whoever
/// is given it. Nothing can be written by it: it is on its owner's disk. It is made anew, as who had the slot before may keep the
/// one before.
pub(super) fn hold(folder: &Path, slot: u32) -> io::Result<File> {
    let path = folder.join(format!("{HOLD}{slot}"));
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    drop(
        options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?,
    );
    let file = File::open(&path)?;
    flock(&file, FlockOperation::NonBlockingLockShared)?;
    Ok(file)
}

/// Whether some process holds a VM.
pub(super) fn is_held(folder: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(HOLD) && is_locked(&entry.path())? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_locked(path: &Path) -> io::Result<bool> {
    match flock(&File::open(path)?, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        locked => locked.map(|()| false).map_err(io::Error::from),
    }
}

impl PortOnRequest {
    /// For a port of the VM whose private folder this is; the other end hears of the request.
    pub(super) fn channel(
        folder: PathBuf,
        slot: u32,
    ) -> (Self, oneshot::Receiver<oneshot::Sender<UnixStream>>) {
        let (request, requested) = oneshot::channel();
        let port = Self {
            request,
            folder,
            slot,
        };
        (port, requested)
    }
}

impl Hop {
    /// A hop over which nothing went yet.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            greeted: Vec::new(),
            port: None,
        }
    }

    /// One whose port can be had instead.
    pub(super) fn of_port(stream: UnixStream, port: PortOnRequest) -> Self {
        Self {
            port: Some(port),
            ..Self::new(stream)
        }
    }

    /// The port itself, before anything but the greeting went over the hop. The hop stays: it ends when the guest has closed
    /// the port and all that it had sent can be read from it; and dropping it says that the port is not used any more.
    /// `None` where there is no other way into the guest than over the hop.
    pub async fn detach(&mut self) -> anyhow::Result<Option<DetachedPort>> {
        let Some(port) = self.port.take() else {
            return Ok(None);
        };
        let PortOnRequest {
            request,
            folder,
            slot,
        } = port;
        let hold =
            hold(&folder, slot).with_context(|| format!("locking `{}`", folder.display()))?;
        let (reply, stream) = oneshot::channel();
        // Without somebody to answer the VM is gone.
        let _ = request.send(reply);
        let stream = stream.await.context("the VM's port is closed")?;
        Ok(Some(DetachedPort { stream, hold }))
    }

    /// Whether the guest still waits for what comes over it.
    pub(super) fn is_quiet(&self) -> bool {
        let nothing = self.stream.try_read(&mut [0]);
        nothing.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Carries bytes between a hop's far end and QEMU's socket of the port, until either side has closed.
///
/// QEMU's socket does not end when the guest closes the port: `guest_closed` tells that instead, and `turn` resolves
/// when QEMU's main loop has had a turn.
pub(super) async fn pump<T>(
    hop: &mut UnixStream,
    port: &mut UnixStream,
    guest_closed: impl Future<Output = ()>,
    turn: impl Fn() -> T,
) where
    T: Future<Output = ()>,
{
    let (from_hop, to_hop) = hop.split();
    let (from_port, to_port) = port.split();
    // Which side it was, and how, is of no interest: the caller closes both fully.
    tokio::select! {
        _ = inward(from_hop, to_port) => {}
        _ = outward(from_port, to_hop, guest_closed, turn) => {}
    }
}

async fn inward(mut from_hop: ReadHalf<'_>, mut to_port: WriteHalf<'_>) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from_hop.read(&mut chunk).await?;
        if length == 0 {
            return Ok(());
        }
        let mut written = 0;
        while written < length {
            tokio::select! {
                count = to_port.write(&chunk[written..length]) => written += count?,
                () = tokio::time::sleep(LOOK_AROUND) => if is_gone(&from_hop) { return Ok(()) },
            }
        }
    }
}

/// Whether the other end of the hop was dropped. A read would tell only after all that it had sent.
fn is_gone(hop: &ReadHalf<'_>) -> bool {
    hop.ready(Interest::WRITABLE)
        .now_or_never()
        .is_some_and(|ready| ready.is_ok_and(tokio::io::Ready::is_write_closed))
}

async fn outward<T>(
    mut from_port: ReadHalf<'_>,
    mut to_hop: WriteHalf<'_>,
    guest_closed: impl Future<Output = ()>,
    turn: impl Fn() -> T,
) -> io::Result<()>
where
    T: Future<Output = ()>,
{
    let mut chunk = vec![0; CHUNK];
    tokio::pin!(guest_closed);
    loop {
        tokio::select! {
            length = from_port.read(&mut chunk) => match length? {
                0 => return Ok(()),
                length => to_hop.write_all(&chunk[..length]).await?,
            },
            () = &mut guest_closed => break,
        }
    }
    let mut quiet_turns = 0;
    while quiet_turns < QUIET_TURNS {
        quiet_turns += 1;
        while let Some(length) = received(&from_port, &mut chunk)? {
            to_hop.write_all(&chunk[..length]).await?;
            quiet_turns = 0;
        }
        turn().await;
    }
    Ok(())
}

/// Reads what is there now; `None` when that is nothing. tokio's own `try_read` asks its memory and not the socket.
fn received(from_port: &ReadHalf<'_>, chunk: &mut [u8]) -> io::Result<Option<usize>> {
    let socket: &UnixStream = from_port.as_ref();
    match recv(socket, chunk, RecvFlags::DONTWAIT) {
        Ok((0, _)) | Err(rustix::io::Errno::AGAIN) => Ok(None),
        Ok((length, _)) => Ok(Some(length)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::sync::oneshot;

    use super::*;

    /// The user's end of a hop, QEMU's end of the port's socket, and the way to say that the guest has closed.
    fn pumped() -> (UnixStream, UnixStream, oneshot::Sender<()>) {
        let (user, mut hop) = UnixStream::pair().unwrap();
        let (mut port, qemu) = UnixStream::pair().unwrap();
        let (close, closed) = oneshot::channel();
        let guest_closed = async move {
            if closed.await.is_err() {
                pending::<()>().await;
            }
        };
        tokio::spawn(async move { pump(&mut hop, &mut port, guest_closed, || ready(())).await });
        (user, qemu, close)
    }

    #[tokio::test]
    async fn bytes_go_both_ways() {
        let (mut user, mut qemu, _close) = pumped();
        let mut answer = [0; 4];
        user.write_all(b"ping").await.unwrap();
        qemu.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ping");
        qemu.write_all(b"pong").await.unwrap();
        user.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"pong");
    }

    #[tokio::test]
    async fn a_guest_that_closed_delivers_all_it_had_sent_and_then_the_end() {
        let (mut user, mut qemu, close) = pumped();
        let sent = vec![7; 100_000];
        qemu.write_all(&sent).await.unwrap();
        close.send(()).unwrap();
        let mut received = Vec::new();
        user.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), sent.len());
        assert_eq!(qemu.read(&mut [0]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn a_dropped_hop_delivers_all_it_had_sent_and_closes_the_port() {
        let (mut user, mut qemu, _close) = pumped();
        user.write_all(&vec![7; 100_000]).await.unwrap();
        drop(user);
        let mut received = Vec::new();
        qemu.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), 100_000);
    }

    #[tokio::test]
    async fn qemus_death_ends_the_hop() {
        let (mut user, qemu, _close) = pumped();
        drop(qemu);
        assert_eq!(user.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_hop_closes_a_port_that_its_guest_does_not_read() {
        let (mut user, mut qemu, _close) = pumped();
        let too_much = vec![7; 10_000_000];
        let full = tokio::time::timeout(Duration::from_secs(5), user.write_all(&too_much));
        full.await.unwrap_err();
        drop(user);
        // The port's socket ends although the pump could not write for a while: nobody has read it.
        tokio::time::sleep(LOOK_AROUND * 2).await;
        let mut received = Vec::new();
        qemu.read_to_end(&mut received).await.unwrap();
        assert!(received.len() < 1_000_000, "{}", received.len());
    }
}
