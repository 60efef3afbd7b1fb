//! What is said of an hour, from what came before it and from what clocks do.

use super::*;

const HOUR: u64 = HOUR_S;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
/// A whole number of weeks since the epoch.
const START: u64 = 2_900 * WEEK;

fn forecaster() -> Forecaster {
    Forecaster::new(&Policy::default(), History::default())
}

/// Goes through the time from `begin` to `end` as a manager does that nothing happens to.
fn pass(forecaster: &mut Forecaster, begin: u64, end: u64) {
    let mut time = begin;
    while time < end {
        forecaster.look(time);
        time += Forecaster::next_look_s(time);
    }
}

/// An hour with so many sessions at once every `every` seconds.
fn busy_hour(forecaster: &mut Forecaster, begin: u64, every: u64, at_once: u32) {
    for time in (begin..begin + HOUR).step_by(usize::try_from(every).unwrap()) {
        forecaster.look(time);
        (0..at_once).for_each(|_| forecaster.arrived());
    }
}

/// Days with a busy hour at nine, and what is said at nine of the day after.
fn after_days(days: u64) -> Option<u32> {
    let mut forecaster = forecaster();
    for day in 0..days {
        let nine = START + day * DAY + 9 * HOUR;
        pass(&mut forecaster, START + day * DAY, nine);
        busy_hour(&mut forecaster, nine, 20, 2);
        pass(&mut forecaster, nine + HOUR, START + (day + 1) * DAY);
    }
    let nine = START + days * DAY + 9 * HOUR;
    pass(&mut forecaster, START + days * DAY, nine + 1);
    forecaster.says(nine)
}

#[test]
fn the_same_hour_of_another_day_of_the_week_says_nothing() {
    assert_eq!([2, 3, 6].map(after_days), [None, None, None]);
    assert_eq!([7, 8, 13, 15].map(after_days), [Some(2); 4]);
}

#[test]
fn fewer_than_three_days_say_nothing() {
    let monday_nine = START + 9 * HOUR;
    let says = |days: &[u64]| {
        let mut forecaster = forecaster();
        busy_hour(&mut forecaster, monday_nine, 10, 3);
        for day in days {
            forecaster.look(START + day * DAY);
        }
        forecaster.look(monday_nine + WEEK);
        forecaster.says(monday_nine + WEEK)
    };
    assert_eq!([says(&[]), says(&[2])], [None, None]);
    assert_eq!(says(&[2, 3]), Some(3));
}

#[test]
fn nine_of_ten_windows_decide() {
    let nine = START + 9 * HOUR;
    let says = |every| {
        let mut forecaster = forecaster();
        busy_hour(&mut forecaster, nine, every, 2);
        for day in [2, 3] {
            forecaster.look(START + day * DAY);
        }
        forecaster.look(nine + WEEK);
        forecaster.says(nine + WEEK)
    };
    // 36 of 360 windows have some, and 40.
    assert_eq!([says(100), says(90)], [Some(0), Some(2)]);
}

#[test]
fn what_is_older_than_two_weeks_is_forgotten() {
    let nine = START + 9 * HOUR;
    let mut forecaster = forecaster();
    busy_hour(&mut forecaster, nine, 10, 2);
    let mut said = Vec::new();
    for week in 1..=3 {
        for day in [4, 5, 6] {
            forecaster.look(START + (week - 1) * WEEK + day * DAY);
        }
        // Nobody counts at nine: the one busy hour is all that is known of it.
        forecaster.look(nine + week * WEEK - HOUR);
        said.push(forecaster.says(nine + week * WEEK - LEAD_S));
    }
    // Of the hour before it something is known: nothing came.
    assert_eq!(said, [Some(2), Some(2), Some(0)]);
}

#[test]
fn what_an_hour_needs_is_said_shortly_before_it() {
    let nine = START + 9 * HOUR;
    let mut forecaster = forecaster();
    pass(&mut forecaster, START, nine);
    busy_hour(&mut forecaster, nine, 10, 1);
    pass(&mut forecaster, nine + HOUR, nine + WEEK);
    let said = |time| forecaster.says(nine + WEEK - time);
    assert_eq!([said(LEAD_S + 1), said(LEAD_S)], [Some(0), Some(1)]);
    let look = Forecaster::next_look_s(nine + WEEK - LEAD_S - 1);
    assert_eq!(look, 1);
}

#[test]
fn a_clock_that_jumps_forward_and_back_loses_nothing() {
    let nine = START + 9 * HOUR;
    let mut forecaster = forecaster();
    busy_hour(&mut forecaster, nine, 10, 2);
    pass(&mut forecaster, nine + HOUR, START + 6 * DAY);
    for far in [START + 5_000 * WEEK, 0, u64::MAX / 2, START] {
        pass(&mut forecaster, far, far + DAY);
        forecaster.arrived();
    }
    pass(&mut forecaster, START + 6 * DAY, nine + WEEK + 1);
    assert_eq!(forecaster.says(nine + WEEK), Some(2));
}

#[test]
fn an_hour_that_a_clock_goes_through_again_and_again_is_one_hour() {
    let mut forecaster = forecaster();
    for _ in 0..10 {
        busy_hour(&mut forecaster, START, 10, 4);
    }
    pass(&mut forecaster, START + HOUR, START + WEEK + 1);
    assert_eq!(forecaster.says(START + WEEK), Some(4));
    assert!(forecaster.history().is_sound());
}

#[test]
fn an_hour_is_reviewed_at_its_end() {
    let nine = START + 9 * HOUR;
    let mut forecaster = forecaster();
    pass(&mut forecaster, START, nine);
    busy_hour(&mut forecaster, nine, 10, 2);
    pass(&mut forecaster, nine + HOUR, nine + WEEK);
    assert_eq!(
        forecaster.look(nine + WEEK).unwrap().review.unwrap().came,
        0
    );
    // Three at once, and one more a minute later.
    (0..3).for_each(|_| forecaster.arrived());
    assert_eq!(forecaster.look(nine + WEEK + 60), None);
    forecaster.arrived();
    let review = forecaster.look(nine + WEEK + HOUR).unwrap().review.unwrap();
    let expected = Review {
        hours: 1,
        kept: 2,
        came: 4,
        found: 3,
    };
    assert_eq!(review, expected);
    assert_eq!(
        review.to_string(),
        "asked for 2 warm VMs, enough for 3 of 4 sessions"
    );
    let status = forecaster.status(nine + WEEK + HOUR);
    assert_eq!((status.last_hour, status.keeps), (Some(expected), Some(0)));
    assert_eq!((status.so_far.came, status.so_far.found), (4, 3));
}

#[test]
fn however_much_comes_little_is_kept_of_it() {
    let mut forecaster = forecaster();
    let mut seed = 1_u64;
    for window in 0..20 * DAY / WINDOW_S {
        forecaster.look(START + window * WINDOW_S);
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (0..(seed >> 33) % 50).for_each(|_| forecaster.arrived());
    }
    let history = forecaster.history();
    assert!(history.is_sound());
    let text = serde_json::to_string(history).unwrap();
    assert!(text.len() < 50_000, "{} bytes", text.len());
    assert_eq!(serde_json::from_str::<History>(&text).unwrap(), *history);
}
