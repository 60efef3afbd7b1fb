//! What a VM is after its session.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_vm_that_has_done_its_build_is_killed() {
    let fixture = Fixture::new(1);
    let mut ticket = fixture.open().await;
    drop(granted(&mut ticket).await);
    drop(ticket);
    fixture
        .until(|status| status.systems[0].vms.is_empty())
        .await;
    assert_eq!(fixture.backend.calls(0), ["open hop", "kill"]);
}

#[tokio::test(start_paused = true)]
async fn a_vm_whose_disk_is_used_up_has_no_further_build() {
    let fixture = Fixture::with(policy(Reuse::Always, 1), "/nonexistent".into());
    let mut first = fixture.open().await;
    let (used, hop) = granted(&mut first).await;
    fixture.backend.wear_out(0);
    let mut second = fixture.open().await;
    drop((first, hop));
    let (other, _hop) = granted(&mut second).await;
    assert_eq!((used.as_str(), other.as_str()), ("riscv64-1", "riscv64-2"));
}

#[tokio::test(start_paused = true)]
async fn a_session_fetches_from_the_vm_that_has_built() {
    let fixture = Fixture::new(2);
    let mut first = fixture.open_by(3, false).await;
    let (built_by, _) = granted(&mut first).await;
    first.set_unfetched(true);
    drop(first);
    // It comes before the guest has closed the first one's port.
    let mut second = fixture.open_by(3, true).await;
    assert_eq!(granted(&mut second).await.0, built_by);
    second.set_unfetched(true);
    drop(second);
    let status = fixture
        .until(|status| status.systems[0].vms[0].state == VmStage::Leased)
        .await;
    assert_eq!(status.systems[0].vms[0].name, built_by);
    let mut third = fixture.open_by(3, true).await;
    assert_eq!(granted(&mut third).await.0, built_by);
    drop(third);
    fixture
        .until(|status| status.systems[0].vms.is_empty())
        .await;
    assert_eq!(fixture.backend.boots.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_leased_vm_is_paused_and_goes_when_nobody_comes() {
    let fixture = Fixture::new(1);
    let mut ticket = fixture.open().await;
    drop(granted(&mut ticket).await);
    ticket.set_unfetched(true);
    drop(ticket);
    let is_leased = |status: &Status| {
        let vm = status.systems[0].vms.first();
        vm.is_some_and(|vm| vm.paused && vm.state == VmStage::Leased)
    };
    fixture.until(is_leased).await;
    fixture
        .until(|status| status.systems[0].vms.is_empty())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_session_is_told_which_vm_it_waits_for() {
    let fixture = Fixture::new(2);
    let mut first = fixture.open_by(3, false).await;
    let _hop = granted(&mut first).await;
    let mut second = fixture.open_by(3, true).await;
    match second.next().await.unwrap() {
        SessionUpdate::Waiting(text) => {
            assert_eq!(
                text,
                "waiting for riscv64-1, which has what is to be fetched"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn warm_vms_wait_paused() {
    let warm = Policy {
        warm: 2,
        ..policy(Reuse::Never, 3)
    };
    let fixture = Fixture::with(warm, "/nonexistent".into());
    let are_paused = |status: &Status| {
        let vms = status.systems.first().map(|system| &system.vms);
        vms.is_some_and(|vms| vms.len() == 2 && vms.iter().all(|vm| vm.paused))
    };
    fixture.until(are_paused).await;
    let mut ticket = fixture.open().await;
    drop(granted(&mut ticket).await);
    drop(ticket);
    let status = fixture.until(are_paused).await;
    assert_eq!(status.systems[0].warm, 2);
}

#[tokio::test(start_paused = true)]
async fn who_comes_to_a_vm_that_has_had_its_build_may_only_fetch() {
    for (reuse, expected) in [(Reuse::Never, true), (Reuse::Client, false)] {
        let fixture = Fixture::with(policy(reuse, 1), "/nonexistent".into());
        let mut first = fixture.open_by(3, false).await;
        assert!(!fetch_only(&mut first).await, "nothing was built yet");
        first.set_unfetched(true);
        drop(first);
        let mut second = fixture.open_by(3, true).await;
        assert_eq!(fetch_only(&mut second).await, expected, "{reuse:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_fetches_what_nobody_has_is_free_on_a_vm_of_its_own() {
    let fixture = Fixture::new(1);
    let mut ticket = fixture.open_by(3, true).await;
    assert!(!fetch_only(&mut ticket).await);
}

async fn fetch_only(ticket: &mut SessionTicket) -> bool {
    match verdict(ticket).await {
        SessionUpdate::Granted(grant) => grant.fetch_only,
        other => panic!("not granted: {other:?}"),
    }
}
