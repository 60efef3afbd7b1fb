//! No VM is started that the host has no memory for.

use super::*;
use crate::pool::budget::Shortage;

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
        [Action::Boot(VmId(1))]
    );
    assert_eq!(pool.status(now).shortage, None);
}

#[test]
fn vms_that_boot_have_not_taken_their_memory_yet() {
    let (mut pool, now) = pool_with_memory(Reuse::Never, 4, 1024 + 3 * 512 - 1);
    let boots = [Action::Boot(VmId(1)), Action::Boot(VmId(2))];
    assert_eq!(pool.handle(now, Event::Up(4)), boots);
    let shortage = pool.status(now).shortage.unwrap();
    assert_eq!(shortage.needed_mib, 1024 + 3 * 512);
    assert_eq!(pool.promised_memory_mib(), 1024);
    // What they have taken by then, the host says.
    pool.set_available_memory(Some(2300));
    assert_eq!(
        pool.handle(now, Event::VmReady(VmId(1))),
        [Action::Boot(VmId(3))]
    );
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
    assert_eq!(pool.handle(now, open(1)), [Action::Boot(VmId(1))]);
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
