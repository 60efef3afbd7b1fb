//! What is recorded of sessions: those that have had something built, and how long they had their VM.

use super::builds::{began, telling};
use super::*;
use crate::manager::worked::Worked;

/// The next session that is told of.
async fn next(fixture: &mut Fixture) -> Worked {
    let told = tokio::time::timeout(Duration::from_secs(60), fixture.worked.recv()).await;
    told.expect("within a minute").expect("the manager runs")
}

#[tokio::test(start_paused = true)]
async fn a_session_that_has_had_something_built_is_told_of_at_its_end() {
    let mut fixture = Fixture::new(1);
    let idle = telling(&fixture, &[]).await;
    drop(idle);
    let building = telling(&fixture, &[began("hello")]).await;
    tokio::time::advance(Duration::from_secs(90)).await;
    drop(building);
    // Not of the one that has had nothing built.
    let worked = next(&mut fixture).await;
    assert_eq!((worked.system, worked.client.as_str()), (SYSTEM, "test"));
    assert_eq!(worked.work.as_secs(), 90);
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_vm_dies_at_work_is_told_of() {
    let mut fixture = Fixture::new(1);
    let (mut ticket, _hop) = telling(&fixture, &[began("hello")]).await;
    tokio::time::advance(Duration::from_secs(5)).await;
    fixture.backend.break_vm(0);
    assert!(matches!(
        verdict(&mut ticket).await,
        SessionUpdate::VmGone { .. }
    ));
    assert_eq!(next(&mut fixture).await.work.as_secs(), 5);
    drop(ticket);
    let further = telling(&fixture, &[began("hello")]).await;
    drop(further);
    // It is told of once.
    assert_eq!(next(&mut fixture).await.work.as_secs(), 0);
}
