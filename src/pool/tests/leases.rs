//! VMs that are kept for outputs that are still to be fetched.

use super::*;
use crate::pool::status::VmStage;

const LEASE: Duration = Duration::from_secs(10);

fn unfetched(session: u64) -> Event {
    Event::SessionClosed(SessionId(session), Outputs::Unfetched)
}

/// A session of another session's slot that fetches.
fn fetch(session: u64, slot: u64) -> Event {
    Event::SessionOpened(
        SessionId(session),
        claim("anna", slot, Purpose::Fetch(None)),
    )
}

/// A session of another session's slot that builds.
fn build(session: u64, slot: u64) -> Event {
    Event::SessionOpened(SessionId(session), claim("anna", slot, Purpose::Build))
}

/// A pool with sessions 1 … n, each on a VM of its number.
fn busy(reuse: Reuse, vms: u32) -> (Pool, Instant) {
    let (mut pool, now) = pool_with(policy(reuse, vms));
    for n in 1..=vms {
        pool.handle(now, open(u64::from(n)));
    }
    for n in 1..=vms {
        let expected = [assign(u64::from(n), n)];
        assert_eq!(pool.handle(now, Event::VmReady(VmId(n))), expected);
    }
    (pool, now)
}

#[test]
fn a_vm_with_unfetched_outputs_is_kept_until_its_lease_ends() {
    let (mut pool, now) = busy(Reuse::Never, 1);
    assert_eq!(pool.handle(now, unfetched(1)), []);
    assert_eq!(pool.status(now).vms[0].state, VmStage::Leased);
    assert_eq!(pool.deadline(), Some(now + LEASE));
    assert_eq!(
        pool.handle(now + LEASE, Event::DeadlineReached),
        [Action::Kill(VmId(1))]
    );
}

#[test]
fn a_session_that_fetches_gets_the_vm_that_has_it() {
    let (mut pool, now) = busy(Reuse::Never, 2);
    pool.handle(now, unfetched(2));
    assert_eq!(pool.handle(now, fetch(3, 2)), [assign_to_fetch(3, 2)]);
    assert_eq!(pool.deadline(), None, "the lease is suspended");
    assert_eq!(pool.handle(now, unfetched(3)), []);
    assert_eq!(
        pool.handle(now + SECOND, fetch(4, 2)),
        [assign_to_fetch(4, 2)]
    );
    assert_eq!(pool.handle(now, close(4)), [Action::Kill(VmId(2))]);
}

#[test]
fn a_session_that_fetches_waits_until_the_earlier_one_has_closed() {
    let (mut pool, now) = busy(Reuse::Never, 2);
    assert_eq!(pool.handle(now, fetch(3, 1)), []);
    assert_eq!(pool.status(now).queued[0].home, Some(VmId(1)));
    assert_eq!(pool.handle(now, unfetched(1)), [assign_to_fetch(3, 1)]);
}

#[test]
fn a_session_that_fetches_gets_its_vm_whatever_the_earlier_one_said() {
    let (mut pool, now) = busy(Reuse::Never, 1);
    pool.handle(now, fetch(2, 1));
    assert_eq!(pool.handle(now, close(1)), [assign_to_fetch(2, 1)]);
}

#[test]
fn a_session_that_fetches_waits_for_the_vm_of_the_session_just_before_it() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 2));
    pool.handle(now, build(1, 7));
    pool.handle(now, build(2, 7));
    // The second one is ready first.
    pool.handle(now, Event::VmReady(VmId(2)));
    pool.handle(now, Event::VmReady(VmId(1)));
    assert_eq!(pool.handle(now, fetch(3, 7)), []);
    assert_eq!(pool.status(now).queued[0].home, Some(VmId(1)));
}

#[test]
fn another_clients_slot_of_the_same_name_is_another_one() {
    let (mut pool, now) = busy(Reuse::Never, 2);
    pool.handle(now, unfetched(1));
    let other = Event::SessionOpened(SessionId(3), claim("ben", 1, Purpose::Fetch(None)));
    assert_eq!(pool.handle(now, other), []);
    assert_eq!(pool.status(now).queued[0].home, None);
}

