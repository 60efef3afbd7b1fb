//! One side sends and the other does not read: nothing piles up, and nothing is lost.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::apart::Apart;
use crate::fake::{Role, answer, counting, wish};
use crate::rig::{NixClient, Rig, SLOT, within};
use xpool::gateway::Limits;
use xpool::nix::wire::Version;

/// What bytes under way may add to the gateway's memory, in KiB: several times what its buffers hold, a small part of what is
/// sent.
const MOST_GROWTH_KIB: u64 = 24 << 10;

/// What is sent in all where a sender can be stopped in the middle, in bytes.
const SENT: usize = 64 << 20;

/// A sender that gets no further in this time is taken for stopped. Nobody can see from outside when the last buffer is full.
const STILL: Duration = Duration::from_secs(2);

async fn client(apart: &Apart, role: Role) -> NixClient {
    let mut client = apart.client().await;
    client.send(&wish(role)).await;
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_costs_little_memory_and_loses_nothing() {
    let apart = Apart::start().await;
    let before = apart.memory_kib("VmHWM");
    let mut client = client(&apart, Role::Floods).await;
    let mut stdout = client.ssh.stdout.take().unwrap();
    let mut beginning = [0; 8];
    within(stdout.read_exact(&mut beginning)).await.unwrap();
    assert_eq!(beginning, 0_u64.to_le_bytes());
    tokio::time::sleep(STILL).await;

    let mut expected = counting(1);
    let mut chunk = vec![0; 1 << 20];
    for _ in 0..SENT / chunk.len() {
        within(stdout.read_exact(&mut chunk)).await.unwrap();
        let is_next = |byte: &u8| expected.next() == Some(*byte);
        assert!(chunk.iter().all(is_next), "bytes are missing");
    }
    let grown = apart.memory_kib("VmHWM") - before;
    assert!(grown <= MOST_GROWTH_KIB, "{grown} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_read_costs_little_memory_and_loses_nothing() {
    let apart = Apart::start().await;
    let before = apart.memory_kib("VmHWM");
    let mut deaf = client(&apart, Role::IsDeaf).await;
    let mut stdin = deaf.ssh.stdin.take().unwrap();
    let mut sending = tokio::spawn(async move {
        let sent: Vec<u8> = counting(0).take(SENT).collect();
        stdin.write_all(&sent).await.map(|()| stdin)
    });
    let stuck = timeout(STILL, &mut sending).await;
    assert!(stuck.is_err(), "the gateway took everything");
    let mut waking = client(&apart, Role::Wakes).await;
    waking.expect(&answer()).await;

    deaf.expect(&answer()).await;
    let stdout = deaf.ssh.stdout.as_mut().unwrap();
    let mut expected = counting(0);
    let mut chunk = vec![0; 1 << 20];
    for _ in 0..SENT / chunk.len() {
        within(stdout.read_exact(&mut chunk)).await.unwrap();
        let is_next = |byte: &u8| expected.next() == Some(*byte);
        assert!(chunk.iter().all(is_next), "bytes are missing");
    }
    drop(within(sending).await.unwrap().unwrap());
    let grown = apart.memory_kib("VmHWM") - before;
    assert!(grown <= MOST_GROWTH_KIB, "{grown} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_makes_the_gateway_hold_too_much_waits_and_its_connections_can_be_cut() {
    let limits = Limits {
        max_held_per_key: 0,
        ..Limits::default()
    };
    let mut rig = Rig::with(limits, Version::PROMISED).await;
    let (mut parked, _session) = rig.parked().await;
    let mut stdin = parked.ssh.stdin.take().unwrap();
    let mut sending = tokio::spawn(async move {
        let _ = stdin.write_all(&vec![0; SENT]).await;
    });
    let stuck = timeout(STILL, &mut sending).await;
    assert!(stuck.is_err(), "the gateway took everything");
    // Another one of the key has its share.
    let (_other, _its_session) = rig.parked().await;
    rig.stop.cancel();
    within(rig.ended).await.unwrap().unwrap();
    within(sending).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_leaves_connections_to_others() {
    let limits = Limits {
        max_connections: 4,
        ..Limits::default()
    };
    let mut rig = Rig::with(limits, Version::PROMISED).await;
    let mut parked = Vec::new();
    for _ in 0..3 {
        parked.push(rig.parked().await);
    }
    let fourth = within(rig.ssh(SLOT).arg("nix-daemon --stdio").output())
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&fourth.stderr);
    assert!(said.contains("Permission denied"), "{said}");
    let alice = rig.alices.client_file();
    let _other = within(rig.client_with(&alice)).await;
    parked.pop();
    drop(within(rig.client()).await);
}
