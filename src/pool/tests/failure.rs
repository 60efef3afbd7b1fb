//! Starts that fail.

use super::*;

#[test]
fn three_failed_starts_in_a_row_reject_those_who_wait_with_the_reason() {
    let (mut pool, mut now) = pool(4);
    assert_eq!(pool.handle(now, open(1)), [boot(1)]);
    for vm in 1..=2 {
        assert_eq!(
            pool.handle(now, Event::VmExited(VmId(vm), failed("no agent"))),
            []
        );
        now = pool.deadline().unwrap();
        assert_eq!(pool.handle(now, Event::DeadlineReached), [boot(vm + 1)]);
    }
    let third = pool.handle(now, Event::VmExited(VmId(3), failed("no agent")));
    assert_eq!(third, [start_failed(1, "no agent")]);
}

#[test]
fn a_session_that_comes_after_the_back_off_gets_one_more_try() {
    let (mut pool, mut now) = pool(4);
    pool.handle(now, open(1));
    for vm in 1..=3 {
        pool.handle(now, Event::VmExited(VmId(vm), failed("no agent")));
        now = pool.deadline().unwrap_or(now);
        pool.handle(now, Event::DeadlineReached);
    }
    now += Policy::default().retry_max;
    assert_eq!(pool.handle(now, open(2)), [boot(4)]);
    assert_eq!(pool.handle(now, open(3)), []);
    let got = pool.handle(now, Event::VmExited(VmId(4), failed("no agent")));
    assert_eq!(
        got,
        [start_failed(2, "no agent"), start_failed(3, "no agent")]
    );
}

#[test]
fn a_start_that_cannot_be_helped_rejects_at_once() {
    let (mut pool, now) = pool(4);
    pool.handle(now, open(1));
    let exit = Exit::Failed {
        reason: "no image".to_owned(),
        retry: Retry::Pointless,
    };
    assert_eq!(
        pool.handle(now, Event::VmExited(VmId(1), exit)),
        [start_failed(1, "no image")]
    );
}

#[test]
fn a_boot_that_takes_too_long_is_given_up() {
    let (mut pool, now) = pool(1);
    pool.handle(now, open(1));
    let at = now + Policy::default().boot_timeout * 4 + Duration::from_secs(8 * 60);
    assert_eq!(pool.deadline(), Some(at));
    assert_eq!(
        pool.handle(at, Event::DeadlineReached),
        [Action::Kill(VmId(1))]
    );
}

/// A pool whose last three starts failed, of which one was for a session; and the moment of that.
fn degraded() -> (Pool, Instant) {
    let (mut pool, mut now) = pool(4);
    pool.handle(now, open(1));
    for vm in 1..=3 {
        assert!(!pool.status(now).degraded);
        pool.handle(now, Event::VmExited(VmId(vm), failed("no agent")));
        now = pool.deadline().unwrap_or(now);
        pool.handle(now, Event::DeadlineReached);
    }
    assert!(pool.status(now).degraded);
    (pool, now)
}

#[test]
fn a_session_that_comes_while_a_pool_is_degraded_is_told_so_at_once() {
    let (mut pool, now) = degraded();
    let reason = Rejection::Degraded {
        failures: 3,
        retry_in_s: 23,
        reason: "no agent".to_owned(),
    };
    assert_eq!(
        reason.to_string(),
        "the last 3 starts failed, and the next one is tried in 23 s: no agent"
    );
    let session = SessionId(2);
    assert_eq!(
        pool.handle(now, open(2)),
        [Action::Reject { session, reason }]
    );
    assert_eq!(pool.deadline(), None, "nobody wants a VM");
}

#[test]
fn one_good_start_heals_a_degraded_pool() {
    let (mut pool, now) = degraded();
    let later = now + SECOND * 23;
    assert_eq!(pool.handle(later, open(2)), [boot(4)]);
    assert_eq!(pool.handle(later, open(3)), [], "one is tried");
    assert_eq!(pool.handle(later, ready(4)), [assign(2, 4), boot(5)]);
    assert!(!pool.status(later).degraded);
}

#[test]
fn a_degraded_pool_tries_one_start_per_back_off_where_vms_are_kept() {
    let (mut pool, mut now) = pool(4);
    assert_eq!(pool.handle(now, Event::Up(2)).len(), 2);
    let mut starts = 2;
    pool.handle(now, Event::VmExited(VmId(2), failed("no agent")));
    for _ in 0..5 {
        pool.handle(now, Event::VmExited(VmId(starts - 1), failed("no agent")));
        pool.handle(now, Event::VmExited(VmId(starts), failed("no agent")));
        now = pool.deadline().unwrap();
        starts += 1;
        assert_eq!(pool.handle(now, Event::DeadlineReached), [boot(starts)]);
    }
}

#[test]
fn who_has_waited_too_long_is_told_so() {
    let impatient = Policy {
        wait_timeout: Some(SECOND * 90),
        ..policy(Reuse::Always, 1)
    };
    let (mut pool, now) = pool_with(impatient);
    pool.handle(now, open(1));
    pool.handle(now, ready(1));
    pool.handle(now, open(2));
    pool.handle(now + SECOND, open(3));
    assert_eq!(pool.deadline(), Some(now + SECOND * 90));
    let after = SECOND * 90;
    let reason = Rejection::WaitTimeout { after };
    assert_eq!(
        reason.to_string(),
        "no VM was free for 1m 30s, which is as long as `wait-timeout` allows"
    );
    let session = SessionId(2);
    assert_eq!(
        pool.handle(now + SECOND * 90, Event::DeadlineReached),
        [Action::Reject { session, reason }]
    );
    assert_eq!(pool.handle(now + SECOND * 90, close(1)), [assign(3, 1)]);
    assert_eq!(pool.deadline(), None);
}

#[test]
fn a_vm_that_dies_after_its_session_says_nothing_of_the_next_start() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 3));
    for n in 1..=3 {
        pool.handle(now, open(n));
    }
    for (session, vm) in [(1, 1), (2, 2), (3, 3)] {
        assert_eq!(pool.handle(now, ready(vm)), [assign(session, vm)]);
    }
    assert_eq!(pool.handle(now, open_for("anna", 4)), []);
    // Their outputs may still be fetched, so they are kept; and then their guests power off.
    for n in 1..=3 {
        let closed = Event::SessionClosed(SessionId(n), Outputs::Unfetched);
        assert_eq!(pool.handle(now, closed), []);
    }
    let off = || failed("the guest powered itself off");
    assert_eq!(pool.handle(now, Event::VmExited(VmId(1), off())), [boot(4)]);
    assert_eq!(pool.handle(now, Event::VmExited(VmId(2), off())), []);
    assert_eq!(pool.handle(now, Event::VmExited(VmId(3), off())), []);
    assert!(!pool.status(now).degraded);
}

#[test]
fn a_vm_that_dies_before_anybody_has_had_it_is_a_failed_start() {
    let (mut pool, mut now) = pool(1);
    for n in 1..=3 {
        assert_eq!(pool.handle(now, Event::Up(1)), [boot(n)]);
        pool.handle(now, ready(n));
        pool.handle(now, Event::VmExited(VmId(n), failed("it broke")));
        now = pool.deadline().unwrap();
    }
}
