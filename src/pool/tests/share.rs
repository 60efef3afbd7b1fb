//! VMs of two kinds: those that see this machine's store, and those that do not.

use super::*;

/// A session that may see nothing of this machine's store.
fn open_blind(session: u64) -> Event {
    let claim = Claim {
        share: Share::None,
        ..claim("zoe", session, Purpose::Build)
    };
    Event::SessionOpened(SessionId(session), claim)
}

fn boot_blind(vm: u32) -> Action {
    boot_of(vm, Share::None)
}

#[test]
fn both_have_to_allow_what_a_vm_sees() {
    assert_eq!(Share::Host.and(Share::Host), Share::Host);
    assert_eq!(Share::Host.and(Share::None), Share::None);
    assert_eq!(Share::None.and(Share::Host), Share::None);
}

#[test]
fn a_session_gets_a_vm_of_its_kind_only() {
    for reuse in [Reuse::Never, Reuse::Client, Reuse::Always] {
        let (mut pool, now) = pool_with(policy(reuse, 4));
        pool.handle(now, Event::Up(1));
        pool.handle(now, ready(1));
        assert_eq!(pool.handle(now, open_blind(1)), [boot_blind(2)]);
        assert_eq!(pool.handle(now, ready(2)), [assign(1, 2)]);
        assert_eq!(pool.handle(now, open(2)), [assign(2, 1)]);
    }
}

#[test]
fn vms_of_the_other_kind_that_boot_are_no_supply() {
    let (mut pool, now) = pool(4);
    assert_eq!(pool.handle(now, open(1)), [boot(1)]);
    assert_eq!(pool.handle(now, open_blind(2)), [boot_blind(2)]);
    assert_eq!(pool.handle(now, Event::DeadlineReached), []);
    assert_eq!(pool.handle(now, ready(2)), [assign(2, 2)]);
}

#[test]
fn who_fetches_does_not_come_home_to_a_vm_of_the_other_kind() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 2));
    pool.handle(now, open(1));
    pool.handle(now, ready(1));
    let unfetched = Event::SessionClosed(SessionId(1), Outputs::Unfetched);
    pool.handle(now, unfetched);
    let claim = Claim {
        share: Share::None,
        ..claim("anna", 1, Purpose::Fetch(None))
    };
    let opened = Event::SessionOpened(SessionId(2), claim);
    assert_eq!(pool.handle(now, opened), [boot_blind(2)]);
}

#[test]
fn with_room_for_one_the_kind_of_who_waits_longest_boots_first() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 1));
    pool.handle(now, open(1));
    pool.handle(now, ready(1));
    for session in [open_blind(2), open(3), open_blind(4)] {
        assert_eq!(pool.handle(now, session), []);
    }
    pool.handle(now, close(1));
    assert_eq!(pool.handle(now, gone(1)), [boot_blind(2)]);
    assert_eq!(pool.handle(now, ready(2)), [assign(2, 2)]);
    pool.handle(now, close(2));
    assert_eq!(pool.handle(now, gone(2)), [boot(3)]);
}

#[test]
fn with_room_for_two_a_later_session_of_the_first_ones_kind_does_not_overtake() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 2));
    pool.handle(now, Event::Up(2));
    for session in [open_blind(1), open(2), open_blind(3), open(4), open(5)] {
        pool.handle(now, session);
    }
    // The VMs that boot serve 2 and 4.
    assert_eq!(pool.handle(now, ready(1)), [assign(2, 1)]);
    assert_eq!(pool.handle(now, ready(2)), [assign(4, 2)]);
    pool.handle(now, close(2));
    assert_eq!(pool.handle(now, gone(1)), [boot_blind(3)]);
    pool.handle(now, close(4));
    assert_eq!(pool.handle(now, gone(2)), [boot_blind(4)], "3 before 5");
}

#[test]
fn an_idle_vm_of_the_other_kind_makes_room() {
    for reuse in [Reuse::Never, Reuse::Client, Reuse::Always] {
        let kept = Policy {
            min_vms: 1,
            warm: 1,
            ..policy(reuse, 1)
        };
        let (mut pool, now) = pool_with(kept);
        assert_eq!(pool.handle(now, Event::DeadlineReached), [boot(1)]);
        assert_eq!(pool.handle(now, open_blind(1)), [], "what boots may boot");
        assert_eq!(pool.handle(now, ready(1)), [kill(1)]);
        assert_eq!(pool.handle(now, Event::DeadlineReached), []);
        assert_eq!(pool.handle(now, gone(1)), [boot_blind(2)], "{reuse:?}");
        assert_eq!(pool.handle(now, ready(2)), [assign(1, 2)]);
        assert_eq!(pool.handle(now, Event::DeadlineReached), []);
    }
}

