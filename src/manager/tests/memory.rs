//! The host's memory as the manager reads it.

use super::*;

fn meminfo(dir: &tempfile::TempDir, available_mib: u64) -> PathBuf {
    let file = dir.path().join("meminfo");
    let kib = available_mib * 1024;
    std::fs::write(&file, format!("MemTotal: 1 kB\nMemAvailable: {kib} kB\n")).unwrap();
    file
}

#[tokio::test(start_paused = true)]
async fn a_session_waits_for_memory_and_is_told_so_once() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::with(policy(Reuse::Never, 2), meminfo(&dir, 812));
    let mut ticket = fixture.open().await;
    match ticket.next().await.unwrap() {
        SessionUpdate::Waiting(text) => {
            let expected = "not enough memory for another VM: 812 MiB available, 1536 MiB needed";
            assert_eq!(text, expected);
        }
        other => panic!("{other:?}"),
    }
    meminfo(&dir, 820);
    let minute = Duration::from_secs(60);
    let told = tokio::time::timeout(minute, ticket.next()).await;
    assert!(told.is_err(), "told again: {told:?}");
    assert_eq!(fixture.backend.boots.load(Ordering::Relaxed), 0);
    meminfo(&dir, 1536);
    assert_eq!(granted(&mut ticket).await.0, "riscv64-1");
}

#[tokio::test(start_paused = true)]
async fn up_brings_what_there_is_memory_for_and_shows_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::with(policy(Reuse::Never, 8), meminfo(&dir, 2047));
    fixture.handle.up(SYSTEM, 8).await.unwrap();
    let status = fixture
        .until(|status| status.systems[0].shortage.is_some())
        .await;
    let system = &status.systems[0];
    assert_eq!((system.vms.len(), system.kept), (1, 8));
    meminfo(&dir, 100_000);
    let status = fixture
        .until(|status| status.systems[0].vms.len() == 8)
        .await;
    assert_eq!(status.systems[0].shortage, None);
}

#[tokio::test(start_paused = true)]
async fn an_idle_vm_of_another_system_makes_room_within_a_shared_budget() {
    let other = System::Aarch64Linux;
    let policies = [SYSTEM, other].map(|system| (system, policy(Reuse::Never, 2)));
    let budget = MachineBudget {
        vcpus: Some(1),
        ..MachineBudget::default()
    };
    let fixture = Fixture::of(policies.into(), "/proc/meminfo".into(), budget);
    fixture.handle.up(SYSTEM, 1).await.unwrap();
    let count = |status: &Status, system| {
        let of = status.systems.iter().find(|of| of.system == system);
        of.unwrap()
            .vms
            .iter()
            .filter(|vm| vm.boot_ms.is_some())
            .count()
    };
    fixture.until(|status| count(status, SYSTEM) == 1).await;
    let request = SessionRequest {
        system: other,
        slot: "aarch64-00".to_owned(),
        ..request(0, false)
    };
    let mut ticket = fixture.handle.desk().open(request).await.unwrap();
    assert_eq!(granted(&mut ticket).await.0, "aarch64-1");
    fixture.until(|status| count(status, SYSTEM) == 0).await;
    drop(ticket);
    fixture.until(|status| count(status, SYSTEM) == 1).await;
}

#[tokio::test(start_paused = true)]
async fn the_youngest_build_ends_where_the_host_runs_out_of_memory() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::with(policy(Reuse::Never, 2), meminfo(&dir, 8000));
    let mut first = fixture.open().await;
    granted(&mut first).await;
    tokio::time::advance(Duration::from_secs(5)).await;
    let mut second = fixture.open().await;
    granted(&mut second).await;
    // Half of the floor: nothing starts, and what runs goes on.
    meminfo(&dir, 512);
    let minute = Duration::from_secs(60);
    assert!(tokio::time::timeout(minute, second.next()).await.is_err());
    meminfo(&dir, 511);
    match second.next().await.unwrap() {
        SessionUpdate::VmGone { vm, cause, .. } => {
            assert_eq!(vm, "riscv64-2");
            assert!(
                cause.starts_with("this machine ran out of memory (511 MiB available)"),
                "{cause}"
            );
        }
        other => panic!("{other:?}"),
    }
    meminfo(&dir, 8000);
    assert!(tokio::time::timeout(minute, first.next()).await.is_err());
}
