//! Who is served first: clients take turns, and within a client who came first.

use super::*;

/// Serves everybody who waits in a pool of one VM that each has for a moment; the sessions in the order of their service.
fn served(pool: &mut Pool, now: Instant) -> Vec<u64> {
    let mut order = Vec::new();
    let mut actions = pool.handle(now, ready(1));
    while let Some(Action::Assign { session, .. }) = actions.first() {
        order.push(session.0);
        actions = pool.handle(now, close(session.0));
    }
    order
}

fn open_all(pool: &mut Pool, now: Instant, sessions: &[(&str, u64)]) {
    for (client, session) in sessions {
        pool.handle(now, open_for(client, *session));
    }
}

fn waiting(pool: &Pool, now: Instant) -> Vec<u64> {
    let queued = pool.status(now).queued;
    queued.iter().map(|queued| queued.session.0).collect()
}

#[test]
fn clients_are_served_in_turn_however_many_sessions_one_has_sent() {
    let (mut pool, now) = pool(1);
    for session in 1..=60 {
        pool.handle(now, open_for("anna", session));
    }
    open_all(&mut pool, now, &[("ben", 61), ("ben", 62), ("zoe", 63)]);
    let expected = [1, 61, 63, 2, 62, 3, 4, 5];
    assert_eq!(waiting(&pool, now)[..8], expected);
    assert_eq!(served(&mut pool, now)[..8], expected);
}

#[test]
fn who_comes_anew_is_next_and_gains_no_turns_for_the_time_before() {
    let (mut pool, now) = pool(1);
    open_all(
        &mut pool,
        now,
        &[("anna", 1), ("anna", 2), ("anna", 3), ("anna", 4)],
    );
    assert_eq!(pool.handle(now, ready(1)), [assign(1, 1)]);
    assert_eq!(pool.handle(now, close(1)), [assign(2, 1)]);
    open_all(&mut pool, now, &[("ben", 5), ("ben", 6), ("ben", 7)]);
    assert_eq!(waiting(&pool, now), [5, 3, 6, 4, 7]);
}

#[test]
fn who_has_had_a_turn_is_not_ahead_of_the_others_because_nothing_of_it_waited_meanwhile() {
    let (mut pool, now) = pool(1);
    open_all(&mut pool, now, &[("ben", 1), ("anna", 2), ("anna", 3)]);
    assert_eq!(pool.handle(now, ready(1)), [assign(1, 1)]);
    pool.handle(now, open_for("ben", 4));
    assert_eq!(waiting(&pool, now), [2, 3, 4]);
    assert_eq!(pool.handle(now, close(1)), [assign(2, 1)]);
    assert_eq!(waiting(&pool, now), [3, 4]);
}

#[test]
fn a_session_that_goes_leaves_its_turn_to_the_next_one_of_its_client() {
    let (mut pool, now) = pool(1);
    open_all(
        &mut pool,
        now,
        &[
            ("anna", 1),
            ("anna", 2),
            ("anna", 3),
            ("ben", 4),
            ("ben", 5),
        ],
    );
    assert_eq!(waiting(&pool, now), [1, 4, 2, 5, 3]);
    pool.handle(now, close(1));
    pool.handle(now, close(2));
    assert_eq!(waiting(&pool, now), [3, 4, 5]);
}

#[test]
fn a_client_has_back_the_turn_of_a_session_that_lost_its_vm_unused() {
    let (mut pool, now) = pool(1);
    open_all(
        &mut pool,
        now,
        &[("anna", 1), ("anna", 2), ("ben", 3), ("ben", 4)],
    );
    pool.handle(now, ready(1));
    let died = Event::VmExited(VmId(1), failed("QEMU was killed"));
    assert_eq!(pool.handle(now, died), [boot(2)]);
    let returned = Event::SessionReturned(SessionId(1), claim("anna", 1, Purpose::Build));
    pool.handle(now, returned);
    assert_eq!(waiting(&pool, now), [1, 3, 2, 4]);
}

#[test]
fn a_client_of_a_higher_priority_is_served_before_all_others() {
    let mut policy = policy(Reuse::Always, 1);
    let ranks = [("anna", 1), ("zoe", -1)];
    policy.priorities = ranks.map(|(who, rank)| (who.to_owned(), rank)).into();
    let (mut pool, now) = pool_with(policy);
    open_all(
        &mut pool,
        now,
        &[("zoe", 1), ("ben", 2), ("ben", 3), ("anna", 4), ("anna", 5)],
    );
    assert_eq!(waiting(&pool, now), [4, 5, 2, 3, 1]);
    assert_eq!(served(&mut pool, now), [4, 5, 2, 3, 1]);
}

#[test]
fn vms_are_started_in_the_order_of_service() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 3));
    for session in 1..=3 {
        pool.handle(now, open_for("anna", session));
    }
    let blind = Claim {
        share: Share::None,
        ..claim("zoe", 4, Purpose::Build)
    };
    pool.handle(now, open_for("anna", 5));
    pool.handle(now, Event::SessionOpened(SessionId(4), blind));
    pool.handle(now, ready(1));
    pool.handle(now, close(1));
    // Of those that have no VM coming, anna's third would be ahead of zoe's first if it went by their arrival.
    let next = boot_of(4, Share::None);
    assert_eq!(pool.handle(now, gone(1)), [next]);
}

#[test]
fn a_client_that_nobody_could_serve_for_long_does_not_take_all_turns_then() {
    let (mut pool, now) = pool_with(policy(Reuse::Always, 2));
    let blind = |session| {
        let claim = Claim {
            share: Share::None,
            ..claim("zoe", session, Purpose::Build)
        };
        Event::SessionOpened(SessionId(session), claim)
    };
    pool.handle(now, open_for("anna", 1));
    for session in 2..=4 {
        pool.handle(now, blind(session));
    }
    pool.handle(now, ready(1));
    for session in 5..=9 {
        pool.handle(now, open_for("anna", session));
    }
    for session in [1, 5, 6] {
        pool.handle(now, close(session));
    }
    assert_eq!(pool.handle(now, ready(2)), [assign(2, 2)]);
    assert_eq!(waiting(&pool, now), [3, 4, 8, 9]);
}

#[test]
fn nor_does_it_take_all_slots_of_a_vm_before_who_came_later() {
    let three_slots = Policy {
        slots_per_vm: NonZeroU32::new(3).unwrap(),
        ..policy(Reuse::Always, 2)
    };
    let (mut pool, now) = pool_with(three_slots);
    let blind = |client, session| {
        let claim = Claim {
            share: Share::None,
            ..claim(client, session, Purpose::Build)
        };
        Event::SessionOpened(SessionId(session), claim)
    };
    open_all(&mut pool, now, &[("anna", 1), ("anna", 2), ("anna", 3)]);
    for session in 4..=6 {
        pool.handle(now, blind("zoe", session));
    }
    let all = [1, 2, 3].map(|session| assign(session, 1));
    assert_eq!(pool.handle(now, ready(1)), all);
    pool.handle(now, blind("ben", 7));
    let turns = [4, 5, 7].map(|session| assign(session, 2));
    assert_eq!(pool.handle(now, ready(2)), turns);
}
