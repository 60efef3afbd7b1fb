//! How fast a pool grows, and how long it stays as large as it was.

use super::*;

const DELAY: Duration = Duration::from_secs(5 * 60);

fn left(session: u64) -> Event {
    Event::SessionLeft(SessionId(session), Outputs::Fetched)
}

fn boots(actions: &[Action]) -> usize {
    let is_boot = |action: &&Action| matches!(action, Action::Boot(..));
    actions.iter().filter(is_boot).count()
}

/// Lets a client come, get a fresh VM and go at once, so many times in one moment; how many VMs were started.
fn come_and_go(pool: &mut Pool, now: Instant, times: u64) -> u32 {
    let mut vm = 0;
    for session in 1..=times {
        let started = boots(&pool.handle(now, open(session)));
        if started > 0 {
            vm += 1;
            pool.handle(now, ready(vm));
        }
        if pool.handle(now, close(session)) == [kill(vm)] {
            pool.handle(now, gone(vm));
        }
    }
    vm
}

#[test]
fn clients_that_come_and_go_start_four_vms_and_then_one_a_second() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 2));
    assert_eq!(come_and_go(&mut pool, now, 100), 4);
    assert_eq!(pool.handle(now, open(101)), []);
    assert_eq!(pool.status(now).held, Some(Hold::Rate));
    assert_eq!(pool.deadline(), Some(now + SECOND));
    assert_eq!(pool.handle(now + SECOND, Event::DeadlineReached), [boot(5)]);
    assert_eq!(pool.status(now).held, None);
}

#[test]
fn vms_that_build_are_replaced_however_fast() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 2));
    for n in 1..=100_u32 {
        assert_eq!(pool.handle(now, open(n.into())), [boot(n)]);
        pool.handle(now, ready(n));
        pool.handle(now, Event::Built(SessionId(n.into()), Vec::new()));
        assert_eq!(pool.handle(now, close(n.into())), [kill(n)]);
        pool.handle(now, gone(n));
    }
}

#[test]
fn vms_that_were_used_for_a_while_are_replaced_however_fast() {
    let (mut pool, mut now) = pool_with(policy(Reuse::Never, 2));
    for n in 1..=100_u32 {
        assert_eq!(pool.handle(now, open(n.into())), [boot(n)]);
        pool.handle(now, ready(n));
        now += Duration::from_millis(500);
        assert_eq!(pool.handle(now, close(n.into())), [kill(n)]);
        pool.handle(now, gone(n));
    }
}

#[test]
fn as_many_as_there_may_be_start_at_once() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 40));
    let started: usize = (1..=60).map(|n| boots(&pool.handle(now, open(n)))).sum();
    assert_eq!(started, 40);
}

#[test]
fn as_many_vms_stay_as_were_wanted_at_a_time_in_the_last_minutes() {
    let nervous = Policy {
        idle_timeout: SECOND,
        ..policy(Reuse::Always, 3)
    };
    let (mut pool, now) = pool_with(nervous);
    for n in 1..=3 {
        pool.handle(now, open(n.into()));
        pool.handle(now, ready(n));
    }
    pool.handle(now, close(1));
    pool.handle(now + SECOND * 60, close(2));
    // Three were wanted until now, two for a minute more, one is still.
    assert_eq!(pool.deadline(), Some(now + DELAY));
    let downs = pool.handle(now + DELAY, Event::DeadlineReached);
    assert_eq!(downs, [Action::PowerDown(VmId(1))]);
    assert_eq!(pool.deadline(), Some(now + DELAY + SECOND * 60));
}

#[test]
fn a_pool_whose_work_comes_in_waves_does_not_go_up_and_down_with_it() {
    let nervous = Policy {
        idle_timeout: SECOND,
        ..policy(Reuse::Always, 4)
    };
    let (mut pool, mut now) = pool_with(nervous);
    let mut session = 0;
    for wave in 0..10 {
        let opened: Vec<u64> = (session + 1..=session + 4).collect();
        session += 4;
        for (n, id) in (1..).zip(&opened) {
            let started = boots(&pool.handle(now, open(*id)));
            assert_eq!(started, usize::from(wave == 0), "wave {wave}");
            pool.handle(now, ready(n));
        }
        now += SECOND * 30;
        for id in opened {
            pool.handle(now, close(id));
        }
        let next = now + DELAY.saturating_sub(SECOND);
        while let Some(at) = pool.deadline().filter(|at| *at < next) {
            assert_eq!(pool.handle(at, Event::DeadlineReached), []);
        }
        now = next;
    }
}

#[test]
fn a_slot_that_is_about_to_be_free_is_supply_for_the_next_session() {
    for reuse in [Reuse::Client, Reuse::Always] {
        let (mut pool, now) = pool_with(policy(reuse, 2));
        pool.handle(now, open(1));
        pool.handle(now, ready(1));
        assert_eq!(pool.handle(now, left(1)), []);
        assert_eq!(pool.handle(now, open(2)), [], "{reuse:?}");
        assert_eq!(pool.handle(now, open(3)), [boot(2)], "{reuse:?}");
        assert_eq!(pool.handle(now, close(1)), [assign(2, 1)], "{reuse:?}");
    }
}

#[test]
fn client_another_ones_slot_that_is_about_to_be_free_is_no_supply() {
    let (mut pool, now) = pool_with(policy(Reuse::Client, 2));
    pool.handle(now, open(1));
    pool.handle(now, ready(1));
    assert_eq!(pool.handle(now, left(1)), []);
    assert_eq!(pool.handle(now, open_for("ben", 2)), [boot(2)]);
}
