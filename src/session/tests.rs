//! Sessions over an in-memory client, with the test as the manager and as the guest.

mod fetching;
mod inputs;
mod limits;
mod notes;
mod reports;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::manager::ticket::{
    BuildLimits, First, Grant, InputsOnTheirWay, NewSession, SessionUpdate, Share,
};
use crate::nix::System;
use crate::nix::handshake::{ClientProgress, ClientSide, ServerProgress, ServerSide};
use crate::nix::stderr;
use crate::nix::wire::{Version, put_number, put_string, put_strings};
use crate::store::HostStore;
use crate::vm::Hop;

const V: Version = Version::PROMISED;

fn promise() -> Promise {
    Promise {
        version: V,
        nix: "2.26.3".to_owned(),
    }
}

/// A session, its client, and its manager.
struct Rig {
    client: DuplexStream,
    sessions: mpsc::Receiver<NewSession>,
    ended: JoinHandle<Outcome>,
}

impl Rig {
    fn start() -> Self {
        Self::start_with(BTreeMap::new())
    }

    /// With stores that VMs see.
    fn start_with(stores: BTreeMap<System, Arc<HostStore>>) -> Self {
        Self::start_for(&account::Account::unlimited(), stores)
    }

    /// With a client's account.
    fn start_for(
        account: &Arc<account::Account>,
        stores: BTreeMap<System, Arc<HostStore>>,
    ) -> Self {
        let (desk, sessions) = SessionDesk::channel();
        let desk = desk.with_stores(stores);
        let (client, server) = tokio::io::duplex(256 * 1024);
        let (reader, writer) = tokio::io::split(server);
        let request = SessionRequest {
            system: System::Riscv64Linux,
            slot: "riscv64-00".to_owned(),
            seat: "riscv64-00".to_owned(),
            client: "test".to_owned(),
            key: "test".to_owned(),
            share: Share::Host,
            secrets: true,
            first: First::Other,
        };
        let charge = account.charge();
        let ended =
            tokio::spawn(
                async move { serve(reader, writer, charge, &desk, request, &promise()).await },
            );
        Self {
            client,
            sessions,
            ended,
        }
    }

    /// With a client that shook hands and sent its first operation, and the manager's side of it.
    async fn parked() -> (Self, NewSession) {
        Self::parked_with(&query()).await
    }

    async fn parked_with(first: &[u8]) -> (Self, NewSession) {
        let mut rig = Self::start();
        rig.shake_hands().await;
        rig.client.write_all(first).await.unwrap();
        let session = rig.sessions.recv().await.unwrap();
        (rig, session)
    }

    /// With a guest that shook hands and received the first operation.
    async fn joined() -> (Self, NewSession, UnixStream) {
        Self::joined_with(&query()).await
    }

    async fn joined_with(first: &[u8]) -> (Self, NewSession, UnixStream) {
        let (mut rig, session) = Self::parked_with(first).await;
        let mut guest = grant(&session).await;
        let mut received = shake_hands_as_guest(&mut guest).await;
        let n_received = received.len();
        received.resize(first.len(), 0);
        guest.read_exact(&mut received[n_received..]).await.unwrap();
        assert_eq!(received, first);
        rig.client.flush().await.unwrap();
        (rig, session, guest)
    }

    async fn shake_hands(&mut self) {
        let mut side = ClientSide::new(V);
        self.client.write_all(&side.hello()).await.unwrap();
        loop {
            let mut chunk = [0; 100];
            let n = self.client.read(&mut chunk).await.unwrap();
            if let ClientProgress::Done { .. } = side.receive(&chunk[..n]).unwrap() {
                return;
            }
        }
    }

    async fn expect(&mut self, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        self.client.read_exact(&mut got).await.unwrap();
        assert_eq!(
            String::from_utf8_lossy(&got),
            String::from_utf8_lossy(bytes)
        );
    }

    /// The client leaves; gives how the session ended.
    async fn leave(self) -> Outcome {
        drop(self.client);
        self.ended.await.unwrap()
    }
}

fn query() -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, 31);
    put_strings(&mut out, &["/nix/store/a"]);
    put_number(&mut out, 0);
    out
}

/// A first operation of a client that comes back for an output.
fn fetch() -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, 38);
    put_string(&mut out, b"/nix/store/o-hello-2.12");
    out
}

async fn grant(session: &NewSession) -> UnixStream {
    grant_with(session, false).await
}

