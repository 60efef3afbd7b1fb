//! What a forecast does to a pool, and what it does not.

use super::*;
use crate::pool::budget::Machine;
use crate::pool::policy::Forecasting;

fn pool_of(forecast: Forecasting) -> (Pool, Instant) {
    pool_with(Policy {
        forecast,
        warm_max: 2,
        ..policy(Reuse::Never, 4)
    })
}

fn look(pool: &mut Pool, now: Instant, forecast: u32) -> Vec<Action> {
    pool.set_forecast(Some(forecast));
    pool.handle(now, Event::DeadlineReached)
}

#[test]
fn what_a_forecast_asks_for_is_started_up_to_the_limit() {
    let (mut pool, now) = pool_of(Forecasting::On);
    assert_eq!(look(&mut pool, now, 1), [boot(1)]);
    assert_eq!(look(&mut pool, now, 9), [boot(2)]);
    assert_eq!(pool.status(now).warm, 2);
    assert!(
        pool.status(now)
            .figures
            .to_string()
            .ends_with(", forecast 2")
    );
}

#[test]
fn a_forecast_that_is_observed_starts_nothing() {
    let (mut pool, now) = pool_of(Forecasting::Observe);
    assert_eq!(look(&mut pool, now, 2), []);
    assert_eq!(pool.status(now).warm, 0);
    assert_eq!(pool.status(now).figures.forecast, Some(2));
}

#[test]
fn a_forecast_of_nothing_leaves_what_is_kept_warm() {
    let warm = Policy {
        warm: 1,
        forecast: Forecasting::On,
        ..policy(Reuse::Never, 4)
    };
    let (mut pool, now) = pool_with(warm);
    assert_eq!(look(&mut pool, now, 0), [boot(1)]);
}

#[test]
fn what_a_forecast_asked_for_goes_when_it_no_longer_does() {
    let (mut pool, now) = pool_of(Forecasting::On);
    look(&mut pool, now, 1);
    pool.handle(now, ready(1));
    let later = now + Duration::from_secs(3600);
    assert_eq!(pool.handle(later, Event::DeadlineReached), []);
    assert_eq!(look(&mut pool, later, 0), [Action::PowerDown(VmId(1))]);
}

#[test]
fn a_forecast_starts_nothing_while_the_machine_is_short_of_something() {
    let (mut pool, now) = pool_of(Forecasting::On);
    let short = Machine {
        pressure: Some(Pressure::Cpu),
        ..Machine::default()
    };
    pool.set_machine(short);
    assert_eq!(look(&mut pool, now, 2), []);
    pool.set_machine(Machine {
        vcpus: Some(1),
        ..Machine::default()
    });
    assert_eq!(look(&mut pool, now, 2), [boot(1)]);
}
