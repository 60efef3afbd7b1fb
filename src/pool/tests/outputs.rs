//! Leases that know what is still to be fetched.

use super::*;
use crate::nix::store_path::StorePath;
use crate::pool::claim::Seat;

fn path(name: &str) -> StorePath {
    let text = format!("/nix/store/{}-{name}", "0".repeat(32));
    StorePath::parse(text.as_bytes()).unwrap()
}

fn built(session: u64, names: &[&str]) -> Event {
    let paths = names.iter().map(|name| path(name)).collect();
    Event::Built(SessionId(session), paths)
}

fn fetched(session: u64, name: &str) -> Event {
    Event::Fetched(SessionId(session), path(name))
}

fn unfetched(session: u64) -> Event {
    Event::SessionClosed(SessionId(session), Outputs::Unfetched)
}

fn fetch_for(client: &str, session: u64, slot: u64, name: &str) -> Event {
    let purpose = Purpose::Fetch(Some(path(name)));
    Event::SessionOpened(SessionId(session), claim(client, slot, purpose))
}

fn fetch(session: u64, slot: u64, name: &str) -> Event {
    fetch_for("anna", session, slot, name)
}

/// A pool with sessions 1 … n of a client, each in the slot and on the VM of its number.
fn busy(reuse: Reuse, vms: u32) -> (Pool, Instant) {
    let (mut pool, now) = pool_with(policy(reuse, vms));
    for n in 1..=vms {
        pool.handle(now, open(u64::from(n)));
    }
    for n in 1..=vms {
        assert_eq!(pool.handle(now, ready(n)), [assign(u64::from(n), n)]);
    }
    (pool, now)
}

#[test]
fn a_vm_goes_with_the_session_that_has_fetched_the_last_output() {
    let (mut pool, now) = busy(Reuse::Never, 1);
    pool.handle(now, built(1, &["out", "dev", "man"]));
    pool.handle(now, fetched(1, "out"));
    assert_eq!(pool.handle(now, unfetched(1)), []);
    assert_eq!(
        pool.handle(now, fetch(2, 1, "dev")),
        [assign_to_fetch(2, 1)]
    );
    pool.handle(now, fetched(2, "dev"));
    assert_eq!(pool.handle(now, unfetched(2)), []);
    assert_eq!(
        pool.handle(now, fetch(3, 1, "man")),
        [assign_to_fetch(3, 1)]
    );
    pool.handle(now, fetched(3, "man"));
    // It cannot tell by itself whether that was all.
    let left = Event::SessionLeft(SessionId(3), Outputs::Unfetched);
    assert_eq!(pool.handle(now, left), [kill(1)]);
}

#[test]
fn a_slot_is_free_for_the_next_build_when_the_last_output_is_fetched() {
    let (mut pool, now) = busy(Reuse::Client, 1);
    pool.handle(now, built(1, &["out", "dev"]));
    pool.handle(now, fetched(1, "out"));
    pool.handle(now, unfetched(1));
    pool.handle(now, fetch(2, 1, "dev"));
    pool.handle(now, fetched(2, "dev"));
    assert_eq!(pool.handle(now, open(3)), []);
    assert_eq!(pool.handle(now, unfetched(2)), [assign(3, 1)]);
}

#[test]
fn outputs_that_are_not_known_keep_a_vm_for_the_whole_lease() {
    for unknown in [&[][..], &["out"]] {
        let (mut pool, now) = busy(Reuse::Never, 1);
        pool.handle(now, built(1, unknown));
        pool.handle(now, built(1, &[]));
        pool.handle(now, fetched(1, "out"));
        assert_eq!(pool.handle(now, unfetched(1)), []);
        assert_eq!(pool.deadline(), Some(now + Policy::default().lease));
    }
}

#[test]
fn a_path_that_one_vm_is_known_to_have_is_fetched_there_by_whatever_slot() {
    let (mut pool, now) = busy(Reuse::Never, 2);
    pool.handle(now, built(2, &["out", "dev"]));
    pool.handle(now, fetched(2, "out"));
    pool.handle(now, unfetched(2));
    assert_eq!(
        pool.handle(now, fetch(3, 7, "dev")),
        [assign_to_fetch(3, 2)]
    );
    pool.handle(now, fetched(3, "dev"));
    assert_eq!(pool.handle(now, unfetched(3)), [kill(2)]);
}

#[test]
fn a_path_is_fetched_by_whatever_slot_while_its_session_has_not_ended() {
    let (mut pool, now) = busy(Reuse::Never, 2);
    pool.handle(now, built(1, &["out", "dev"]));
    assert_eq!(pool.handle(now, fetch(3, 7, "dev")), []);
    assert_eq!(pool.status(now).queued[0].home, Some(VmId(1)));
    assert_eq!(pool.handle(now, unfetched(1)), [assign_to_fetch(3, 1)]);
}

