//! Every decision says what it was made from.

use super::*;
use crate::pool::decision::Verdict;

fn verdicts(pool: &Pool) -> Vec<Verdict> {
    let decisions = pool.decisions().iter();
    decisions.map(|of| of.verdict.clone()).collect()
}

fn figures(pool: &Pool) -> String {
    pool.decisions()[0].figures.to_string()
}

#[test]
fn a_start_is_explained_by_who_waits() {
    let (mut pool, now) = pool(2);
    pool.handle(now, open(1));
    let vms = vec![VmId(1)];
    assert_eq!(verdicts(&pool), [Verdict::Start { vms }]);
    let expected = "sessions: 1, 1 waiting; VMs: want 1, have 0, 0 starting, limit 2";
    assert_eq!(figures(&pool), expected);
    assert_eq!(pool.status(now).decision, pool.decisions().last().cloned());
}

#[test]
fn what_holds_a_start_back_is_told_once() {
    let (mut pool, now) = pool(1);
    pool.handle(now, open(1));
    pool.handle(now, open(2));
    let held = Hold::MaxVms { limit: 1 };
    assert_eq!(verdicts(&pool), [Verdict::Wait { held }]);
    let expected = "sessions: 2, 2 waiting; VMs: want 2, have 1, 1 starting, limit 1";
    assert_eq!(figures(&pool), expected);
    pool.handle(now, open(3));
    assert_eq!(verdicts(&pool), []);
    pool.handle(now, ready(1));
    assert_eq!(verdicts(&pool), []);
    let last = pool.status(now).decision.map(|of| of.verdict);
    assert_eq!(last, Some(Verdict::Wait { held }));
}

#[test]
fn a_stop_and_a_vm_that_makes_room_are_told_apart() {
    let (mut pool, now) = pool(1);
    pool.handle(now, open(1));
    pool.handle(now, ready(1));
    pool.handle(now, close(1));
    let mut other = pool.clone();
    let later = now + Policy::default().idle_timeout;
    pool.handle(later, Event::DeadlineReached);
    let vms = vec![VmId(1)];
    assert_eq!(verdicts(&pool), [Verdict::Stop { vms: vms.clone() }]);
    let blind = Claim {
        share: Share::None,
        ..claim("zoe", 2, Purpose::Build)
    };
    other.handle(now, Event::SessionOpened(SessionId(2), blind));
    assert!(verdicts(&other).contains(&Verdict::MakeRoom { vms }));
}