#[test]
fn no_more_vms_are_ended_than_sessions_of_the_other_kind_wait() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 3));
    pool.handle(now, Event::Up(3));
    for vm in 1..=3 {
        pool.handle(now, ready(vm));
    }
    assert_eq!(pool.handle(now, open_blind(1)), [kill(3)]);
    assert_eq!(pool.handle(now, open_blind(2)), [kill(2)]);
    assert_eq!(pool.handle(now, gone(3)), [boot_blind(4)]);
    assert_eq!(pool.handle(now + SECOND, gone(2)), [boot_blind(5)]);
}

#[test]
fn a_vm_at_work_or_kept_for_its_outputs_makes_no_room() {
    let (mut pool, now) = pool_with(policy(Reuse::Always, 1));
    pool.handle(now, open(1));
    pool.handle(now, ready(1));
    assert_eq!(pool.handle(now, open_blind(2)), []);
    let unfetched = Event::SessionClosed(SessionId(1), Outputs::Unfetched);
    assert_eq!(pool.handle(now, unfetched), []);
    let lease = Policy::default().lease;
    assert_eq!(pool.handle(now + lease, Event::DeadlineReached), [kill(1)]);
}

#[test]
fn an_idle_vm_of_the_other_kind_makes_room_in_memory() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 4));
    pool.set_available_memory(Some(1024 + 512));
    assert_eq!(pool.handle(now, Event::Up(1)), [boot(1)]);
    pool.handle(now, ready(1));
    // What the idle one was still going to take is enough.
    assert_eq!(pool.handle(now, open_blind(1)), [kill(1), boot_blind(2)]);
    assert_eq!(pool.handle(now, gone(1)), []);
    // A VM that boots for somebody is one of those that are to be there.
    assert_eq!(pool.handle(now, ready(2)), [assign(1, 2)]);
}

#[test]
fn starts_that_fail_end_no_vms_for_who_waits() {
    let kept = Policy {
        min_vms: 1,
        ..policy(Reuse::Never, 2)
    };
    let (mut pool, now) = pool_with(kept);
    pool.handle(now, Event::DeadlineReached);
    pool.handle(now, ready(1));
    assert_eq!(pool.handle(now, open_blind(1)), [boot_blind(2)]);
    let no_device = Event::VmExited(VmId(2), failed("no store"));
    assert_eq!(pool.handle(now, no_device), []);
    let at = pool.deadline().unwrap();
    assert_eq!(pool.handle(at, Event::DeadlineReached), [boot_blind(3)]);
}

#[test]
fn only_vms_of_the_pools_kind_are_kept_and_warm() {
    let kept = Policy {
        min_vms: 1,
        ..policy(Reuse::Always, 2)
    };
    let (mut pool, now) = pool_with(kept);
    assert_eq!(pool.handle(now, open_blind(1)), [boot_blind(1)]);
    assert_eq!(pool.handle(now, ready(1)), [assign(1, 1)]);
    // At work, it is the one that is to be there; idle, it is not.
    assert_eq!(pool.handle(now, close(1)), [boot(2)]);
    pool.handle(now, ready(2));
    let at = now + Policy::default().idle_timeout;
    assert_eq!(pool.deadline(), Some(at));
    let down = Action::PowerDown(VmId(1));
    assert_eq!(pool.handle(at, Event::DeadlineReached), [down]);
    assert_eq!(pool.deadline(), None);
}

#[test]
fn a_pool_that_shares_nothing_keeps_vms_without_the_store() {
    let blind = Policy {
        share: Share::None,
        warm: 1,
        ..policy(Reuse::Never, 2)
    };
    let (mut pool, now) = pool_with(blind);
    assert_eq!(pool.handle(now, Event::DeadlineReached), [boot_blind(1)]);
    pool.handle(now, ready(1));
    assert_eq!(
        pool.handle(now, open_blind(1)),
        [assign(1, 1), boot_blind(2)]
    );
}
