//! The builds that the manager remembers, and what it tells of them.

use super::*;
use crate::manager::events::{EventStream, Happening};
use crate::manager::status::{BuildOutcome, BuildView, CpuTime};
use crate::manager::ticket::{BuildBegan, BuildEnded, BuildProgress, SessionReport};

pub(super) fn began(name: &str) -> SessionReport {
    SessionReport::BuildBegan(BuildBegan {
        derivation: format!("/nix/store/8bz3i8cqlvgmgsv2njsm40kwqjb3f8ys-{name}.drv"),
        outputs: Vec::new(),
    })
}

fn progress(n_lines: u64) -> SessionReport {
    SessionReport::Progress(BuildProgress {
        last_lines: vec![format!("line {n_lines}")],
        n_lines,
        bytes_out: n_lines * 10,
        ..BuildProgress::default()
    })
}

fn ended() -> SessionReport {
    SessionReport::BuildEnded(BuildEnded {
        failure: None,
        cpu: Some((Duration::from_secs(2), Duration::from_millis(5))),
    })
}

/// A session that has its VM and tells this.
pub(super) async fn telling(fixture: &Fixture, reports: &[SessionReport]) -> (SessionTicket, Hop) {
    let mut ticket = fixture.open().await;
    let (_, hop) = granted(&mut ticket).await;
    for report in reports {
        tell(&ticket, report.clone()).await;
    }
    (ticket, hop)
}

async fn tell(ticket: &SessionTicket, report: SessionReport) {
    let reports = ticket.reports();
    reports.room().await;
    reports.send(report).unwrap();
}

