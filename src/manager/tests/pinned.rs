//! VMs that are reached by their name, and leases that know when they end.

use super::super::ticket::{BuildBegan, BuildEnded, SessionReport, SessionTicket};
use super::*;
use crate::nix::store_path::StorePath;

impl Fixture {
    async fn open_named(&self, slot: &str, key: &str) -> SessionTicket {
        let request = SessionRequest {
            slot: slot.to_owned(),
            seat: slot.to_owned(),
            key: key.to_owned(),
            ..request(0, false)
        };
        self.handle.desk().open(request).await.unwrap()
    }

    /// A pool with a VM that nobody has used.
    async fn up(max_vms: u32) -> Self {
        let fixture = Self::new(max_vms);
        fixture.handle.up(SYSTEM, 1).await.unwrap();
        fixture
            .until(|status| status.systems[0].vms[0].state == VmStage::Ready)
            .await;
        fixture
    }
}

#[track_caller]
fn rejected(update: SessionUpdate) -> String {
    match update {
        SessionUpdate::Rejected(text) => text,
        other => panic!("not rejected: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_that_name_a_vm_get_it_one_after_the_other() {
    let fixture = Fixture::up(2).await;
    for _ in 0..2 {
        let mut ticket = fixture.open_named("vm-riscv64-1", "test").await;
        let grant = match verdict(&mut ticket).await {
            SessionUpdate::Granted(grant) => grant,
            other => panic!("{other:?}"),
        };
        assert_eq!((grant.vm.as_str(), grant.fetch_only), ("riscv64-1", false));
        let status = fixture.handle.status().await.unwrap();
        assert_eq!(status.systems[0].sessions[0].slot, "vm-riscv64-1");
    }
    let mut other = fixture.open().await;
    assert_eq!(granted(&mut other).await.0, "riscv64-2");
    let is_pinned = |status: &Status| status.systems[0].vms[0].state == VmStage::Pinned;
    fixture.until(is_pinned).await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_was_named_stays_when_its_disk_is_used_up() {
    let fixture = Fixture::up(1).await;
    fixture.backend.wear_out(0);
    for _ in 0..2 {
        let mut ticket = fixture.open_named("vm-riscv64-1", "test").await;
        assert_eq!(granted(&mut ticket).await.0, "riscv64-1");
    }
    let is_pinned = |status: &Status| status.systems[0].vms[0].state == VmStage::Pinned;
    fixture.until(is_pinned).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_hears_of_the_vm_that_it_has_named() {
    let fixture = Fixture::new(1);
    let mut build = fixture.open().await;
    let hop = granted(&mut build).await;
    let mut named = fixture.open_named("vm-riscv64-1", "test").await;
    match named.next().await.unwrap() {
        SessionUpdate::Waiting(text) => assert_eq!(text, "waiting for riscv64-1, which is busy"),
        other => panic!("{other:?}"),
    }
    drop((hop, build));
    assert_eq!(granted(&mut named).await.0, "riscv64-1");
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_not_there_or_not_theirs_is_refused_with_what_to_do() {
    let fixture = Fixture::new(2);
    let mut none = fixture.open_named("vm-riscv64-9", "test").await;
    assert_eq!(
        rejected(verdict(&mut none).await),
        "there is no VM riscv64-9, nor any other one of riscv64-linux: start one with `xpool up riscv64`"
    );
    let mut build = fixture.open().await;
    let _hop = granted(&mut build).await;
    let mut wrong = fixture.open_named("vm-riscv64-9", "test").await;
    assert_eq!(
        rejected(verdict(&mut wrong).await),
        "there is no VM riscv64-9: there is riscv64-1"
    );
    let mut strange = fixture.open_named("vm-riscv64-1", "stranger").await;
    assert_eq!(
        rejected(verdict(&mut strange).await),
        "riscv64-1 serves or has served another key: a VM can be reached by its name with one key only"
    );
    let blind = SessionRequest {
        slot: "vm-riscv64-1".to_owned(),
        share: Share::None,
        ..request(0, false)
    };
    let mut blind = fixture.handle.desk().open(blind).await.unwrap();
    assert_eq!(
        rejected(verdict(&mut blind).await),
        "riscv64-1 shows this machine's store, and VMs of your key do not: name another one"
    );
}

fn path(name: &str) -> StorePath {
    let text = format!("/nix/store/{}-{name}", "0".repeat(32));
    StorePath::parse(text.as_bytes()).unwrap()
}

/// Leases would hold for days here, so a VM that goes within the hour of [`Fixture::until`] is not kept by one.
fn long_leases() -> Fixture {
    let policy = Policy {
        lease: Duration::from_secs(3 * 24 * 3600),
        ..policy(Reuse::Never, 1)
    };
    Fixture::with(policy, "/nonexistent".into())
}

fn tell(ticket: &SessionTicket, report: SessionReport) {
    ticket.reports().send(report).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_vm_goes_when_all_that_was_told_of_is_fetched() {
    let fixture = long_leases();
    let mut build = fixture.open_by(3, false).await;
    drop(granted(&mut build).await);
    tell(
        &build,
        SessionReport::BuildBegan(BuildBegan {
            derivation: "/nix/store/x.drv".to_owned(),
            outputs: vec![path("out"), path("dev")],
        }),
    );
    tell(&build, SessionReport::BuildEnded(BuildEnded::default()));
    tell(&build, SessionReport::Fetched(path("out")));
    build.set_unfetched(true);
    drop(build);
    fixture
        .until(|status| status.systems[0].vms[0].state == VmStage::Leased)
        .await;
    // By another slot.
    let request = SessionRequest {
        first: First::Output(Some(path("dev"))),
        ..request(5, true)
    };
    let mut fetch = fixture.handle.desk().open(request).await.unwrap();
    assert_eq!(granted(&mut fetch).await.0, "riscv64-1");
    tell(&fetch, SessionReport::Fetched(path("dev")));
    fetch.set_unfetched(true);
    drop(fetch);
    fixture
        .until(|status| status.systems[0].vms.is_empty())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_seat_that_is_gone_keeps_no_vm() {
    let fixture = long_leases();
    let mut build = fixture.open_by(3, false).await;
    drop(granted(&mut build).await);
    build.set_unfetched(true);
    drop(build);
    fixture
        .until(|status| status.systems[0].vms[0].state == VmStage::Leased)
        .await;
    let seat = "riscv64-03".to_owned();
    let gone = fixture.handle.seat_gone(SYSTEM, "test".to_owned(), seat);
    gone.await.unwrap();
    fixture
        .until(|status| status.systems[0].vms.is_empty())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_drained_ends_with_its_session_and_another_one_is_unknown() {
    let fixture = Fixture::with(policy(Reuse::Always, 1), "/nonexistent".into());
    let mut first = fixture.open().await;
    assert_eq!(granted(&mut first).await.0, "riscv64-1");
    let refused = fixture
        .handle
        .drain("riscv64-7")
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "there is no VM `riscv64-7`: there is riscv64-1"
    );
    fixture.handle.drain("riscv64-1").await.unwrap().unwrap();
    let mut second = fixture.open_by(1, false).await;
    drop(first);
    assert_eq!(granted(&mut second).await.0, "riscv64-2");
}
