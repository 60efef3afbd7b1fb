//! Recorded sessions of real Nix clients and daemons pass through ssh, gateway and session as they are, byte for byte.

use std::process::Stdio;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use xpool::nix::handshake::{ClientProgress, ClientSide};
use xpool::nix::wire::Version;

use crate::capture::{Capture, Side};
use crate::rig::{NixClient, Rig, SLOT, grant, shake_hands_as_guest, within};

/// Those of which there are captures.
const RECORDED: [&str; 3] = ["2.8.0", "2.26.3", "2.34.8"];

/// The client's side of a handshake, with the bytes that it was recorded with.
async fn greet(client: &mut NixClient, version: Version, recorded: &[u8]) {
    client.send(recorded).await;
    let mut side = ClientSide::new(version);
    loop {
        let mut chunk = [0; 256];
        let stdout = client.ssh.stdout.as_mut().unwrap();
        let n = within(stdout.read(&mut chunk)).await.unwrap();
        assert!(n > 0, "the gateway ended the handshake");
        if let ClientProgress::Done { rest, .. } = side.receive(&chunk[..n]).unwrap() {
            assert!(rest.is_empty(), "the gateway spoke unasked: {rest:?}");
            return;
        }
    }
}

/// Has a client and a guest say what was recorded, and looks at what arrives.
async fn replay(rig: &mut Rig, capture: &Capture) {
    let (version, chunks) = capture.after_handshake();
    let said = capture.said(Side::Client);
    let n_later: usize = chunks
        .iter()
        .filter(|(side, _)| *side == Side::Client)
        .map(|(_, chunk)| chunk.len())
        .sum();
    let mut client = NixClient {
        ssh: rig
            .ssh(SLOT)
            .arg("nix-daemon --stdio")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    };
    greet(&mut client, version, &said[..said.len() - n_later]).await;
    let Some(((Side::Client, first), later)) = chunks.split_first() else {
        assert!(chunks.is_empty(), "a server that speaks first");
        return;
    };
    client.send(first).await;
    let session = rig.session().await;
    let mut guest = grant(&session).await;
    let mut received = shake_hands_as_guest(&mut guest).await;
    let n_received = received.len();
    received.resize(first.len(), 0);
    read(&mut guest, &mut received[n_received..]).await;
    assert_eq!(&received, first, "{}", capture.name);
    for (side, chunk) in later {
        let mut received = vec![0; chunk.len()];
        match side {
            Side::Client => {
                client.send(chunk).await;
                read(&mut guest, &mut received).await;
            }
            Side::Server => {
                within(guest.write_all(chunk)).await.unwrap();
                let stdout = client.ssh.stdout.as_mut().unwrap();
                within(stdout.read_exact(&mut received)).await.unwrap();
            }
        }
        assert_eq!(&received, chunk, "{}", capture.name);
    }
    drop(client.ssh.stdin.take());
    assert_eq!(within(guest.read(&mut [0])).await.unwrap(), 0, "more came");
    let (complaints, _) = client.ended().await;
    assert_eq!(complaints, "", "{}", capture.name);
}

async fn read(guest: &mut UnixStream, bytes: &mut [u8]) {
    within(guest.read_exact(bytes)).await.unwrap();
}

#[tokio::test]
async fn what_was_recorded_arrives_as_it_was_recorded() {
    let mut rig = Rig::start().await;
    for nix in RECORDED {
        for capture in Capture::all(nix) {
            replay(&mut rig, &capture).await;
        }
    }
}