async fn grant_with(session: &NewSession, fetch_only: bool) -> UnixStream {
    grant_limited(session, fetch_only, BuildLimits::default()).await
}

async fn grant_limited(session: &NewSession, fetch_only: bool, limits: BuildLimits) -> UnixStream {
    let (stream, guest) = UnixStream::pair().unwrap();
    let grant = Grant {
        vm: "riscv64-1".to_owned(),
        hop: Hop::new(stream),
        fetch_only,
        inputs: InputsOnTheirWay::default(),
        limits,
    };
    let granted = SessionUpdate::Granted(grant);
    session.updates.send(granted).await.unwrap();
    guest
}

/// Gives what came after the handshake.
async fn shake_hands_as_guest(guest: &mut UnixStream) -> Vec<u8> {
    let mut side = ServerSide::new(promise());
    loop {
        let mut chunk = [0; 4096];
        let n = guest.read(&mut chunk).await.unwrap();
        assert!(n > 0, "the session closed the hop");
        match side.receive(&chunk[..n]).unwrap() {
            ServerProgress::More { reply } => guest.write_all(&reply).await.unwrap(),
            ServerProgress::Done { reply, rest, .. } => {
                guest.write_all(&reply).await.unwrap();
                return rest;
            }
        }
    }
}

fn killed() -> SessionUpdate {
    SessionUpdate::VmGone {
        vm: "riscv64-1".to_owned(),
        cause: "QEMU was killed by signal 9".to_owned(),
        log: PathBuf::from("/run/xpool/riscv64-1.log"),
    }
}

const KILLED: &str = "xpool: riscv64-1 ended in the middle of the session: QEMU was killed by signal 9; \
    its console is in /run/xpool/riscv64-1.log";

fn told(text: &str) -> Outcome {
    Outcome::Told {
        text: text.to_owned(),
    }
}

#[tokio::test]
async fn a_client_that_only_shakes_hands_asks_for_no_vm() {
    let mut rig = Rig::start();
    rig.shake_hands().await;
    let mut sessions = std::mem::replace(&mut rig.sessions, mpsc::channel(1).1);
    assert_eq!(rig.leave().await, Outcome::NoDemand);
    assert!(sessions.recv().await.is_none());
}

