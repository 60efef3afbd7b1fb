//! A virtio-serial port, as a terminal in raw mode: the script has one end, the test is the host at the other.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::root::Guest;
use crate::common;

/// The host's end of a port. What is dropped is closed, as it is when a manager or a helper goes.
pub(super) struct Port {
    host: File,
    /// What the guest has said and nobody has asked for yet.
    said: RefCell<Vec<u8>>,
    _session: Session,
}

impl Port {
    /// Gives the guest a port of this name, which any bytes can go over.
    pub(super) fn new(guest: &Guest, name: &str) -> Self {
        Self::with_mode(guest, name, LocalModes::empty())
    }

    /// One for text, which the guest gets a line at a time: from a terminal that has more, bash's `read` takes more than
    /// the line, and loses it. Of what is no terminal it takes no more.
    pub(super) fn of_lines(guest: &Guest, name: &str) -> Self {
        Self::with_mode(guest, name, LocalModes::ICANON)
    }

    fn with_mode(guest: &Guest, name: &str, local: LocalModes) -> Self {
        // What another test starts at this moment must not hold it open.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let host = openpt(flags).unwrap();
        grantpt(&host).unwrap();
        unlockpt(&host).unwrap();
        let mut mode = tcgetattr(&host).unwrap();
        mode.make_raw();
        mode.local_modes |= local;
        tcsetattr(&host, OptionalActions::Now, &mode).unwrap();
        fcntl_setfl(&host, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
        let terminal = ptsname(&host, Vec::new()).unwrap();
        let terminal = Path::new(OsStr::from_bytes(terminal.as_bytes()));
        let session = Session::of(ioctl_tiocgptpeer(&host, flags).unwrap());
        symlink(terminal, guest.path(&format!("/dev/virtio-ports/{name}"))).unwrap();
        Self {
            host: File::from(host),
            said: RefCell::default(),
            _session: session,
        }
    }

    /// Sends all of this.
    #[track_caller]
    pub(super) fn send(&self, mut bytes: &[u8]) {
        common::until("the guest takes what is sent", String::new, || {
            while !bytes.is_empty() {
                match (&self.host).write(bytes) {
                    Ok(sent) => bytes = &bytes[sent..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                    Err(error) => panic!("a port cannot be written to: {error}"),
                }
            }
            true
        });
    }

    /// Waits for as many bytes.
    #[track_caller]
    pub(super) fn receive(&self, wanted: usize) -> Vec<u8> {
        self.until_it_has_said(|said| (said.len() >= wanted).then_some(wanted))
    }

    /// Waits for a line, the end of it left out.
    #[track_caller]
    pub(super) fn line(&self) -> String {
        let end = |byte: &u8| *byte == b'\n';
        let line = self.until_it_has_said(|said| Some(said.iter().position(end)? + 1));
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }

    /// What the guest says, up to where it is enough. What comes after is kept.
    #[track_caller]
    fn until_it_has_said(&self, enough: impl Fn(&[u8]) -> Option<usize>) -> Vec<u8> {
        let mut said = self.said.borrow_mut();
        let mut end = enough(&said);
        common::until("the guest has said what it should", String::new, || {
            // Before the guest has opened it, there is an error to be read.
            let mut buffer = [0; 4096];
            while end.is_none()
                && let Ok(n @ 1..) = (&self.host).read(&mut buffer)
            {
                said.extend_from_slice(&buffer[..n]);
                end = enough(&said);
            }
            end.is_some()
        });
        said.drain(..end.unwrap()).collect()
    }

    /// Whether somebody in the guest has the port open, or has said something before closing it.
    pub(super) fn is_open(&self) -> bool {
        let mut byte = [0];
        match (&self.host).read(&mut byte) {
            Ok(n) => {
                self.said.borrow_mut().extend_from_slice(&byte[..n]);
                true
            }
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }

    /// Waits until nobody in the guest has the port open. What it has said before is to be read first.
    #[track_caller]
    pub(super) fn until_closed(&self) {
        common::until("the guest closes the port", String::new, || {
            let closed = (&self.host).read(&mut [0]);
            closed.is_err_and(|error| error.kind() != ErrorKind::WouldBlock)
        });
    }

    /// What the guest sees is the end of what it reads, and an error where it writes.
    pub(super) fn close(self) {
        drop(self);
    }
}

/// A session that a terminal belongs to. It would become the terminal of the first in the guest who opens it, and a closing then
/// would be a signal, which a port never sends.
struct Session {
    leader: Child,
    _open: UnixStream,
}

impl Session {
    fn of(terminal: OwnedFd) -> Self {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let leader = Command::new("setsid")
            .args(["--ctty", "sh", "-c", "exec cat 0<&1 2>/dev/null"])
            .stdin(terminal)
            .stdout(OwnedFd::from(theirs))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Said back when the terminal is taken, and no longer open there.
        ours.write_all(b"?").unwrap();
        ours.set_read_timeout(Some(common::PATIENCE)).unwrap();
        ours.read_exact(&mut [0]).unwrap();
        Self {
            leader,
            _open: ours,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.leader.kill();
        let _ = self.leader.wait();
    }
}