#[test]
fn a_new_build_of_the_slot_ends_the_lease() {
    let (mut pool, now) = busy(Reuse::Never, 1);
    pool.handle(now, unfetched(1));
    assert_eq!(pool.handle(now, build(2, 1)), [Action::Kill(VmId(1))]);
}

#[test]
fn a_new_build_that_came_before_the_end_leaves_no_lease() {
    let (mut pool, now) = busy(Reuse::Never, 1);
    assert_eq!(pool.handle(now, build(2, 1)), []);
    assert_eq!(pool.handle(now, unfetched(1)), [Action::Kill(VmId(1))]);
}

#[test]
fn an_earlier_session_that_ends_late_does_not_take_the_lease_away() {
    let (mut pool, now) = busy(Reuse::Never, 2);
    pool.handle(now, close(2));
    pool.handle(now, gone(2));
    pool.handle(now, build(3, 1));
    assert_eq!(pool.handle(now, ready(3)), [assign(3, 3)]);
    assert_eq!(pool.handle(now, unfetched(3)), []);
    assert_eq!(pool.handle(now, unfetched(1)), [kill(1)]);
    assert_eq!(pool.handle(now, fetch(4, 1)), [assign_to_fetch(4, 3)]);
}

#[test]
fn a_leased_vm_is_no_supply_for_others() {
    for reuse in [Reuse::Never, Reuse::Client, Reuse::Always] {
        let (mut pool, now) = busy(reuse, 1);
        pool.handle(now, unfetched(1));
        assert_eq!(pool.handle(now, open(2)), [], "{reuse:?}");
    }
}

#[test]
fn a_session_is_not_held_up_by_one_that_waits_for_its_vm() {
    let (mut pool, now) = busy(Reuse::Always, 2);
    assert_eq!(pool.handle(now, fetch(3, 1)), []);
    pool.handle(now, open(4));
    assert_eq!(pool.handle(now, close(2)), [assign(4, 2)]);
    assert_eq!(pool.handle(now, unfetched(1)), [assign(3, 1)]);
}

#[test]
fn a_session_that_fetches_what_nobody_keeps_is_like_any_other() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 1));
    assert_eq!(pool.handle(now, fetch(1, 1)), [boot(1)]);
    assert_eq!(pool.handle(now, Event::VmReady(VmId(1))), [assign(1, 1)]);
}

#[test]
fn a_lease_keeps_a_vm_from_making_room_for_another_client() {
    let (mut pool, now) = busy(Reuse::Client, 1);
    pool.handle(now, unfetched(1));
    assert_eq!(pool.handle(now, open_for("ben", 2)), []);
    assert_eq!(
        pool.handle(now + LEASE, Event::DeadlineReached),
        [Action::Kill(VmId(1))]
    );
}

#[test]
fn always_a_vm_is_used_again_when_its_lease_ends() {
    let (mut pool, now) = busy(Reuse::Always, 1);
    pool.handle(now, unfetched(1));
    pool.handle(now, open(2));
    assert_eq!(
        pool.handle(now + LEASE, Event::DeadlineReached),
        [assign(2, 1)]
    );
}

#[test]
fn down_lets_outputs_be_fetched() {
    let (mut pool, now) = busy(Reuse::Never, 1);
    pool.handle(now, unfetched(1));
    assert_eq!(pool.handle(now, Event::Down(Down::Drain)), []);
    assert_eq!(pool.handle(now, fetch(2, 1)), [assign_to_fetch(2, 1)]);
    assert_eq!(pool.handle(now, open(3)), [rejected(3)]);
    assert_eq!(pool.handle(now, close(2)), [Action::Kill(VmId(1))]);
}

#[test]
fn down_now_waits_for_no_lease() {
    let (mut pool, now) = busy(Reuse::Never, 1);
    pool.handle(now, fetch(2, 1));
    assert_eq!(
        pool.handle(now, Event::Down(Down::Now)),
        [Action::Kill(VmId(1)), rejected(2)]
    );
}

#[test]
fn a_session_whose_vm_has_died_waits_for_any() {
    let (mut pool, now) = busy(Reuse::Never, 1);
    pool.handle(now, fetch(2, 1));
    let died = Event::VmExited(VmId(1), failed("killed"));
    assert_eq!(pool.handle(now, died), [boot(2)]);
    assert_eq!(pool.handle(now, Event::VmReady(VmId(2))), [assign(2, 2)]);
}
