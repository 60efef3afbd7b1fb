//! What the machine has for all pools, and what it is short of.

use super::*;
use crate::pool::budget::Machine;
use crate::pool::shape::Vcpus;

fn two_vcpus_each(max_vms: u32) -> (Pool, Instant) {
    pool_with(Policy {
        vcpus: Vcpus::fixed(NonZeroU32::new(2).unwrap()),
        warm: 1,
        ..policy(Reuse::Never, max_vms)
    })
}

fn held(pool: &Pool, now: Instant) -> Option<Hold> {
    pool.status(now).held
}

fn with_pressure(pressure: Pressure) -> Machine {
    Machine {
        pressure: Some(pressure),
        ..Machine::default()
    }
}

fn two(vm: u32) -> Action {
    let (share, vcpus) = (Share::Host, 2);
    Action::Boot(VmId(vm), Shape { share, vcpus })
}

#[test]
fn no_vm_starts_beyond_the_processors_that_are_left_of_the_budget() {
    let (mut pool, now) = two_vcpus_each(8);
    pool.set_machine(Machine {
        vcpus: Some(5),
        ..Machine::default()
    });
    assert_eq!(pool.handle(now, Event::Up(8)), [two(1), two(2)]);
    let (left, needed) = (1, 2);
    assert_eq!(held(&pool, now), Some(Hold::CpuBudget { left, needed }));
    assert!(!pool.lacks_room(), "nobody waits");
    assert_eq!(pool.deadline(), Some(now + SECOND));
    pool.set_machine(Machine::default());
    let rest = pool.handle(now + SECOND, Event::DeadlineReached);
    assert_eq!(rest.len(), 6);
}

#[test]
fn no_vm_starts_beyond_the_memory_that_is_left_of_the_budget() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 8));
    pool.set_machine(Machine {
        memory_mib: Some(3000),
        ..Machine::default()
    });
    assert_eq!(pool.handle(now, open(1)), [boot(1)]);
    assert_eq!(pool.handle(now, open(2)), []);
    let hold = Hold::MemoryBudget {
        left_mib: 952,
        needed_mib: 2048,
    };
    assert_eq!(held(&pool, now), Some(hold));
    assert!(pool.lacks_room());
}

#[test]
fn nothing_starts_while_programs_wait_for_memory_and_nothing_is_killed() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 4));
    pool.handle(now, open(1));
    pool.handle(now, ready(1));
    pool.set_machine(with_pressure(Pressure::Memory));
    assert_eq!(pool.handle(now, open(2)), []);
    assert_eq!(held(&pool, now), Some(Hold::Pressure(Pressure::Memory)));
    assert_eq!(pool.handle(now + SECOND, Event::DeadlineReached), []);
    pool.set_machine(Machine::default());
    let at = pool.deadline().unwrap();
    assert_eq!(pool.handle(at, Event::DeadlineReached), [boot(2)]);
}

#[test]
fn a_machine_whose_processors_are_busy_has_one_vm_and_those_that_up_asked_for() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 4));
    pool.set_machine(with_pressure(Pressure::Cpu));
    assert_eq!(pool.handle(now, open(1)), [boot(1)]);
    assert_eq!(pool.handle(now, open(2)), []);
    assert_eq!(held(&pool, now), Some(Hold::Pressure(Pressure::Cpu)));
    let (mut pool, now) = pool_with(policy(Reuse::Never, 4));
    pool.set_machine(with_pressure(Pressure::Cpu));
    assert_eq!(pool.handle(now, Event::Up(3)).len(), 3);
}

#[test]
fn warm_vms_go_while_the_machine_is_short_of_something_and_come_back_after() {
    let (mut pool, now) = two_vcpus_each(4);
    assert_eq!(pool.handle(now, Event::DeadlineReached), [two(1)]);
    pool.handle(now, ready(1));
    pool.set_machine(with_pressure(Pressure::Cpu));
    let later = now + Policy::default().idle_timeout;
    assert_eq!(
        pool.handle(later, Event::DeadlineReached),
        [Action::PowerDown(VmId(1))]
    );
    assert_eq!(pool.handle(later, gone(1)), []);
    pool.set_machine(Machine::default());
    assert_eq!(pool.deadline(), Some(later + SECOND));
    let again = pool.handle(later + SECOND, Event::DeadlineReached);
    assert_eq!(again, [two(2)]);
}

