//! VMs that are kept because a build has failed in them.

use super::*;

const KEPT: Duration = Duration::from_secs(600);

/// A pool of one VM, which has a session and may be kept.
fn pool_at_work() -> (Pool, Instant) {
    let (mut pool, now) = pool_with(Policy {
        keep_failed: Some(KEPT),
        ..policy(Reuse::Never, 1)
    });
    assert_eq!(pool.handle(now, open(1)), [boot(1)]);
    assert_eq!(pool.handle(now, Event::VmReady(VmId(1))), [assign(1, 1)]);
    (pool, now)
}

const FAILED: Event = Event::Failed(SessionId(1));

#[test]
fn the_vm_of_a_failed_build_is_kept_as_long_as_is_configured() {
    let (mut pool, now) = pool_at_work();
    assert_eq!(pool.handle(now, FAILED), []);
    assert_eq!(pool.handle(now + SECOND, close(1)), []);
    // It counts, and nobody else gets it.
    assert_eq!(pool.handle(now + SECOND, open(2)), []);
    assert_eq!(pool.deadline(), Some(now + KEPT));
    assert_eq!(pool.handle(now + KEPT, Event::DeadlineReached), [kill(1)]);
}

#[test]
fn a_kept_vm_ends_when_somebody_wants_it_to_before_the_failure_or_after_it() {
    for end in [Event::DrainVm(VmId(1)), Event::Down(Down::Drain)] {
        let (mut pool, now) = pool_at_work();
        pool.handle(now, FAILED);
        assert_eq!(pool.handle(now, close(1)), []);
        assert_eq!(pool.handle(now, end.clone()), [kill(1)]);
        let (mut pool, now) = pool_at_work();
        assert_eq!(pool.handle(now, end), []);
        pool.handle(now, FAILED);
        assert_eq!(pool.handle(now, close(1)), [kill(1)]);
    }
}

#[test]
fn a_vm_with_a_full_disk_is_kept_all_the_same() {
    let (mut pool, now) = pool_at_work();
    pool.handle(now, FAILED);
    assert_eq!(pool.handle(now, Event::Worn(VmId(1))), []);
    assert_eq!(pool.handle(now, close(1)), []);
    assert_eq!(pool.deadline(), Some(now + KEPT));
}

#[test]
fn a_session_whose_build_fails_later_has_its_vm_kept_anew() {
    let (mut pool, now) = pool_at_work();
    pool.handle(now, FAILED);
    let later = now + KEPT + SECOND;
    assert_eq!(pool.handle(later, Event::DeadlineReached), []);
    pool.handle(later, FAILED);
    assert_eq!(pool.handle(later, close(1)), []);
    assert_eq!(pool.deadline(), Some(later + KEPT));
}

#[test]
fn a_build_that_fails_for_a_full_disk_has_its_vm_kept() {
    let (mut pool, now) = pool_at_work();
    assert_eq!(pool.handle(now, Event::Worn(VmId(1))), []);
    pool.handle(now, FAILED);
    assert_eq!(pool.handle(now, close(1)), []);
    assert_eq!(pool.deadline(), Some(now + KEPT));
}
