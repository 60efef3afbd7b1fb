//! No VM is started that the host has no memory for.

use std::cmp::Reverse;

use super::*;
use crate::pool::budget::Shortage;
use crate::pool::memory::Loss;

/// How long a VM's memory is not counted upon as taken.
const GROWTH: Duration = Duration::from_secs(60);

/// 512 MiB for each VM that starts, and 1024 that no start may touch.
fn pool_with_memory(reuse: Reuse, max_vms: u32, available_mib: u64) -> (Pool, Instant) {
    let (mut pool, now) = pool_with(policy(reuse, max_vms));
    pool.set_available_memory(Some(available_mib));
    (pool, now)
}

#[test]
fn a_start_is_held_back_until_there_is_memory() {
    let (mut pool, now) = pool_with_memory(Reuse::Never, 1, 1535);
    assert_eq!(pool.handle(now, open(1)), []);
    let shortage = Shortage {
        available_mib: 1535,
        needed_mib: 1536,
    };
    assert_eq!(pool.status(now).shortage, Some(shortage));
    assert_eq!(pool.deadline(), Some(now + SECOND));
    assert_eq!(pool.handle(now + SECOND, Event::DeadlineReached), []);
    assert_eq!(pool.deadline(), Some(now + SECOND * 2));
    pool.set_available_memory(Some(1536));
    assert_eq!(
        pool.handle(now + SECOND * 2, Event::DeadlineReached),
        [boot(1)]
    );
    assert_eq!(pool.status(now).shortage, None);
}

#[test]
fn vms_that_boot_have_not_taken_their_memory_yet() {
    let (mut pool, now) = pool_with_memory(Reuse::Never, 4, 1024 + 3 * 512 - 1);
    let boots = [boot(1), boot(2)];
    assert_eq!(pool.handle(now, Event::Up(4)), boots);
    let shortage = pool.status(now).shortage.unwrap();
    assert_eq!(shortage.needed_mib, 1024 + 3 * 512);
    assert_eq!(pool.promised_memory_mib(now), 1024);
    pool.set_available_memory(Some(1024 + 3 * 512));
    assert_eq!(pool.handle(now, Event::DeadlineReached), [boot(3)]);
}

#[test]
fn vms_that_are_ready_have_not_taken_their_memory_while_nobody_uses_them() {
    let (mut pool, now) = pool_with_memory(Reuse::Never, 8, 1024 + 3 * 512);
    assert_eq!(pool.handle(now, Event::Up(8)).len(), 3);
    for vm in 1..=3 {
        assert_eq!(pool.handle(now, Event::VmReady(VmId(vm))), []);
    }
    let much_later = now + GROWTH * 100;
    assert_eq!(pool.handle(much_later, Event::DeadlineReached), []);
    let shortage = pool.status(much_later).shortage.unwrap();
    assert_eq!(shortage.needed_mib, 1024 + 4 * 512);
    assert_eq!(pool.promised_memory_mib(much_later), 3 * 512);
}

#[test]
fn vms_whose_builds_begin_one_after_another_stop_where_the_memory_will_end() {
    let (mut pool, now) = pool_with_memory(Reuse::Never, 8, 1024 + 3 * 512);
    for n in 1..=3 {
        assert_eq!(pool.handle(now, open(n.into())), [boot(n)], "{n}");
        let granted = [assign(n.into(), n)];
        assert_eq!(pool.handle(now, Event::VmReady(VmId(n))), granted);
    }
    assert_eq!(pool.handle(now, open(4)), []);
    // The first ones have taken by now what they take, and the available memory is what is left.
    let grown = now + GROWTH;
    let before = grown.checked_sub(Duration::from_millis(1)).unwrap();
    assert_eq!(pool.handle(before, Event::DeadlineReached), []);
    assert_eq!(pool.handle(grown, Event::DeadlineReached), [boot(4)]);
    assert_eq!(pool.promised_memory_mib(grown), 512);
}

#[test]
fn a_vm_that_waits_for_memory_is_looked_at_again_until_the_others_have_grown() {
    let (mut pool, now) = pool_with_memory(Reuse::Never, 2, 1024 + 512);
    pool.handle(now, open(1));
    pool.handle(now, Event::VmReady(VmId(1)));
    pool.handle(now, open(2));
    let mut at = now;
    let mut actions = Vec::new();
    while actions.is_empty() {
        at = pool.deadline().unwrap();
        actions = pool.handle(at, Event::DeadlineReached);
    }
    assert_eq!((at, actions), (now + GROWTH, vec![boot(2)]));
}

#[test]
fn a_vm_that_gets_a_further_session_grows_again() {
    let (mut pool, now) = pool_with_memory(Reuse::Client, 2, 100_000);
    pool.handle(now, open(1));
    pool.handle(now, Event::VmReady(VmId(1)));
    let later = now + GROWTH;
    assert_eq!(pool.promised_memory_mib(later), 0);
    pool.handle(later, close(1));
    assert_eq!(pool.promised_memory_mib(later), 512, "nobody uses it");
    assert_eq!(pool.handle(later, open(2)), [assign(2, 1)]);
    assert_eq!(pool.promised_memory_mib(later + SECOND), 512);
    assert_eq!(pool.promised_memory_mib(later + GROWTH), 0);
}

