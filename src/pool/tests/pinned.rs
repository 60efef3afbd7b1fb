//! VMs that are reached by their name.

use super::*;
use crate::pool::status::VmStage;

fn pin_for(client: &str, session: u64, vm: u32) -> Event {
    let claim = Claim {
        purpose: Purpose::Pinned(VmId(vm)),
        ..claim(client, 99, Purpose::Build)
    };
    Event::SessionOpened(SessionId(session), claim)
}

fn pin(session: u64, vm: u32) -> Event {
    pin_for("anna", session, vm)
}

fn refused(session: u64, reason: Rejection) -> Action {
    let session = SessionId(session);
    Action::Reject { session, reason }
}

fn no_such_vm(session: u64, vm: u32, there: &[u32]) -> Action {
    let there = there.iter().copied().map(VmId).collect();
    refused(
        session,
        Rejection::NoSuchVm {
            vm: VmId(vm),
            there,
        },
    )
}

/// A pool with VMs 1 … n that nobody has used, which `up` has asked for.
fn up(reuse: Reuse, vms: u32, max_vms: u32) -> (Pool, Instant) {
    let (mut pool, now) = pool_with(policy(reuse, max_vms));
    pool.handle(now, Event::Up(vms));
    for vm in 1..=vms {
        assert_eq!(pool.handle(now, ready(vm)), []);
    }
    (pool, now)
}

#[test]
fn whoever_names_a_vm_gets_it_again_and_again_and_nobody_else_does() {
    for reuse in [Reuse::Never, Reuse::Client, Reuse::Always] {
        let (mut pool, now) = up(reuse, 1, 2);
        assert_eq!(pool.handle(now, pin(1, 1)), [assign(1, 1), boot(2)]);
        assert_eq!(
            pool.handle(now, Event::SessionLeft(SessionId(1), Outputs::Fetched)),
            []
        );
        assert_eq!(pool.handle(now, close(1)), [], "{reuse:?}");
        assert_eq!(pool.status(now).vms[0].state, VmStage::Pinned);
        assert_eq!(pool.handle(now, open(2)), [], "{reuse:?}");
        assert_eq!(pool.handle(now, pin(3, 1)), [assign(3, 1)]);
        assert_eq!(pool.handle(now, ready(2)), [assign(2, 2)]);
    }
}

#[test]
fn a_vm_with_a_name_ends_when_it_was_idle_for_long_and_not_before() {
    let (mut pool, now) = up(Reuse::Never, 1, 2);
    pool.handle(now, pin(1, 1));
    pool.handle(now, ready(2));
    let later = now + SECOND;
    assert_eq!(pool.handle(later, close(1)), []);
    let at = later + Policy::default().idle_timeout;
    assert_eq!(pool.deadline(), Some(at));
    assert_eq!(
        pool.handle(at, Event::DeadlineReached),
        [Action::PowerDown(VmId(1))]
    );
    assert_eq!(pool.handle(at, pin(2, 1)), [no_such_vm(2, 1, &[2])]);
    assert_eq!(pool.handle(at, gone(1)), []);
}

#[test]
fn who_names_a_busy_vm_waits_for_it_in_the_order_of_arrival() {
    let (mut pool, now) = up(Reuse::Never, 2, 2);
    assert_eq!(pool.handle(now, open(1)), [assign(1, 1)]);
    assert_eq!(pool.handle(now, pin(2, 1)), []);
    assert_eq!(pool.handle(now, pin(3, 1)), []);
    assert_eq!(pool.status(now).queued[0].home, Some(VmId(1)));
    // The port is not closed yet.
    assert_eq!(
        pool.handle(now, Event::SessionLeft(SessionId(1), Outputs::Fetched)),
        []
    );
    assert_eq!(pool.handle(now, close(1)), [assign(2, 1)]);
    assert_eq!(pool.handle(now, close(2)), [assign(3, 1)]);
}

#[test]
fn a_lease_of_the_same_client_comes_first() {
    let (mut pool, now) = up(Reuse::Never, 1, 1);
    pool.handle(now, open(1));
    pool.handle(now, pin(2, 1));
    let unfetched = Event::SessionClosed(SessionId(1), Outputs::Unfetched);
    assert_eq!(pool.handle(now, unfetched), []);
    let fetch = claim("anna", 1, Purpose::Fetch(None));
    let fetch = Event::SessionOpened(SessionId(3), fetch);
    assert_eq!(pool.handle(now, fetch), [assign_to_fetch(3, 1)]);
    assert_eq!(pool.handle(now, close(3)), [assign(2, 1)]);
}