#[test]
fn who_waits_is_told_of_a_vm_that_has_just_built_what_is_wanted() {
    let (mut pool, now) = busy(Reuse::Never, 2);
    pool.handle(now, fetch(3, 7, "dev"));
    assert_eq!(pool.status(now).queued[0].home, None);
    pool.handle(now, built(2, &["dev"]));
    assert_eq!(pool.status(now).queued[0].home, Some(VmId(2)));
}

#[test]
fn who_waits_for_a_path_that_is_lost_goes_to_no_other_vm_of_its_builders() {
    let (mut pool, now) = busy(Reuse::Never, 2);
    pool.handle(now, built(1, &["dev"]));
    pool.handle(now, fetch(3, 7, "dev"));
    // The slot that has built it has another VM by now.
    let other = Event::SessionOpened(SessionId(4), claim("anna", 1, Purpose::Build));
    pool.handle(now, other);
    pool.handle(now, close(2));
    pool.handle(now, gone(2));
    assert_eq!(pool.handle(now, ready(3)), [assign(4, 3)]);
    pool.handle(now, Event::VmExited(VmId(1), failed("killed")));
    assert_eq!(pool.status(now).queued[0].home, None);
}

#[test]
fn a_path_is_fetched_where_it_was_built_and_not_where_its_slot_is_by_now() {
    let (mut pool, now) = busy(Reuse::Never, 2);
    pool.handle(now, built(1, &["out", "dev"]));
    pool.handle(now, close(2));
    pool.handle(now, gone(2));
    let again = Event::SessionOpened(SessionId(3), claim("anna", 1, Purpose::Build));
    pool.handle(now, again);
    assert_eq!(pool.handle(now, ready(3)), [assign(3, 3)]);
    for (session, slot) in [(4, 7), (5, 1)] {
        assert_eq!(pool.handle(now, fetch(session, slot, "dev")), []);
    }
    let homes = pool.status(now).queued.into_iter().map(|who| who.home);
    assert_eq!(homes.collect::<Vec<_>>(), [Some(VmId(1)); 2]);
    assert_eq!(pool.handle(now, unfetched(1)), [assign_to_fetch(4, 1)]);
}

#[test]
fn nobody_fetches_from_another_clients_vm() {
    let (mut pool, now) = busy(Reuse::Never, 2);
    pool.handle(now, built(1, &["out", "dev"]));
    pool.handle(now, unfetched(1));
    assert_eq!(pool.handle(now, fetch_for("ben", 3, 1, "dev")), []);
    assert_eq!(pool.status(now).queued[0].home, None);
}

#[test]
fn a_slots_own_vm_comes_before_another_one_that_has_the_path_too() {
    let (mut pool, now) = busy(Reuse::Never, 2);
    for n in [1, 2] {
        pool.handle(now, built(n, &["out"]));
        pool.handle(now, unfetched(n));
    }
    assert_eq!(
        pool.handle(now, fetch(3, 2, "out")),
        [assign_to_fetch(3, 2)]
    );
}

#[test]
fn a_slots_own_vm_that_is_known_to_lack_the_path_does_not() {
    let (mut pool, now) = busy(Reuse::Never, 2);
    pool.handle(now, built(1, &["out"]));
    pool.handle(now, built(2, &["other"]));
    pool.handle(now, unfetched(1));
    pool.handle(now, unfetched(2));
    assert_eq!(
        pool.handle(now, fetch(3, 1, "other")),
        [assign_to_fetch(3, 2)]
    );
}

#[test]
fn a_seat_that_is_gone_keeps_no_vm() {
    let seat = |slot: u64| {
        let claim = claim("anna", slot, Purpose::Build);
        Event::SeatGone(claim.seat)
    };
    let (mut pool, now) = busy(Reuse::Never, 2);
    pool.handle(now, unfetched(1));
    assert_eq!(pool.handle(now, seat(1)), [kill(1)]);
    // Its last session may be told of later.
    assert_eq!(pool.handle(now, seat(2)), []);
    assert_eq!(pool.handle(now, unfetched(2)), [kill(2)]);
    let (client, slot) = ("ben".to_owned(), "riscv64-01".to_owned());
    assert_eq!(pool.handle(now, Event::SeatGone(Seat { client, slot })), []);
}

#[test]
fn sessions_of_a_seat_on_one_vm_know_together_what_is_left() {
    let two_slots = Policy {
        slots_per_vm: NonZeroU32::new(2).unwrap(),
        ..policy(Reuse::Client, 1)
    };
    let (mut pool, now) = pool_with(two_slots);
    pool.handle(now, open(1));
    pool.handle(now, ready(1));
    pool.handle(now, built(1, &["out", "dev"]));
    assert_eq!(pool.handle(now, fetch(2, 1, "dev")), [assign(2, 1)]);
    pool.handle(now, unfetched(1));
    pool.handle(now, fetched(2, "out"));
    pool.handle(now, fetched(2, "dev"));
    pool.handle(now, unfetched(2));
    assert_eq!(pool.deadline(), Some(now + Policy::default().idle_timeout));
}