#[test]
fn eight_vms_have_room_in_24_gib() {
    let host = Policy {
        up_limit: NonZeroU32::new(64).unwrap(),
        ..policy(Reuse::Never, 2)
    };
    let (mut pool, now) = pool_with(host);
    pool.set_available_memory(Some(24 * 1024));
    assert_eq!(pool.handle(now, Event::Up(8)).len(), 8);
    assert_eq!(pool.status(now).shortage, None);
}

#[test]
fn memory_that_nobody_wants_is_not_short() {
    let (mut pool, now) = pool_with_memory(Reuse::Never, 1, 0);
    assert_eq!(pool.handle(now, Event::DeadlineReached), []);
    assert_eq!(pool.status(now).shortage, None);
    assert_eq!(pool.deadline(), None);
    pool.handle(now, open(1));
    pool.handle(now, close(1));
    assert_eq!(pool.deadline(), None);
}

#[test]
fn memory_that_is_not_known_holds_nothing_back() {
    let (mut pool, now) = pool_with_memory(Reuse::Never, 1, 0);
    pool.set_available_memory(None);
    assert_eq!(pool.handle(now, open(1)), [boot(1)]);
}

#[test]
fn small_changes_of_a_shortage_are_not_told() {
    let (mut pool, now) = pool_with_memory(Reuse::Never, 1, 800);
    pool.handle(now, open(1));
    for (available, told) in [(850, 800), (920, 800), (930, 930)] {
        pool.set_available_memory(Some(available));
        pool.handle(now, Event::DeadlineReached);
        assert_eq!(pool.status(now).shortage.unwrap().available_mib, told);
    }
}

#[test]
fn an_idle_vm_of_another_client_makes_room_in_memory() {
    let (mut pool, now) = pool_with_memory(Reuse::Client, 4, 2000);
    pool.handle(now, open_for("anna", 1));
    pool.handle(now, Event::VmReady(VmId(1)));
    pool.handle(now, close(1));
    pool.set_available_memory(Some(1000));
    assert_eq!(
        pool.handle(now, open_for("ben", 2)),
        [Action::Kill(VmId(1))]
    );
}

#[test]
fn a_start_that_waits_for_the_back_off_does_not_wait_for_memory() {
    let (mut pool, now) = pool_with_memory(Reuse::Never, 1, 2000);
    pool.handle(now, open(1));
    pool.set_available_memory(Some(0));
    pool.handle(now, Event::VmExited(VmId(1), failed("no agent")));
    assert_eq!(pool.status(now).shortage, None);
    let at = now + Policy::default().retry_first;
    assert_eq!(pool.deadline(), Some(at));
    assert_eq!(pool.handle(at, Event::DeadlineReached), []);
    assert!(pool.status(at).shortage.is_some());
    assert_eq!(pool.deadline(), Some(at + SECOND));
}

#[test]
fn the_vm_whose_end_loses_least_ends_where_memory_is_out() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 4));
    assert_eq!(pool.first_for_memory(), None);
    for n in 1..=3 {
        assert_eq!(pool.handle(now, open(n.into())), [boot(n)]);
    }
    for n in 1..=2 {
        let later = now + SECOND * n;
        assert_eq!(
            pool.handle(later, Event::VmReady(VmId(n))),
            [assign(n.into(), n)]
        );
    }
    // Who waits for the one that boots waits on, and has not built anything.
    assert_eq!(pool.first_for_memory(), Some((Loss::Booting, VmId(3))));
    let later = now + SECOND * 3;
    pool.set_available_memory(Some(100));
    assert_eq!(pool.handle(later, Event::MemoryIsOut(VmId(3))), [kill(3)]);
    assert_eq!(pool.demand(), 3);
    assert_eq!(
        pool.handle(later, Event::VmExited(VmId(3), Exit::Stopped)),
        []
    );
    // Of those that build, the one that has done so for the shortest time.
    let youngest = Loss::Builds(Reverse(now + SECOND * 2));
    assert_eq!(pool.first_for_memory(), Some((youngest, VmId(2))));
    assert_eq!(pool.handle(later, Event::MemoryIsOut(VmId(2))), [kill(2)]);
    assert_eq!(pool.handle(later, Event::MemoryIsOut(VmId(7))), []);
}

#[test]
fn a_vm_that_nobody_uses_ends_before_any_that_builds() {
    let (mut pool, now) = pool(2);
    assert_eq!(pool.handle(now, Event::Up(2)), [boot(1), boot(2)]);
    for n in 1..=2 {
        assert_eq!(pool.handle(now, Event::VmReady(VmId(n))), []);
    }
    assert_eq!(pool.handle(now + SECOND, open(1)), [assign(1, 1)]);
    assert_eq!(pool.first_for_memory(), Some((Loss::Idle, VmId(2))));
}
