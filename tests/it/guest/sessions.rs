//! `session` and `ready`: a port joined to nix-daemon.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use super::port::Port;
use super::root::{Daemon, Guest, Running, in_each_shell};

/// More than is passed on at once, and every byte that there is.
fn many_bytes() -> Vec<u8> {
    (0..=255).cycle().take(70_000).collect()
}

/// A session that has begun: one byte has gone each way.
struct Session {
    port: Port,
    daemon: Daemon,
    stream: UnixStream,
    running: Running,
}

impl Session {
    #[track_caller]
    fn new(guest: &Guest) -> Self {
        let port = Port::new(guest, "xpool.0");
        let daemon = guest.daemon();
        let running = guest.start(&["session", "0"]);
        let stream = begin(&port, &daemon);
        Self {
            port,
            daemon,
            stream,
            running,
        }
    }

    /// Has the daemon close, and sees the session end on the port, which can then be used again.
    #[track_caller]
    fn close_at_the_daemon(self) -> (Port, Daemon) {
        drop(self.stream);
        self.port.until_closed();
        self.running.said();
        (self.port, self.daemon)
    }
}

#[track_caller]
fn begin(port: &Port, daemon: &Daemon) -> UnixStream {
    let mut stream = daemon.accept();
    stream.write_all(b"d").unwrap();
    assert_eq!(port.receive(1), b"d");
    port.send(b"h");
    stream.read_exact(&mut [0]).unwrap();
    stream
}

/// Runs a test in each shell, with a session that has begun.
fn in_each_session(test: &str, run: impl Fn(&Guest, Session) + Sync) {
    in_each_shell(test, |shell| {
        let guest = Guest::new(shell);
        run(&guest, Session::new(&guest));
    });
}

#[test]
fn bytes_go_both_ways_whatever_they_are() {
    in_each_session("bytes_go_both_ways_whatever_they_are", |_, session| {
        let Session {
            port, mut stream, ..
        } = session;
        let bytes = many_bytes();

        port.send(&bytes);
        let mut got = vec![0; bytes.len()];
        stream.read_exact(&mut got).unwrap();
        assert!(got == bytes, "what the host sent came changed");

        stream.write_all(&bytes).unwrap();
        assert!(
            port.receive(bytes.len()) == bytes,
            "what the daemon sent came changed"
        );
    });
}

#[test]
fn when_the_host_closes_the_port_the_daemon_sees_a_full_hang_up() {
    in_each_session(
        "when_the_host_closes_the_port_the_daemon_sees_a_full_hang_up",
        |guest, mut session| {
            session.port.close();

            assert_eq!(session.stream.read(&mut [0]).unwrap(), 0);
            // To a socket that is closed one way only, it could be written.
            let written = session.stream.write(b"?").map_err(|error| error.kind());
            assert_eq!(written, Err(ErrorKind::BrokenPipe));
            session.running.said();
            guest.until_nothing_runs();
        },
    );
}

#[test]
fn when_the_daemon_closes_the_host_sees_the_end_of_the_port() {
    in_each_session(
        "when_the_daemon_closes_the_host_sees_the_end_of_the_port",
        |guest, session| {
            session.close_at_the_daemon();
            guest.until_nothing_runs();
        },
    );
}

#[test]
fn a_port_carries_one_session_after_another() {
    in_each_session(
        "a_port_carries_one_session_after_another",
        |guest, first| {
            let (port, daemon) = first.close_at_the_daemon();

            let _second = guest.start(&["session", "0"]);
            begin(&port, &daemon);
        },
    );
}

#[test]
fn a_session_without_a_daemon_fails() {
    in_each_shell("a_session_without_a_daemon_fails", |shell| {
        let guest = Guest::new(shell);
        let port = Port::new(&guest, "xpool.0");
        assert_eq!(guest.run(&["session", "0"]).code, Some(1));
        port.until_closed();
    });
}

#[test]
fn a_port_that_is_not_there_is_told() {
    in_each_shell("a_port_that_is_not_there_is_told", |shell| {
        let guest = Guest::new(shell);
        let daemon = guest.daemon();
        let said = guest.run(&["session", "7"]);
        assert_eq!(said.code, Some(1));
        let told = "xpool-guest: no port /dev/virtio-ports/xpool.7\n";
        assert_eq!(said.stderr, told);
        assert!(daemon.is_alone());
    });
}

#[test]
fn a_guest_is_ready_when_its_daemon_answers_the_handshake() {
    in_each_shell(
        "a_guest_is_ready_when_its_daemon_answers_the_handshake",
        |shell| {
            let guest = Guest::new(shell);
            let daemon = guest.daemon();
            let said = asked(&guest, &daemon, b"oixd\x26\x01\0\0").said();
            assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
        },
    );
}

#[test]
fn a_daemon_that_answers_something_else_is_told() {
    in_each_shell("a_daemon_that_answers_something_else_is_told", |shell| {
        let guest = Guest::new(shell);
        let daemon = guest.daemon();
        let said = asked(&guest, &daemon, b"HTTP/1.1 400").said();
        assert_eq!(said.code, Some(1));
        let told = "xpool-guest: nix-daemon did not answer the handshake (got 'HTTP')\n";
        assert_eq!(said.stderr, told);
    });
}

#[test]
fn a_daemon_that_says_nothing_is_told_in_time() {
    in_each_shell("a_daemon_that_says_nothing_is_told_in_time", |shell| {
        let guest = Guest::new(shell);
        let daemon = guest.daemon();
        let running = guest.start(&["ready"]);
        // Held open for as long as it is asked.
        let _silent = daemon.accept();
        let said = running.said();
        assert_eq!(said.code, Some(1));
        let told = "nix-daemon did not answer the handshake (got '')\n";
        assert!(said.stderr.ends_with(told), "{}", said.stderr);
    });
}

#[test]
fn a_daemon_that_does_not_listen_yet_is_told() {
    in_each_shell("a_daemon_that_does_not_listen_yet_is_told", |shell| {
        let said = Guest::new(shell).run(&["ready"]);
        assert_eq!(said.code, Some(1));
        let told =
            "xpool-guest: nix-daemon has no socket at /nix/var/nix/daemon-socket/socket yet\n";
        assert_eq!(said.stderr, told);
    });
}

/// Asks whether the guest is ready, of a daemon that answers this, and goes when its client has no more to say.
#[track_caller]
fn asked(guest: &Guest, daemon: &Daemon, answer: &[u8]) -> Running {
    let running = guest.start(&["ready"]);
    let mut stream = daemon.accept();
    let mut magic = [0; 8];
    stream.read_exact(&mut magic).unwrap();
    assert_eq!(&magic, b"cxin\0\0\0\0");
    stream.write_all(answer).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    running
}