#[test]
fn an_idle_vm_makes_room_for_another_system_and_stays_away_while_that_waits() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 4));
    pool.handle(now, Event::Up(1));
    pool.handle(now, ready(1));
    pool.set_machine(Machine {
        others_wait: true,
        ..Machine::default()
    });
    assert_eq!(pool.handle(now, Event::MakeRoom), [kill(1)]);
    assert_eq!(pool.handle(now, gone(1)), []);
    assert_eq!(held(&pool, now), Some(Hold::Others));
    assert_eq!(pool.handle(now, open(1)), [boot(2)], "somebody waits here");
}

#[test]
fn a_vm_at_work_makes_no_room() {
    let (mut pool, now) = pool_with(policy(Reuse::Never, 4));
    pool.handle(now, open(1));
    assert_eq!(pool.handle(now, Event::MakeRoom), []);
    pool.handle(now, ready(1));
    assert_eq!(pool.handle(now, Event::MakeRoom), []);
    let unfetched = Event::SessionClosed(SessionId(1), Outputs::Unfetched);
    pool.handle(now, unfetched);
    assert_eq!(pool.handle(now, Event::MakeRoom), [], "it is leased");
}

fn on_four_processors() -> (Pool, Instant) {
    let four = NonZeroU32::new(4).unwrap();
    pool_with(Policy {
        vcpus: Vcpus::following(four, 4),
        ..policy(Reuse::Never, 6)
    })
}

fn vcpus(actions: &[Action]) -> Vec<u32> {
    let boots = actions.iter().filter_map(|action| match action {
        Action::Boot(_, shape) => Some(shape.vcpus),
        _ => None,
    });
    boots.collect()
}

#[test]
fn a_vm_that_is_at_work_alone_has_all_processors_and_later_ones_share_them() {
    let (mut pool, now) = on_four_processors();
    assert_eq!(vcpus(&pool.handle(now, open(1))), [4]);
    assert_eq!(vcpus(&pool.handle(now, open(2))), [2]);
    assert_eq!(vcpus(&pool.handle(now, open(3))), [1]);
    assert_eq!(pool.given(), (7, 3 * 2048));
    for vm in 1..=3 {
        pool.handle(now, ready(vm));
        pool.handle(now, close(vm.into()));
        pool.handle(now, gone(vm));
    }
    assert_eq!(pool.given(), (0, 0));
    assert_eq!(vcpus(&pool.handle(now, open(4))), [4]);
}

#[test]
fn vms_of_other_systems_that_are_at_work_count_as_well() {
    let (mut pool, now) = on_four_processors();
    pool.set_machine(Machine {
        others_at_work: 3,
        ..Machine::default()
    });
    assert_eq!(vcpus(&pool.handle(now, open(1))), [1]);
}

#[test]
fn a_budget_gives_fewer_processors_before_it_refuses_a_vm() {
    let (mut pool, now) = on_four_processors();
    pool.set_machine(Machine {
        vcpus: Some(3),
        ..Machine::default()
    });
    assert_eq!(vcpus(&pool.handle(now, Event::Up(1))), [2]);
    assert_eq!(vcpus(&pool.handle(now, Event::Up(3))), [1]);
    let (left, needed) = (0, 1);
    assert_eq!(held(&pool, now), Some(Hold::CpuBudget { left, needed }));
}

#[test]
fn vms_that_are_asked_for_together_share_the_processors() {
    let (mut pool, now) = on_four_processors();
    assert_eq!(vcpus(&pool.handle(now, Event::Up(2))), [2, 2]);
}
