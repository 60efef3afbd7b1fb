//! VMs that nobody uses are paused.

use std::sync::atomic::AtomicU64;

use super::*;
use crate::manager::rest::REST_AFTER;

async fn until_paused(fixture: &Fixture) -> Status {
    fixture
        .until(|status| status.systems[0].vms.first().is_some_and(|vm| vm.paused))
        .await
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_waits_is_paused_and_resumed_for_a_session() {
    let fixture = Fixture::with(policy(Reuse::Always, 1), "/nonexistent".into());
    fixture.handle.up(SYSTEM, 1).await.unwrap();
    let status = until_paused(&fixture).await;
    assert_eq!(status.systems[0].vms[0].pid, Some(std::process::id()));
    let mut ticket = fixture.open().await;
    let hop = granted(&mut ticket).await;
    assert!(!fixture.handle.status().await.unwrap().systems[0].vms[0].paused);
    drop((ticket, hop));
    until_paused(&fixture).await;
    let expected = [
        "pause",
        "paused",
        "resume",
        "resumed",
        "open hop",
        "slot released",
        "open ahead",
        "pause",
        "paused",
    ];
    assert_eq!(fixture.backend.calls(0), expected);
}

#[tokio::test(start_paused = true)]
async fn a_vm_with_a_session_is_not_paused() {
    let fixture = Fixture::new(1);
    let mut ticket = fixture.open().await;
    let _hop = granted(&mut ticket).await;
    tokio::time::sleep(REST_AFTER * 10).await;
    assert_eq!(fixture.backend.calls(0), ["open hop"]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_comes_while_a_vm_is_being_paused_resumes_it() {
    let fixture = Fixture::new(1);
    fixture.handle.up(SYSTEM, 1).await.unwrap();
    fixture
        .until(|status| status.systems[0].vms.iter().any(|vm| vm.boot_ms.is_some()))
        .await;
    tokio::time::sleep(REST_AFTER + Duration::from_millis(50)).await;
    assert_eq!(fixture.backend.calls(0), ["pause"]);
    let mut ticket = fixture.open().await;
    granted(&mut ticket).await;
    let expected = ["pause", "paused", "resume", "resumed", "open hop"];
    assert_eq!(fixture.backend.calls(0), expected);
}

#[tokio::test(start_paused = true)]
async fn a_paused_vm_is_resumed_to_be_shut_down() {
    let fixture = Fixture::new(1);
    fixture.handle.up(SYSTEM, 1).await.unwrap();
    until_paused(&fixture).await;
    let down = fixture.handle.down(vec![SYSTEM], Down::Drain).await;
    assert_eq!(down, Ok(Downed::Down));
    let expected = ["pause", "paused", "resume", "resumed", "power down"];
    assert_eq!(fixture.backend.calls(0), expected);
}

#[tokio::test(start_paused = true)]
async fn a_paused_vm_that_is_thrown_away_is_not_resumed_for_that() {
    let fixture = Fixture::new(1);
    fixture
        .backend
        .are_disposable
        .store(true, Ordering::Relaxed);
    fixture.handle.up(SYSTEM, 1).await.unwrap();
    until_paused(&fixture).await;
    let down = fixture.handle.down(vec![SYSTEM], Down::Drain).await;
    assert_eq!(down, Ok(Downed::Down));
    assert_eq!(fixture.backend.calls(0), ["pause", "paused", "power down"]);
}

#[tokio::test(start_paused = true)]
async fn a_paused_vm_that_cannot_be_resumed_to_be_shut_down_is_killed() {
    let fixture = Fixture::new(1);
    fixture.backend.bad_resumes.store(true, Ordering::Relaxed);
    fixture.handle.up(SYSTEM, 1).await.unwrap();
    until_paused(&fixture).await;
    fixture
        .handle
        .down(vec![SYSTEM], Down::Drain)
        .await
        .unwrap();
    let expected = ["pause", "paused", "resume", "kill"];
    assert_eq!(fixture.backend.calls(0), expected);
}

#[tokio::test(start_paused = true)]
async fn a_paused_vm_is_killed_as_it_is() {
    let fixture = Fixture::new(1);
    fixture.handle.up(SYSTEM, 1).await.unwrap();
    until_paused(&fixture).await;
    fixture.handle.down(vec![SYSTEM], Down::Now).await.unwrap();
    assert_eq!(fixture.backend.calls(0), ["pause", "paused", "kill"]);
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_cannot_be_paused_serves_on() {
    let fixture = Fixture::new(1);
    fixture.backend.bad_pauses.store(true, Ordering::Relaxed);
    fixture.handle.up(SYSTEM, 1).await.unwrap();
    fixture
        .until(|status| status.systems[0].vms.iter().any(|vm| vm.boot_ms.is_some()))
        .await;
    tokio::time::sleep(REST_AFTER * 2).await;
    let mut ticket = fixture.open().await;
    granted(&mut ticket).await;
    // It may have been paused without a word.
    let expected = ["pause", "resume", "resumed", "open hop"];
    assert_eq!(fixture.backend.calls(0), expected);
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_cannot_be_resumed_is_ended_and_its_session_gets_another_one() {
    let fixture = Fixture::new(1);
    fixture.backend.bad_resumes.store(true, Ordering::Relaxed);
    fixture.handle.up(SYSTEM, 1).await.unwrap();
    until_paused(&fixture).await;
    let mut ticket = fixture.open().await;
    assert_eq!(granted(&mut ticket).await.0, "riscv64-2");
    assert_eq!(
        fixture.backend.calls(0),
        ["pause", "paused", "resume", "kill"]
    );
}

#[tokio::test(start_paused = true)]
async fn the_clock_of_a_guest_at_work_is_set_when_the_host_has_slept() {
    let seconds = Arc::new(AtomicU64::new(7));
    let told = seconds.clone();
    let fixture = Fixture::around([(SYSTEM, policy(Reuse::Never, 1))].into(), move |manager| {
        manager.with_sleep(move || Duration::from_secs(told.load(Ordering::Relaxed)))
    });
    let mut ticket = fixture.open().await;
    granted(&mut ticket).await;
    let minute = Duration::from_secs(60);
    assert!(tokio::time::timeout(minute, ticket.next()).await.is_err());
    seconds.store(3600, Ordering::Relaxed);
    assert!(tokio::time::timeout(minute, ticket.next()).await.is_err());
    assert_eq!(fixture.backend.calls(0), ["open hop", "clock"]);
}
