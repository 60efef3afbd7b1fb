//! Which sessions a VM takes, and how many VMs wait for them.

use super::*;

#[test]
fn never_a_vm_that_has_had_a_session_is_killed_at_its_end() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 2));
    pool.handle(now, open(1));
    assert_eq!(pool.handle(now, ready(1)), [assign(1, 1)]);
    assert_eq!(pool.handle(now, close(1)), [kill(1)]);
    assert_eq!(pool.handle(now, gone(1)), []);
    assert_eq!(pool.deadline(), None);
}

#[test]
fn never_a_vm_does_not_outlive_its_client_until_its_slot_is_closed() {
    let left = |outputs| Event::SessionLeft(SessionId(1), outputs);
    let (mut pool, now) = pool_with(policy(Reuse::Never, 2));
    pool.handle(now, open(1));
    pool.handle(now, ready(1));
    assert_eq!(pool.handle(now, left(Outputs::Unfetched)), []);
    assert_eq!(pool.handle(now, left(Outputs::Fetched)), [kill(1)]);
    assert_eq!(pool.handle(now, close(1)), []);
    assert_eq!(pool.handle(now, gone(1)), []);
}

#[test]
fn always_a_slot_is_free_when_it_is_closed_and_not_before() {
    let (mut pool, now) = pool_with(policy(Reuse::Always, 1));
    pool.handle(now, open(1));
    pool.handle(now, ready(1));
    pool.handle(now, Event::SessionLeft(SessionId(1), Outputs::Fetched));
    assert_eq!(pool.handle(now, open(2)), []);
    assert_eq!(pool.handle(now, close(1)), [assign(2, 1)]);
}

#[test]
fn never_the_next_session_gets_a_vm_of_its_own() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 1));
    pool.handle(now, open(1));
    pool.handle(now, ready(1));
    assert_eq!(pool.handle(now, open(2)), []);
    // The one that is ending still counts against the maximum.
    assert_eq!(pool.handle(now, close(1)), [kill(1)]);
    assert_eq!(pool.handle(now, gone(1)), [boot(2)]);
    assert_eq!(pool.handle(now, ready(2)), [assign(2, 2)]);
}

#[test]
fn never_a_vm_whose_session_went_before_it_was_ready_serves_another_one() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 1));
    pool.handle(now, open(1));
    pool.handle(now, close(1));
    assert_eq!(pool.handle(now, ready(1)), []);
    assert_eq!(pool.handle(now, open(2)), [assign(2, 1)]);
}

#[test]
fn never_a_busy_vm_is_one_of_those_that_are_kept_and_is_replaced_at_its_end() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 2));
    assert_eq!(pool.handle(now, Event::Up(1)), [boot(1)]);
    pool.handle(now, ready(1));
    assert_eq!(pool.handle(now, open(1)), [assign(1, 1)]);
    assert_eq!(pool.handle(now, Event::DeadlineReached), []);
    assert_eq!(pool.handle(now, close(1)), [kill(1), boot(2)]);
}

#[test]
fn warm_vms_are_kept_beside_those_at_work() {
    let warm = Policy {
        warm: 1,
        ..policy(Reuse::Never, 3)
    };
    let (mut pool, now) = pool_with(warm);
    assert_eq!(pool.handle(now, Event::DeadlineReached), [boot(1)]);
    assert_eq!(pool.handle(now, ready(1)), []);
    assert_eq!(pool.deadline(), None, "a warm VM is not idle too long");
    assert_eq!(pool.handle(now, open(1)), [assign(1, 1), boot(2)]);
    // One for the session, and one again to be warm.
    assert_eq!(pool.handle(now, open(2)), [boot(3)]);
    assert_eq!(pool.handle(now, ready(2)), [assign(2, 2)]);
    assert_eq!(pool.handle(now, ready(3)), []);
}

#[test]
fn a_warm_vm_counts_among_those_that_up_keeps() {
    let warm = Policy {
        warm: 1,
        ..policy(Reuse::Never, 3)
    };
    let (mut pool, now) = pool_with(warm);
    assert_eq!(pool.handle(now, Event::Up(1)), [boot(1)]);
}

#[test]
fn client_a_vm_takes_further_sessions_of_its_client_only() {
    let (mut pool, now) = pool_with(policy(Reuse::Client, 2));
    pool.handle(now, open_for("anna", 1));
    pool.handle(now, ready(1));
    assert_eq!(pool.handle(now, close(1)), []);
    assert_eq!(pool.handle(now, open_for("anna", 2)), [assign(2, 1)]);
    pool.handle(now, close(2));
    assert_eq!(pool.handle(now, open_for("ben", 3)), [boot(2)]);
    assert_eq!(pool.handle(now, ready(2)), [assign(3, 2)]);
}

#[test]
fn client_an_idle_vm_of_another_client_makes_room() {
    let (mut pool, now) = pool_with(policy(Reuse::Client, 1));
    pool.handle(now, open_for("anna", 1));
    pool.handle(now, ready(1));
    assert_eq!(pool.handle(now, open_for("ben", 2)), [], "it is in use");
    assert_eq!(pool.handle(now, close(1)), [kill(1)]);
    assert_eq!(pool.handle(now, open_for("ben", 3)), []);
    assert_eq!(pool.handle(now, gone(1)), [boot(2)]);
    assert_eq!(pool.handle(now, ready(2)), [assign(2, 2)]);
    assert_eq!(pool.handle(now, close(2)), [assign(3, 2)]);
}

#[test]
fn client_no_more_vms_are_killed_than_sessions_wait() {
    let (mut pool, now) = pool_with(policy(Reuse::Client, 2));
    for n in 1..=2 {
        pool.handle(now, open_for("anna", u64::from(n)));
        pool.handle(now, ready(n));
    }
    pool.handle(now, close(1));
    pool.handle(now + SECOND, close(2));
    assert_eq!(
        pool.handle(now + SECOND, open_for("ben", 3)),
        [kill(1)],
        "the one that is idle longest"
    );
    assert_eq!(pool.handle(now + SECOND, gone(1)), [boot(3)]);
}

#[test]
fn up_may_go_beyond_a_maximum_that_nobody_configured() {
    let unconfigured = Policy {
        up_limit: NonZeroU32::new(64).unwrap(),
        ..policy(Reuse::Never, 2)
    };
    let (mut pool, now) = pool_with(unconfigured);
    assert_eq!(pool.handle(now, Event::Up(8)).len(), 8);
    let status = pool.status(now);
    assert_eq!((status.max_vms, status.kept, status.up_limit), (8, 8, 64));
    pool.handle(now, Event::Down(Down::Drain));
    assert_eq!(pool.status(now).max_vms, 2);
    pool.handle(now, Event::Up(1));
    pool.handle(now, Event::Up(100));
    assert_eq!(pool.status(now).kept, 64);
}
