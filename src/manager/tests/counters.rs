//! What is counted of sessions, VMs and builds, for metrics.

use super::*;
use crate::activation::Handover;
use crate::manager::counters::Counters;
use crate::manager::tests::builds::{began, telling};

async fn counters(fixture: &Fixture) -> Counters {
    let status = fixture.handle.status().await.unwrap();
    status.systems[0].counters.clone()
}

#[tokio::test(start_paused = true)]
async fn a_session_is_counted_once_however_often_it_gets_a_vm() {
    let fixture = Fixture::new(1);
    fixture.backend.bad_hops.store(1, Ordering::Relaxed);
    let mut ticket = fixture.open().await;
    let (_, _hop) = granted(&mut ticket).await;
    let counters = counters(&fixture).await;
    assert_eq!(counters.sessions, 1);
    assert_eq!(counters.waits.counts.iter().sum::<u64>(), 1);
    assert_eq!((counters.vm_starts, counters.vm_failures), (2, 1));
    assert_eq!(counters.starts.counts.iter().sum::<u64>(), 2);
    assert!(counters.starts.sum_ms >= 2 * u64::try_from(BOOT.as_millis()).unwrap());
}

#[tokio::test(start_paused = true)]
async fn builds_are_counted_by_how_they_end() {
    let fixture = Fixture::new(1);
    let (ticket, hop) = telling(&fixture, &[began("hello")]).await;
    drop((ticket, hop));
    fixture
        .until(|status| status.systems[0].counters.builds.failed == 1)
        .await;
    assert_eq!(counters(&fixture).await.builds.built, 0);
}

#[tokio::test(start_paused = true)]
async fn who_is_left_to_the_next_manager_is_not_counted_as_rejected() {
    for (is_expected, rejections) in [(false, 1), (true, 0)] {
        let policies = BTreeMap::from([(SYSTEM, policy(Reuse::Never, 1))]);
        let shutdown = Shutdown::default();
        let handover = Handover::expected(&shutdown);
        let fixture = Fixture::around(policies, |manager| {
            if is_expected {
                manager.with_handover(&handover)
            } else {
                manager
            }
        });
        let mut served = fixture.open().await;
        let (_, _hop) = granted(&mut served).await;
        let _waits = fixture.open_by(1, false).await;
        let sessions = |n| move |status: &Status| status.systems[0].sessions.len() == n;
        fixture.until(sessions(2)).await;
        shutdown.drain.cancel();
        fixture.shutdown.drain.cancel();
        let status = fixture.until(sessions(1)).await;
        assert_eq!(status.systems[0].counters.sessions_rejected, rejections);
    }
}
