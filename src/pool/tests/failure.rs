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
fn a_session_that_comes_while_starts_fail_gets_one_more_try() {
    let (mut pool, mut now) = pool(4);
    pool.handle(now, open(1));
    for vm in 1..=3 {
        pool.handle(now, Event::VmExited(VmId(vm), failed("no agent")));
        now = pool.deadline().unwrap_or(now);
        pool.handle(now, Event::DeadlineReached);
    }
    assert_eq!(pool.handle(now, open(2)), []);
    assert_eq!(pool.handle(now, open(3)), []);
    now = pool.deadline().unwrap();
    assert_eq!(pool.handle(now, Event::DeadlineReached), [boot(4)]);
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
