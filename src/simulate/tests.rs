//! What the simulated world makes of small traces, worked out by hand.

#![expect(
    clippy::float_cmp,
    reason = "whole milliseconds are the same numbers however they are come by"
)]

use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::course::Course;
use super::report::{Comparison, Report};
use super::trace::{HEAD, Trace};
use super::world::World;
use super::{Plan, Stuck, Times, simulate};
use crate::pool::policy::{Forecasting, Policy, Reuse};

fn trace(lines: &str) -> Trace {
    Trace::read(format!("{HEAD}\n{lines}").as_bytes()).unwrap()
}

fn number(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

/// VMs that start in a second and end in no time.
fn plan(max_vms: u32) -> Plan {
    let policy = Policy {
        max_vms: number(max_vms),
        up_limit: number(max_vms),
        ..Policy::default()
    };
    let times = Times {
        start: Duration::from_secs(1),
        power_down: Duration::ZERO,
        kill: Duration::ZERO,
    };
    let slots = 2 * max_vms;
    Plan {
        policy,
        slots,
        times,
    }
}

fn run(trace: &Trace, plan: &Plan) -> Result<Report, Stuck> {
    let plans = trace
        .systems()
        .map(|system| (system, plan.clone()))
        .collect();
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    let origin = Instant::now();
    simulate(trace, &plans, origin)
}

#[track_caller]
fn simulated(lines: &str, plan: &Plan) -> Comparison {
    run(&trace(lines), plan).unwrap().all
}

#[test]
fn a_build_waits_for_its_vm_to_start() {
    let found = simulated("5,riscv64,a,10", &plan(2));
    assert_eq!(found.configured.wait_max_s, 1.0);
    assert_eq!(found.configured.vm_seconds, 11.0);
    assert_eq!((found.configured.starts, found.configured.peak_vms), (1, 1));
    assert_eq!(found.always_max.wait_max_s, 0.0);
    assert_eq!(found.always_max.vm_seconds, 20.0);
    assert_eq!(found.always_one.vm_seconds, 10.0);
}

#[test]
fn builds_wait_their_turn() {
    let lines = "0,riscv64,a,10\n0,riscv64,a,10\n0,riscv64,a,10\n";
    let found = simulated(lines, &plan(2));
    // The third one has a VM started when the first one's is gone.
    assert_eq!(found.configured.wait_max_s, 12.0);
    assert_eq!((found.configured.starts, found.configured.peak_vms), (3, 2));
    assert_eq!(found.always_max.wait_p50_s, 0.0);
    assert_eq!(found.always_max.wait_max_s, 10.0);
    assert_eq!(found.always_one.wait_p50_s, 10.0);
    assert_eq!(found.always_one.wait_max_s, 20.0);
}

#[test]
fn a_stop_takes_its_time_and_the_room_of_another_vm() {
    let mut plan = plan(1);
    plan.times.kill = Duration::from_secs(3);
    let found = simulated("0,riscv64,a,10\n0,riscv64,a,10\n", &plan).configured;
    assert_eq!(found.wait_max_s, 1.0 + 10.0 + 3.0 + 1.0);
    assert_eq!(found.vm_seconds, 1.0 + 10.0 + 3.0 + 1.0 + 10.0);
}

#[test]
fn an_idle_vm_costs_its_time_until_it_is_stopped() {
    let mut plan = plan(1);
    plan.policy.reuse = Reuse::Always;
    plan.policy.idle_timeout = Duration::from_secs(60);
    plan.policy.scale_down_delay = Duration::from_secs(1);
    let found = simulated("0,riscv64,a,10\n1000,riscv64,a,10\n", &plan).configured;
    assert_eq!((found.starts, found.vm_seconds), (2, 71.0 + 11.0));
    let found = simulated("0,riscv64,a,10\n50,riscv64,a,10\n", &plan).configured;
    assert_eq!((found.starts, found.vm_seconds), (1, 60.0));
}

#[test]
fn what_is_kept_is_ready_before_the_first_build() {
    let mut plan = plan(2);
    plan.policy.warm = 1;
    let found = simulated("0,riscv64,a,10", &plan).configured;
    assert_eq!((found.wait_max_s, found.starts), (0.0, 2));
}

#[test]
fn each_system_has_its_own_vms_and_all_are_counted_together() {
    let lines = "0,riscv64,a,10\n0,aarch64,a,10\n30,aarch64,a,10\n";
    let report = run(&trace(lines), &plan(1)).unwrap();
    let peaks = report.systems.values().map(|one| one.configured.peak_vms);
    assert_eq!(peaks.collect::<Vec<_>>(), [1, 1]);
    assert_eq!(report.all.configured.peak_vms, 2);
    assert_eq!(report.all.configured.starts, 3);
    assert_eq!(report.all.always_one.vm_seconds, 2.0 * 40.0);
}

#[test]
fn a_client_holds_back_what_it_has_no_slot_for() {
    let mut lines = "0,riscv64,a,10\n".repeat(20);
    lines += "1,riscv64,b,10\n";
    let mut plan = plan(1);
    plan.slots = 2;
    plan.policy.max_queued = 3;
    let found = simulated(&lines, &plan).configured;
    assert_eq!((found.rejected, found.starts), (0, 21));
    plan.slots = 20;
    assert!(simulated(&lines, &plan).configured.rejected > 0);
}

#[test]
fn builds_that_are_refused_are_counted_and_hold_nothing_up() {
    let mut plan = plan(1);
    // Longer than any start may take: it is given up, and after some of these nobody waits any more.
    plan.times.start = Duration::from_secs(3600);
    let found = simulated(&"0,riscv64,a,10\n".repeat(5000), &plan).configured;
    assert_eq!((found.rejected, found.wait_max_s), (5000, 0.0));
}

#[test]
fn a_trace_takes_the_same_course_each_time() {
    let mut lines = String::new();
    for n in 0..500u32 {
        let system = if n % 3 == 0 { "aarch64" } else { "riscv64" };
        let (at, work) = (n * 7 % 311, n * 13 % 97);
        writeln!(lines, "{at},{system},client-{},{work}", n % 5).unwrap();
    }
    let trace = trace(&lines);
    let report = run(&trace, &plan(4)).unwrap();
    assert_eq!(report, run(&trace, &plan(4)).unwrap());
    let all = &report.all;
    assert!(all.always_max.wait_p95_s <= all.configured.wait_p95_s);
    assert!(all.configured.wait_p95_s < all.always_one.wait_p95_s);
    assert!(all.configured.peak_vms <= 8);
    assert_eq!(all.configured.starts, 500);
}

#[test]
fn work_that_takes_no_time_is_done() {
    let found = simulated(&"0,riscv64,a,0\n".repeat(100), &plan(1)).configured;
    assert_eq!((found.rejected, found.starts), (0, 100));
}

/// Ten days with two builds every twenty seconds for an hour from nine, of a second each.
fn busy_hours() -> String {
    let mut lines = String::new();
    for day in 0..10 {
        for place in 0..180 {
            let at = day * 24 * 3600 + 9 * 3600 + place * 20;
            lines += &format!("{at},riscv64,a,1\n").repeat(2);
        }
    }
    lines
}

fn course(trace: &Trace, plan: &Plan) -> Course {
    let plans = trace.systems().map(|system| (system, plan.clone()));
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    let origin = Instant::now();
    World::new(trace, plans.collect(), origin).run().unwrap()
}

/// The wait that 95 of 100 builds of the last days do not exceed.
fn p95_of_last_days(course: &Course, days: usize) -> Duration {
    let mut waits = course.all().waits;
    let mut last = waits.split_off(waits.len() - days * 360);
    last.sort_unstable();
    last[last.len() * 95 / 100 - 1]
}

#[test]
fn a_forecast_has_vms_ready_for_the_hour_that_is_busy_every_week() {
    let trace = trace(&busy_hours());
    let off = plan(4);
    let on = |policy: Policy| Plan {
        policy: Policy {
            forecast: Forecasting::On,
            ..policy
        },
        ..off.clone()
    };
    let [without, with] = [&off, &on(off.policy.clone())].map(|plan| course(&trace, plan));
    assert_eq!(p95_of_last_days(&without, 3), Duration::from_secs(1));
    assert_eq!(p95_of_last_days(&with, 3), Duration::ZERO);
    // Nobody waits longer for it on a day on which nothing is known yet.
    assert_eq!(p95_of_last_days(&with, 10), Duration::from_secs(1));
    let [without, with] = [without, with].map(|course| course.all().vm_time.as_secs());
    // Two VMs, for three hours, five minutes before each, and ten minutes for an idle one to go.
    let more = with - without;
    assert!(
        (3 * 2 * 3600..3 * 2 * 3600 * 5 / 4).contains(&more),
        "{more} VM-seconds more than {without}"
    );
    let warm = Plan {
        policy: Policy {
            warm: 2,
            ..off.policy.clone()
        },
        ..off.clone()
    };
    assert!(with * 20 < course(&trace, &warm).all().vm_time.as_secs());
}

#[test]
fn a_forecast_that_is_observed_changes_no_simulation() {
    let trace = trace(&busy_hours());
    let [mut off, observe] = [plan(4), plan(4)];
    assert_eq!(observe.policy.forecast, Forecasting::Observe);
    off.policy.forecast = Forecasting::Off;
    assert_eq!(run(&trace, &off).unwrap(), run(&trace, &observe).unwrap());
}
