//! Both ends of the local transport over a real socket, with the test as Nix, as the manager behind it, and as the guest.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::helper::Connection;
use super::server::{self, Allowed};
use super::wire::{self, ToHelper, ToManager};
use crate::activation::Handover;
use crate::manager::ticket::{
    BuildLimits, First, Grant, InputsOnTheirWay, NewSession, SessionDesk, SessionReport,
    SessionRequest, SessionUpdate, Share,
};
use crate::nix::System;
use crate::nix::handshake::{ClientProgress, ClientSide, Promise, ServerProgress, ServerSide};
use crate::nix::stderr;
use crate::nix::wire::{Version, put_number, put_string};
use crate::session::account::Account;
use crate::session::{self, Outcome};
use crate::shutdown::Shutdown;
use crate::vm::Hop;

const SLOT: &str = "riscv64-00";
const V: Version = Version::PROMISED;

/// Longer than anything here takes. No test waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(60);

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.unwrap()
}

/// A manager's end of the transport, and the manager behind it.
struct Server {
    sessions: mpsc::Receiver<NewSession>,
    running: JoinHandle<()>,
    stop: DropGuard,
}

impl Server {
    fn start(folder: &TempDir, allowed: Allowed) -> Self {
        Self::start_with(folder, allowed, Handover::default())
    }

    fn start_with(folder: &TempDir, allowed: Allowed, handover: Handover) -> Self {
        let listener = crate::state::listen(&folder.path().join("sock")).unwrap();
        let (desk, sessions) = SessionDesk::channel();
        let stop = CancellationToken::new();
        let slots = [(SLOT.to_owned(), System::Riscv64Linux)].into();
        let running = server::serve(
            listener,
            allowed,
            slots,
            desk,
            Arc::new(|_, _, _| {}),
            handover,
            stop.clone(),
        );
        Self {
            sessions,
            running: tokio::spawn(running),
            stop: stop.drop_guard(),
        }
    }

    async fn session(&mut self) -> NewSession {
        within(self.sessions.recv()).await.unwrap()
    }

    /// As it ends by itself.
    async fn end(self) {
        drop(self.stop);
        within(self.running).await.unwrap();
    }

    /// As a kill ends it: nobody is told anything.
    async fn die(self) {
        self.running.abort();
        let _ = self.running.await;
    }
}

fn owner() -> Allowed {
    Allowed {
        owner: rustix::process::geteuid().as_raw(),
        group: None,
    }
}

/// A Nix that talks to a helper.
struct Nix {
    stream: DuplexStream,
    ended: JoinHandle<Outcome>,
}

impl Nix {
    /// One whose helper has shaken hands with it.
    async fn start(folder: &TempDir, slot: &str) -> Self {
        let connection = Connection::open(&folder.path().join("sock")).await.unwrap();
        let (stream, helper) = tokio::io::duplex(256 * 1024);
        let (reader, writer) = tokio::io::split(helper);
        let request = SessionRequest {
            system: System::Riscv64Linux,
            slot: slot.to_owned(),
            seat: slot.to_owned(),
            client: "local".to_owned(),
            key: "local".to_owned(),
            share: Share::Host,
            secrets: true,
            first: First::Other,
        };
        let desk = connection.desk();
        let ended = tokio::spawn(async move {
            session::serve(
                reader,
                writer,
                Account::unlimited().charge(),
                &desk,
                request,
                &Promise::of_xpool(),
            )
            .await
        });
        let mut nix = Self { stream, ended };
        nix.shake_hands().await;
        nix
    }

    async fn shake_hands(&mut self) {
        let mut side = ClientSide::new(V);
        self.stream.write_all(&side.hello()).await.unwrap();
        loop {
            let mut chunk = [0; 100];
            let n = within(self.stream.read(&mut chunk)).await.unwrap();
            assert!(n > 0, "ended within the handshake");
            if let ClientProgress::Done { .. } = side.receive(&chunk[..n]).unwrap() {
                return;
            }
        }
    }

    async fn expect(&mut self, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        within(self.stream.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, bytes, "{}", String::from_utf8_lossy(&got));
    }

    async fn leave(self) -> Outcome {
        drop(self.stream);
        within(self.ended).await.unwrap()
    }
}

/// `NarFromPath` of some path.
fn fetch() -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, 38);
    put_string(
        &mut out,
        b"/nix/store/b0a26ff37b0c5c35c34c0d4d0cb00b18-hello",
    );
    out
}

