//! VMs that are taken out of service.

use super::*;

fn drain(vm: u32) -> Event {
    Event::DrainVm(VmId(vm))
}

#[test]
fn a_vm_that_is_drained_takes_no_further_sessions_and_ends_with_those_it_has() {
    let mut two_slots = policy(Reuse::Always, 2);
    two_slots.slots_per_vm = NonZeroU32::new(2).unwrap();
    let (mut pool, now) = pool_with(two_slots);
    pool.handle(now, open(1));
    pool.handle(now, ready(1));
    assert_eq!(pool.handle(now, drain(1)), []);
    assert_eq!(pool.handle(now, open(2)), [boot(2)]);
    assert_eq!(pool.handle(now, close(1)), [Action::PowerDown(VmId(1))]);
}

#[test]
fn a_vm_that_is_drained_is_kept_for_its_outputs() {
    let (mut pool, now) = pool_with(policy(Reuse::Always, 1));
    pool.handle(now, open(1));
    pool.handle(now, ready(1));
    pool.handle(now, drain(1));
    let unfetched = Event::SessionClosed(SessionId(1), Outputs::Unfetched);
    assert_eq!(pool.handle(now, unfetched), []);
    let fetch = Event::SessionOpened(SessionId(2), claim("anna", 1, Purpose::Fetch(None)));
    assert_eq!(pool.handle(now, fetch), [assign(2, 1)]);
    assert_eq!(pool.handle(now, close(2)), [Action::PowerDown(VmId(1))]);
}

#[test]
fn an_idle_vm_that_is_drained_goes_at_once_and_is_replaced_where_up_asked_for_it() {
    let (mut pool, now) = pool(2);
    pool.handle(now, Event::Up(1));
    pool.handle(now, ready(1));
    let replaced = [Action::PowerDown(VmId(1)), boot(2)];
    assert_eq!(pool.handle(now, drain(1)), replaced);
}

#[test]
fn a_vm_that_boots_is_killed_when_it_is_drained() {
    let (mut pool, now) = pool(1);
    pool.handle(now, open(1));
    assert_eq!(pool.handle(now, drain(1)), [kill(1)]);
    assert_eq!(pool.handle(now, gone(1)), [boot(2)]);
}

#[test]
fn a_vm_that_is_drained_cannot_be_named_any_more() {
    let (mut pool, now) = pool(1);
    pool.handle(now, open(1));
    pool.handle(now, ready(1));
    pool.handle(now, drain(1));
    let named = claim("anna", 2, Purpose::Pinned(VmId(1)));
    let reason = Rejection::NoSuchVm {
        vm: VmId(1),
        there: Vec::new(),
    };
    let session = SessionId(2);
    assert_eq!(
        pool.handle(now, Event::SessionOpened(session, named)),
        [Action::Reject { session, reason }]
    );
}