#[tokio::test]
async fn something_that_is_no_client_is_told_so() {
    let mut rig = Rig::start();
    rig.client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let Outcome::Untold { text, .. } = rig.ended.await.unwrap() else {
        panic!("not refused");
    };
    assert!(
        text.starts_with("xpool: the peer does not speak Nix's worker protocol"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_cut() {
    let rig = Rig::start();
    let outcome = rig.ended.await.unwrap();
    assert_eq!(
        outcome,
        untold("xpool: no Nix client spoke within 20 seconds")
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_that_waits_says_what_for_and_that_it_lives() {
    let (mut rig, session) = Rig::parked().await;
    assert_eq!(session.request.slot, "riscv64-00");
    let waiting = || SessionUpdate::Waiting("starting riscv64-1, 2 ahead".to_owned());
    session.updates.send(waiting()).await.unwrap();
    session.updates.send(waiting()).await.unwrap();
    rig.expect(&stderr::line("xpool: starting riscv64-1, 2 ahead"))
        .await;
    rig.expect(&stderr::line("xpool: starting riscv64-1, 2 ahead (16 s)"))
        .await;
    rig.expect(&stderr::line("xpool: starting riscv64-1, 2 ahead (31 s)"))
        .await;
    assert_eq!(rig.leave().await, Outcome::LeftWaiting);
    session.updates.closed().await;
}

#[tokio::test]
async fn an_operation_that_comes_in_pieces_asks_for_a_vm_when_its_number_is_there() {
    let mut rig = Rig::start();
    rig.shake_hands().await;
    for byte in &fetch()[..7] {
        rig.client.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert!(rig.sessions.try_recv().is_err(), "a ticket was opened");
    rig.client.write_all(&fetch()[7..]).await.unwrap();
    let session = rig.sessions.recv().await.unwrap();
    assert!(session.request.first.fetches());
    let mut guest = grant(&session).await;
    let mut received = shake_hands_as_guest(&mut guest).await;
    let n_received = received.len();
    received.resize(fetch().len(), 0);
    guest.read_exact(&mut received[n_received..]).await.unwrap();
    assert_eq!(received, fetch());
}

#[tokio::test]
async fn a_client_that_leaves_within_its_first_number_asks_for_no_vm() {
    let mut rig = Rig::start();
    rig.shake_hands().await;
    rig.client.write_all(&fetch()[..7]).await.unwrap();
    assert_eq!(rig.leave().await, Outcome::NoDemand);
}

#[tokio::test]
async fn a_refusal_is_an_error_in_the_protocol() {
    let (mut rig, session) = Rig::parked().await;
    let text = "too many failed starts; see `xpool status`".to_owned();
    session
        .updates
        .send(SessionUpdate::Rejected(text))
        .await
        .unwrap();
    let expected = "xpool: too many failed starts; see `xpool status`";
    rig.expect(&stderr::error(V, expected)).await;
    assert_eq!(rig.leave().await, told(expected));
}

#[tokio::test]
async fn a_manager_that_disappears_is_an_error_in_the_protocol() {
    let (mut rig, session) = Rig::parked().await;
    drop(session);
    rig.expect(&stderr::error(V, &park::manager_gone(None)))
        .await;
    assert_eq!(rig.leave().await, told(&park::manager_gone(None)));
}

#[tokio::test]
async fn a_desk_without_a_manager_is_an_error_in_the_protocol() {
    let mut rig = Rig::start();
    rig.sessions.close();
    rig.shake_hands().await;
    rig.client.write_all(&query()).await.unwrap();
    let expected = "xpool: the xpool manager is shutting down; start it again with `xpool up`";
    rig.expect(&stderr::error(V, expected)).await;
}

#[tokio::test]
async fn a_guest_that_does_not_shake_hands_is_an_error_in_the_protocol() {
    let (mut rig, session) = Rig::parked().await;
    let mut guest = grant(&session).await;
    guest.read_exact(&mut [0; 32]).await.unwrap();
    drop(guest);
    let expected = "xpool: cannot use riscv64-1: its nix-daemon ended the connection in the middle of the handshake; \
        `xpool logs riscv64-1` shows the VM's console";
    rig.expect(&stderr::error(V, expected)).await;
}

#[tokio::test]
async fn bytes_pass_and_a_client_that_leaves_closes_the_hop() {
    let (mut rig, session, mut guest) = Rig::joined().await;
    guest
        .write_all(&stderr::line("from the guest"))
        .await
        .unwrap();
    rig.expect(&stderr::line("from the guest")).await;
    assert_eq!(
        rig.leave().await,
        Outcome::Served {
            vm: "riscv64-1".to_owned()
        }
    );
    assert_eq!(guest.read(&mut [0; 10]).await.unwrap(), 0);
    // Not only the end that the guest reads from: writing fails too.
    guest.write_all(b"still there?").await.unwrap_err();
    session.updates.closed().await;
}

#[tokio::test]
async fn a_vm_that_dies_between_frames_is_an_error_in_the_protocol() {
    let (mut rig, session, guest) = Rig::joined().await;
    drop(guest);
    session.updates.send(killed()).await.unwrap();
    rig.expect(&stderr::error(V, KILLED)).await;
    assert_eq!(rig.leave().await, told(KILLED));
}

#[tokio::test]
async fn a_vm_whose_stream_stays_open_when_it_dies_is_an_error_too() {
    let (mut rig, session, _guest) = Rig::joined().await;
    session.updates.send(killed()).await.unwrap();
    rig.expect(&stderr::error(V, KILLED)).await;
}

#[tokio::test]
async fn a_vm_that_dies_within_a_frame_is_left_to_the_front_end() {
    let (mut rig, session, mut guest) = Rig::joined().await;
    let frame = stderr::line("half of a line");
    guest.write_all(&frame[..12]).await.unwrap();
    rig.expect(&frame[..12]).await;
    drop(guest);
    session.updates.send(killed()).await.unwrap();
    let text = KILLED.to_owned();
    let expected = Outcome::Untold {
        text,
        to_hook: false,
    };
    assert_eq!(rig.ended.await.unwrap(), expected);
}

#[tokio::test]
async fn a_daemon_that_ends_alone_is_said_to_have_done_so() {
    let (mut rig, _session, guest) = Rig::joined().await;
    drop(guest);
    let expected = "xpool: the nix-daemon in riscv64-1 hung up in the middle of the session; \
        `xpool logs riscv64-1` shows the VM's console";
    rig.expect(&stderr::error(V, expected)).await;
}