/// `QueryValidPaths` of none: what any VM can answer.
fn ask() -> Vec<u8> {
    let mut out = Vec::new();
    for number in [31, 0, 0] {
        put_number(&mut out, number);
    }
    out
}

/// Gives a session a VM; the guest's end of it, which has shaken hands and has received the first operation.
async fn grant(session: &NewSession) -> UnixStream {
    grant_for(session, &fetch()).await
}

async fn grant_for(session: &NewSession, operation: &[u8]) -> UnixStream {
    let (stream, mut guest) = UnixStream::pair().unwrap();
    let (arrived, inputs) = InputsOnTheirWay::channel();
    let grant = Grant {
        vm: "riscv64-1".to_owned(),
        hop: Hop::new(stream),
        fetch_only: false,
        inputs,
        limits: BuildLimits::default(),
    };
    let updates = &session.updates;
    updates.send(SessionUpdate::Granted(grant)).await.unwrap();
    let mut received = shake_hands_as_guest(&mut guest).await;
    arrived.send(()).unwrap();
    let n_received = received.len();
    received.resize(operation.len(), 0);
    let rest = guest.read_exact(&mut received[n_received..]);
    within(rest).await.unwrap();
    assert_eq!(received, operation);
    guest
}

async fn shake_hands_as_guest(guest: &mut UnixStream) -> Vec<u8> {
    let mut side = ServerSide::new(Promise::of_xpool());
    loop {
        let mut chunk = [0; 4096];
        let n = within(guest.read(&mut chunk)).await.unwrap();
        assert!(n > 0, "ended within the handshake");
        match side.receive(&chunk[..n]).unwrap() {
            ServerProgress::More { reply } => guest.write_all(&reply).await.unwrap(),
            ServerProgress::Done { reply, rest, .. } => {
                guest.write_all(&reply).await.unwrap();
                return rest;
            }
        }
    }
}

/// The guest says that there is no such path, and Nix hears it.
async fn answer(nix: &mut Nix, guest: &mut UnixStream) {
    let error = stderr::error(V, "no such path");
    guest.write_all(&error).await.unwrap();
    nix.expect(&error).await;
}

#[tokio::test]
async fn a_session_is_queued_by_the_manager_and_served_by_the_helper() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&folder, owner());
    let mut nix = Nix::start(&folder, SLOT).await;
    nix.stream.write_all(&fetch()).await.unwrap();
    let mut session = server.session().await;
    let request = &session.request;
    assert_eq!((&request.slot[..], request.first.fetches()), (SLOT, true));
    assert_eq!(request.key, format!("uid {}", owner().owner));
    let mut guest = grant(&session).await;
    answer(&mut nix, &mut guest).await;
    let report = within(session.reports.recv()).await;
    assert_eq!(
        report,
        Some(SessionReport::Activity("copying outputs".to_owned()))
    );
    let vm = "riscv64-1".to_owned();
    assert_eq!(nix.leave().await, Outcome::Served { vm });
    within(session.updates.closed()).await;
    assert!(session.is_unfetched());
    assert_eq!(within(guest.read(&mut [0])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_manager_that_is_killed_does_not_end_what_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&folder, owner());
    let mut nix = Nix::start(&folder, SLOT).await;
    nix.stream.write_all(&fetch()).await.unwrap();
    let session = server.session().await;
    let mut guest = grant(&session).await;
    drop(session);
    server.die().await;
    answer(&mut nix, &mut guest).await;
    nix.stream.write_all(&fetch()).await.unwrap();
    answer(&mut nix, &mut guest).await;
    let vm = "riscv64-1".to_owned();
    assert_eq!(nix.leave().await, Outcome::Served { vm });
}

#[tokio::test]
async fn a_session_that_waits_is_taken_on_by_the_next_manager() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&folder, owner());
    let mut nix = Nix::start(&folder, SLOT).await;
    nix.stream.write_all(&fetch()).await.unwrap();
    drop(server.session().await);
    server.die().await;
    let mut server = Server::start(&folder, owner());
    let session = server.session().await;
    let mut guest = grant(&session).await;
    // What was said of the wait comes before.
    let error = stderr::error(V, "no such path");
    guest.write_all(&error).await.unwrap();
    heard_until(&mut nix, &error).await;
}