/// The builds, when they are as wanted.
async fn builds(fixture: &Fixture, wanted: impl Fn(&[BuildView]) -> bool) -> Vec<BuildView> {
    let mut changes = fixture.handle.changes();
    let looking = async {
        loop {
            changes.borrow_and_update();
            let builds = fixture.handle.status().await.unwrap().builds;
            if wanted(&builds) {
                return builds;
            }
            changes.changed().await.unwrap();
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(60), looking).await;
    found.expect("within a minute")
}

fn all_ended(builds: &[BuildView]) -> bool {
    !builds.is_empty() && builds.iter().all(|build| build.ended.is_some())
}

fn failed(because: &str) -> BuildOutcome {
    let because = because.to_owned();
    BuildOutcome::Failed { because }
}

async fn next(events: &mut EventStream) -> Happening {
    let event = tokio::time::timeout(Duration::from_secs(60), events.next()).await;
    event.unwrap().unwrap().happening.clone()
}

#[tokio::test(start_paused = true)]
async fn a_build_is_remembered_with_what_it_has_said_and_taken() {
    let fixture = Fixture::new(1);
    let reports = [began("hello"), progress(3), ended()];
    let (ticket, _hop) = telling(&fixture, &reports).await;
    let build = builds(&fixture, all_ended).await.remove(0);
    assert_eq!((build.id, build.session, &*build.vm), (1, 1, "riscv64-1"));
    assert_eq!((&*build.slot, &*build.client), ("riscv64-00", "test"));
    assert_eq!(build.progress.last_lines, ["line 3"]);
    assert_eq!(build.outcome, Some(BuildOutcome::Built));
    let cpu = CpuTime {
        user_ms: 2000,
        system_ms: 5,
    };
    assert_eq!(build.cpu, Some(cpu));
    // Its outputs are copied after its end.
    tell(&ticket, progress(4)).await;
    builds(&fixture, |builds| builds[0].progress.bytes_out == 40).await;
}

#[tokio::test(start_paused = true)]
async fn a_build_whose_vm_dies_or_whose_client_leaves_has_that_as_its_result() {
    let fixture = Fixture::new(1);
    let (_ticket, _hop) = telling(&fixture, &[began("dies")]).await;
    builds(&fixture, |builds| builds.len() == 1).await;
    fixture.backend.break_vm(0);
    let dead = builds(&fixture, all_ended).await.remove(0);
    assert_eq!(
        dead.outcome,
        Some(failed("riscv64-1 ended: QEMU was killed by signal 9"))
    );
    let left = telling(&fixture, &[began("left")]).await;
    drop(left);
    let left = builds(&fixture, |builds| builds.len() == 2 && all_ended(builds)).await;
    assert_eq!(left[1].outcome, Some(failed("the client left")));
}

#[tokio::test(start_paused = true)]
async fn only_the_last_builds_are_remembered_and_all_that_run() {
    let fixture = Fixture::new(1);
    let mut reports = vec![];
    for n in 0..250 {
        reports.extend([began(&format!("hello-{n}")), ended()]);
    }
    reports.push(began("last"));
    let (_ticket, _hop) = telling(&fixture, &reports).await;
    let builds = builds(&fixture, |builds| {
        builds.last().is_some_and(|build| build.id == 251)
    })
    .await;
    assert_eq!((builds.len(), builds[0].id), (201, 51));
    assert_eq!(builds[200].outcome, None);
    assert!(fixture.handle.changes().borrow().builds.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_build_is_told_of_as_it_happens() {
    let fixture = Fixture::new(1);
    let mut events = fixture.handle.events().unwrap();
    let reports = [began("hello"), progress(3), ended()];
    let session = telling(&fixture, &reports).await;
    builds(&fixture, all_ended).await;
    drop(session);
    let mut told = Vec::new();
    while told.last() != Some(&"vm-ended".to_owned()) {
        let json = serde_json::to_value(next(&mut events).await).unwrap();
        told.push(json["event"].as_str().unwrap().to_owned());
    }
    let expected = "session-opened decided vm-started vm-ready build-began progress build-ended session-closed vm-ended";
    assert_eq!(told.join(" "), expected);
    fixture.shutdown.now.cancel();
    assert_eq!(events.next().await, None, "told once");
}

#[tokio::test(start_paused = true)]
async fn who_reads_events_slowly_is_told_how_many_were_missed() {
    let fixture = Fixture::new(1);
    let (ticket, _hop) = telling(&fixture, &[began("hello")]).await;
    builds(&fixture, |builds| builds.len() == 1).await;
    let mut events = fixture.handle.events().unwrap();
    for n in 1..=300 {
        tell(&ticket, progress(n)).await;
    }
    builds(&fixture, |builds| builds[0].progress.n_lines == 300).await;
    assert_eq!(next(&mut events).await, Happening::Missed { events: 44 });
    match next(&mut events).await {
        Happening::Progress { progress, .. } => assert_eq!(progress.n_lines, 45),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn events_end_with_the_manager() {
    let fixture = Fixture::new(1);
    let mut events = fixture.handle.events().unwrap();
    fixture.shutdown.now.cancel();
    fixture.running.await.unwrap();
    while events.next().await.is_some() {}
    assert!(fixture.handle.events().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_session_is_given_the_limits_of_its_pool() {
    let limits = BuildLimits {
        timeout: None,
        max_silent_time: Some(Duration::from_secs(600)),
    };
    let policy = Policy {
        build_limits: limits,
        ..policy(Reuse::Never, 1)
    };
    let fixture = Fixture::with(policy, "/nonexistent".into());
    let mut ticket = fixture.open().await;
    match verdict(&mut ticket).await {
        SessionUpdate::Granted(grant) => assert_eq!(grant.limits, limits),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_is_told_that_memory_ran_out_and_so_is_who_asks_for_its_build() {
    let fixture = Fixture::new(1);
    let (mut ticket, _hop) = telling(&fixture, &[began("link")]).await;
    builds(&fixture, |builds| !builds.is_empty()).await;
    fixture.backend.run_out_of_memory(0);
    let Some(SessionUpdate::Note(text)) = ticket.next().await else {
        panic!("no note")
    };
    let told = "riscv64-1 ran out of memory and its kernel killed `cc1plus`; it has 2048 MiB: raise `memory-mib` in xpool.toml";
    assert_eq!(text, told);
    let failure = Some("builder failed with exit code 1".to_owned());
    let ended = BuildEnded { failure, cpu: None };
    tell(&ticket, SessionReport::BuildEnded(ended)).await;
    let builds = builds(&fixture, all_ended).await;
    let because = "out of memory: `cc1plus` was killed; builder failed with exit code 1";
    assert_eq!(builds[0].outcome, Some(failed(because)));
}
