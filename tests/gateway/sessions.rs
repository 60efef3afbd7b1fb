//! Sessions over SSH, from the wait to the end.

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use xpool::manager::ticket::{NewSession, SessionReport, SessionUpdate};
use xpool::nix::stderr;
use xpool::nix::wire::{Version, put_number, put_string};

use crate::rig::{
    Rig, SLOT, echo_to_all, grant, grant_with, killed, query, shake_hands, shake_hands_as_guest,
    within,
};

const V: Version = Version::PROMISED;

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_asks_for_no_vm() {
    let mut rig = Rig::start().await;
    let mut client = rig.client().await;
    drop(client.ssh.stdin.take());
    let (said, status) = client.ended().await;
    assert_eq!((said.as_str(), status), ("", Some(0)));
    assert!(rig.sessions.try_recv().is_err(), "a ticket was opened");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_session_hears_what_it_waits_for_and_that_it_is_refused() {
    let mut rig = Rig::start().await;
    let (mut client, session) = rig.parked().await;
    assert_eq!(session.request.slot, SLOT);
    assert!(
        session.request.client.starts_with("local 127.0.0.1:"),
        "{}",
        session.request.client
    );
    assert!(
        session.request.client.contains(" SHA256:"),
        "{}",
        session.request.client
    );
    let waiting = SessionUpdate::Waiting("starting riscv64-1".to_owned());
    session.updates.send(waiting).await.unwrap();
    client
        .expect(&stderr::line("xpool: starting riscv64-1"))
        .await;
    let rejected = SessionUpdate::Rejected("no memory for another VM".to_owned());
    session.updates.send(rejected).await.unwrap();
    client
        .expect(&stderr::error(V, "xpool: no memory for another VM"))
        .await;
    drop(client.ssh.stdin.take());
    assert_eq!(client.ended().await.1, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_while_it_waits_gives_up_its_place() {
    let mut rig = Rig::start().await;
    let (mut client, session) = rig.parked().await;
    client.ssh.kill().await.unwrap();
    within(session.updates.closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_without_end_while_it_waits_is_held_back_and_missed_when_it_vanishes() {
    let mut rig = Rig::start().await;
    let (mut client, session) = rig.parked().await;
    let mut stdin = client.ssh.stdin.take().unwrap();
    let flood =
        tokio::spawn(async move { while stdin.write_all(&vec![0; 1 << 20]).await.is_ok() {} });
    // Nobody can see from outside when the last buffer is full; that it gets full is what matters.
    let stuck = tokio::time::timeout(std::time::Duration::from_secs(2), flood).await;
    assert!(stuck.is_err(), "the gateway took everything");
    client.ssh.kill().await.unwrap();
    within(session.updates.closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_sends_while_it_waits_arrives_once_it_has_a_guest() {
    let mut rig = Rig::start().await;
    let (mut client, session) = rig.parked().await;
    let sent = noise(7, 24 << 20);
    let expected = Sha256::digest(&sent);
    let mut got = vec![0; sent.len()];
    let mut stdin = client.ssh.stdin.take().unwrap();
    let writing = tokio::spawn(async move { stdin.write_all(&sent).await.map(|()| stdin) });
    let mut guest = grant(&session).await;
    let first = shake_hands_as_guest(&mut guest).await;
    let already = first.len().saturating_sub(query().len());
    got[..already].copy_from_slice(&first[first.len() - already..]);
    let mut rest = vec![0; query().len().saturating_sub(first.len())];
    within(guest.read_exact(&mut rest)).await.unwrap();
    // A guest that is slower than its client: the inbox is full most of the time.
    for part in got[already..].chunks_mut(64 << 10) {
        within(guest.read_exact(part)).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(Sha256::digest(&got), expected);
    drop(writing.await.unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_closes_its_hop() {
    let mut rig = Rig::start().await;
    let (mut client, session, mut guest) = rig.joined().await;
    client.ssh.kill().await.unwrap();
    assert_eq!(within(guest.read(&mut [0; 16])).await.unwrap(), 0);
    guest.write_all(b"half a close?").await.unwrap_err();
    within(session.updates.closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_dies_between_frames_is_an_error_in_the_build() {
    let mut rig = Rig::start().await;
    let (mut client, session, mut guest) = rig.joined().await;
    guest.write_all(&stderr::line("working")).await.unwrap();
    client.expect(&stderr::line("working")).await;
    drop(guest);
    session.updates.send(killed()).await.unwrap();
    let text = "xpool: riscv64-1 ended in the middle of the session: QEMU was killed by signal 9; \
        its console is in /run/xpool/riscv64-1.log";
    client.expect(&stderr::error(V, text)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_dies_within_a_frame_is_told_on_standard_error() {
    let mut rig = Rig::start().await;
    let (mut client, session, mut guest) = rig.joined().await;
    // The query's reply, then a build's first bytes, so that a build hook listens.
    let mut reply = Vec::new();
    put_number(&mut reply, stderr::LAST);
    put_number(&mut reply, 0);
    guest.write_all(&reply).await.unwrap();
    client.expect(&reply).await;
    client.send(&build()).await;
    let mut got = vec![0; build().len()];
    within(guest.read_exact(&mut got)).await.unwrap();
    guest.write_all(&stderr::line("half")[..12]).await.unwrap();
    client.expect(&stderr::line("half")[..12]).await;
    drop(guest);
    session.updates.send(killed()).await.unwrap();
    let (said, status) = client.ended().await;
    let text = "xpool: riscv64-1 ended in the middle of the build: QEMU was killed by signal 9; \
        its console is in /run/xpool/riscv64-1.log";
    let expected = format!("{text}\n@nix {{\"action\":\"msg\",\"level\":0,\"msg\":\"{text}\"}}\n");
    assert_eq!((said, status), (expected, Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_fetch_is_refused_on_a_vm_that_has_had_its_build() {
    let text = "xpool: riscv64-1 has had its build and is only kept until that is fetched; \
        anything else needs a new connection";
    let mut rig = Rig::start().await;
    // A build is refused in the protocol, what is not known on standard error.
    for (number, told, said) in [
        (36_u64, stderr::error(V, text), String::new()),
        (20, Vec::new(), format!("{text}\n")),
    ] {
        let (mut client, session) = rig.parked().await;
        let mut guest = grant_with(&session, true).await;
        let mut got = shake_hands_as_guest(&mut guest).await;
        let reply = [stderr::LAST.to_le_bytes(), [0; 8]].concat();
        guest.write_all(&reply).await.unwrap();
        client.expect(&reply).await;
        client.send(&number.to_le_bytes()).await;
        client.expect(&told).await;
        drop(client.ssh.stdin.take());
        assert_eq!(client.ended().await, (said, Some(1)));
        within(guest.read_to_end(&mut got)).await.unwrap();
        assert_eq!(got, query(), "the guest has got something else");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_hears_what_a_session_does() {
    let mut rig = Rig::start().await;
    let (mut client, mut session, mut guest) = rig.joined().await;
    assert_eq!(activity(&mut session).await, "looking for inputs");
    let mut reply = Vec::new();
    put_number(&mut reply, stderr::LAST);
    put_number(&mut reply, 0);
    guest.write_all(&reply).await.unwrap();
    client.expect(&reply).await;
    client.send(&build()).await;
    assert_eq!(activity(&mut session).await, "building hello-2.12.drv");
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_sessions_of_one_connection_carry_their_bytes_unchanged() {
    let rig = Rig::start().await;
    let connection = rig.russh().await;
    echo_to_all(rig.sessions);
    let mut transfers = tokio::task::JoinSet::new();
    for seed in 0..8 {
        let channel = connection.channel_open_session().await.unwrap();
        channel.exec(true, "nix-daemon --stdio").await.unwrap();
        transfers.spawn(echoes(channel.into_stream(), noise(seed, 1 << 20)));
    }
    while let Some(transfer) = within(transfers.join_next()).await {
        transfer.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_transfer_arrives_unchanged_both_ways() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    echo_to_all(rig.sessions);
    let sent = noise(99, 16 << 20);
    let expected = Sha256::digest(&sent);
    let (mut stdin, mut stdout) = (
        client.ssh.stdin.take().unwrap(),
        client.ssh.stdout.take().unwrap(),
    );
    let mut got = vec![0; sent.len()];
    let writing = tokio::spawn(async move { stdin.write_all(&sent).await.map(|()| stdin) });
    within(stdout.read_exact(&mut got)).await.unwrap();
    assert_eq!(Sha256::digest(&got), expected);
    drop(writing.await.unwrap().unwrap());
    assert_eq!(client.ended().await, (String::new(), Some(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ends_during_an_upload_is_not_half_closed() {
    let mut rig = Rig::start().await;
    let (mut client, session) = rig.parked().await;
    let guest = grant(&session).await;
    drop(guest);
    let mut got = Vec::new();
    let stdout = client.ssh.stdout.as_mut().unwrap();
    let mut word = [0; 8];
    within(stdout.read_exact(&mut word)).await.unwrap();
    got.extend(word);
    assert_eq!(u64::from_le_bytes(word), stderr::ERROR);
    drop(client.ssh.stdin.take());
    assert_eq!(client.ended().await.1, Some(1));
    within(session.updates.closed()).await;
}

/// A build's request with nothing in it but a name.
fn build() -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, 36);
    put_string(
        &mut out,
        b"/nix/store/8bz3i8cqlvgmgsv2njsm40kwqjb3f8ys-hello-2.12.drv",
    );
    for _ in 0..7 {
        put_number(&mut out, 0);
    }
    out
}

/// Bytes without a pattern; the first ones are no operation that is watched.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

async fn echoes<S>(stream: S, sent: Vec<u8>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + 'static,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    shake_hands(&mut reader, &mut writer).await;
    let expected = Sha256::digest(&sent);
    let mut got = vec![0; sent.len()];
    let writing = tokio::spawn(async move { writer.write_all(&sent).await.map(|()| writer) });
    within(reader.read_exact(&mut got)).await.unwrap();
    assert_eq!(Sha256::digest(&got), expected);
    writing.await.unwrap().unwrap();
}

/// What the session says next that it does.
async fn activity(session: &mut NewSession) -> String {
    match within(session.reports.recv()).await {
        Some(SessionReport::Activity(activity)) => activity,
        other => panic!("{other:?}"),
    }
}