#[tokio::test]
async fn who_waits_and_who_comes_is_left_to_the_next_manager_where_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let shutdown = Shutdown::default();
    let handover = Handover::expected(&shutdown);
    let mut server = Server::start_with(&folder, owner(), handover);
    let mut waits = Nix::start(&folder, SLOT).await;
    waits.stream.write_all(&ask()).await.unwrap();
    let session = server.session().await;
    shutdown.drain.cancel();
    let down = SessionUpdate::Rejected("the pool is going down".to_owned());
    session.updates.send(down).await.unwrap();
    let mut comes = Nix::start(&folder, SLOT).await;
    comes.stream.write_all(&ask()).await.unwrap();
    // Outputs are here, and are fetched from here.
    let mut fetches = Nix::start(&folder, SLOT).await;
    fetches.stream.write_all(&fetch()).await.unwrap();
    let session = server.session().await;
    assert!(session.request.first.fetches());
    let mut guest = grant(&session).await;
    answer(&mut fetches, &mut guest).await;

    server.end().await;
    let mut server = Server::start(&folder, owner());
    let error = stderr::error(V, "no such path");
    // They come in any order.
    let sessions = [server.session().await, server.session().await];
    let mut guests = Vec::new();
    for session in &sessions {
        let mut guest = grant_for(session, &ask()).await;
        guest.write_all(&error).await.unwrap();
        guests.push(guest);
    }
    for nix in [&mut waits, &mut comes] {
        let heard = within(heard_until(nix, &error)).await;
        assert!(!heard.contains("going down"), "{heard}");
    }
}

#[tokio::test]
async fn a_manager_that_never_answers_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let _systemd = std::os::unix::net::UnixListener::bind(folder.path().join("sock")).unwrap();
    let mut nix = Nix::start(&folder, SLOT).await;
    nix.stream.write_all(&ask()).await.unwrap();
    tokio::time::pause();
    let mut heard = Vec::new();
    while nix.stream.read_buf(&mut heard).await.unwrap() > 0 {}
    let heard = String::from_utf8_lossy(&heard);
    assert!(heard.contains("no manager answers"), "{heard}");
    assert!(heard.contains("given up after 5 minutes"), "{heard}");
}

/// What a Nix hears until this comes.
async fn heard_until(nix: &mut Nix, last: &[u8]) -> String {
    let mut heard = Vec::new();
    while !heard.ends_with(last) {
        let more = nix.stream.read_buf(&mut heard).await.unwrap();
        assert!(more > 0, "ended after {}", String::from_utf8_lossy(&heard));
    }
    String::from_utf8_lossy(&heard).into_owned()
}

#[tokio::test]
async fn a_vm_that_ends_is_told_of_in_the_protocol() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&folder, owner());
    let mut nix = Nix::start(&folder, SLOT).await;
    nix.stream.write_all(&fetch()).await.unwrap();
    let session = server.session().await;
    let guest = grant(&session).await;
    let gone = SessionUpdate::VmGone {
        vm: "riscv64-1".to_owned(),
        cause: "QEMU was killed by signal 9".to_owned(),
        log: "/log".into(),
    };
    session.updates.send(gone).await.unwrap();
    drop(guest);
    let text = "xpool: riscv64-1 ended while outputs were copied from it: QEMU was killed by signal 9; its console is in /log";
    nix.expect(&stderr::error(V, text)).await;
}

#[tokio::test]
async fn a_slot_that_is_not_there_is_said_to_be_so() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Server::start(&folder, owner());
    let mut nix = Nix::start(&folder, "riscv64-99").await;
    nix.stream.write_all(&fetch()).await.unwrap();
    let text = "xpool: this manager has no slot `riscv64-99`";
    nix.expect(&stderr::error(V, text)).await;
}

#[test]
fn the_owner_root_and_the_group_may_connect() {
    let of = |group| Allowed { owner: 1000, group };
    let (own, root, other) = (1000, 0, 1001);
    assert!(of(None).allows(own, 1000, None));
    assert!(of(None).allows(root, 0, None));
    assert!(!of(None).allows(other, 1000, None));
    assert!(of(Some(50)).allows(other, 50, None));
    assert!(!of(Some(50)).allows(other, 1001, None));
    // This process has no such group, whoever runs it.
    let this = i32::try_from(std::process::id()).unwrap();
    assert!(!of(Some(u32::MAX)).allows(other, 1001, Some(this)));
}

mod strangers;