#[test]
fn a_vm_can_be_named_while_it_boots() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 2));
    assert_eq!(pool.handle(now, open(1)), [boot(1)]);
    // Who waited for it needs another one now.
    assert_eq!(pool.handle(now, pin(2, 1)), [boot(2)]);
    assert_eq!(pool.handle(now, ready(1)), [assign(2, 1)]);
    assert_eq!(pool.handle(now, ready(2)), [assign(1, 2)]);
}

#[test]
fn what_is_not_there_is_refused_with_what_is() {
    let (mut pool, now) = up(Reuse::Always, 2, 2);
    assert_eq!(pool.handle(now, pin(1, 7)), [no_such_vm(1, 7, &[1, 2])]);
    pool.handle(now, open_for("ben", 2));
    // Another client's VM is not shown either.
    assert_eq!(pool.handle(now, pin(3, 7)), [no_such_vm(3, 7, &[2])]);
}

#[test]
fn another_clients_vm_is_refused_even_when_it_has_gone_away() {
    let refused = |session| refused(session, Rejection::OtherClients { vm: VmId(1) });
    let (mut pool, now) = up(Reuse::Always, 1, 2);
    pool.handle(now, open_for("ben", 1));
    assert_eq!(pool.handle(now, pin(2, 1)), [refused(2)]);
    pool.handle(now, close(1));
    pool.handle(now, open(3));
    pool.handle(now, close(3));
    assert_eq!(pool.handle(now, pin(4, 1)), [refused(4)], "it was once");

    let (mut pool, now) = up(Reuse::Always, 1, 1);
    pool.handle(now, pin_for("ben", 1, 1));
    assert_eq!(pool.handle(now, pin(2, 1)), [refused(2)]);
}

#[test]
fn a_vm_of_the_other_kind_is_refused() {
    let (mut pool, now) = up(Reuse::Always, 1, 1);
    let claim = Claim {
        share: Share::None,
        purpose: Purpose::Pinned(VmId(1)),
        ..claim("anna", 1, Purpose::Build)
    };
    assert_eq!(
        pool.handle(now, Event::SessionOpened(SessionId(1), claim)),
        [refused(1, Rejection::OtherKind { vm: VmId(1) })]
    );
}

#[test]
fn who_waits_for_a_vm_that_dies_is_told() {
    let (mut pool, now) = up(Reuse::Never, 1, 1);
    pool.handle(now, open(1));
    pool.handle(now, pin(2, 1));
    let died = Event::VmExited(VmId(1), failed("killed"));
    assert_eq!(pool.handle(now, died), [no_such_vm(2, 1, &[]), boot(2)]);
}

#[test]
fn a_failed_start_is_nothing_to_who_waits_for_another_vm() {
    let (mut pool, now) = up(Reuse::Never, 1, 2);
    pool.handle(now, pin(1, 1));
    pool.handle(now, pin(2, 1));
    let pointless = Exit::Failed {
        reason: "no image".to_owned(),
        retry: Retry::Pointless,
    };
    assert_eq!(pool.handle(now, Event::VmExited(VmId(2), pointless)), []);
    assert_eq!(pool.handle(now, close(1)), [assign(2, 1)]);
}

#[test]
fn a_vm_with_a_name_makes_no_room() {
    let (mut pool, now) = up(Reuse::Always, 1, 1);
    pool.handle(now, pin(1, 1));
    pool.handle(now, close(1));
    assert_eq!(pool.handle(now, open(2)), []);
    assert_eq!(pool.handle(now, open_for("ben", 3)), []);
    let at = now + Policy::default().idle_timeout;
    assert_eq!(
        pool.handle(at, Event::DeadlineReached),
        [Action::PowerDown(VmId(1))]
    );
    assert_eq!(pool.handle(at, gone(1)), [boot(2)]);
}

#[test]
fn down_ends_vms_with_names_and_lets_nobody_in() {
    let (mut pool, now) = up(Reuse::Never, 1, 1);
    pool.handle(now, pin(1, 1));
    pool.handle(now, pin(2, 1));
    assert_eq!(pool.handle(now, Event::Down(Down::Drain)), [rejected(2)]);
    assert_eq!(pool.handle(now, pin(3, 1)), [rejected(3)]);
    assert_eq!(pool.handle(now, close(1)), [Action::PowerDown(VmId(1))]);
}
