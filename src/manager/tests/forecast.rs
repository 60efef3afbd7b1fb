//! What the manager makes of a forecast, and what it tells and keeps of it.

use tokio::time::Instant;

use super::*;
use crate::forecast::history::History;
use crate::forecast::{Forecaster, Review};
use crate::manager::events::Happening;
use crate::manager::forecast::{Histories, HistoryDesk};
use crate::pool::policy::Forecasting;

const HOUR: u64 = 3600;
const WEEK: u64 = 7 * 24 * HOUR;
/// A Thursday, nine o'clock, in seconds since the epoch.
const NINE: u64 = 2_900 * WEEK + 9 * HOUR;

/// Two sessions every ten seconds at nine of a week ago, and somebody there on other days.
fn busy_week() -> Histories {
    let mut forecaster = Forecaster::new(&Policy::default(), History::default());
    for time in (NINE - WEEK..NINE - WEEK + HOUR).step_by(10) {
        forecaster.look(time);
        (0..2).for_each(|_| forecaster.arrived());
    }
    for day in 1..7 {
        forecaster.look(NINE - WEEK + day * 24 * HOUR + HOUR);
    }
    Histories::from([(SYSTEM, forecaster.history().clone())])
}

/// A manager that begins ten minutes before nine.
fn fixture(forecast: Forecasting, desk: &HistoryDesk) -> Fixture {
    let policy = Policy {
        forecast,
        ..policy(Reuse::Never, 4)
    };
    let desk = desk.clone();
    Fixture::around(BTreeMap::from([(SYSTEM, policy)]), move |manager| {
        let begin = Instant::now();
        let clock = move || NINE - 600 + begin.elapsed().as_secs();
        manager.with_history(&desk).with_wall_clock(clock)
    })
}

fn keeps(status: &Status) -> Option<u32> {
    let forecast = status.systems.first()?.forecast;
    forecast?.keeps
}

#[tokio::test(start_paused = true)]
async fn what_a_busy_hour_needs_is_ready_when_it_begins() {
    let (desk, _kept) = HistoryDesk::channel(busy_week());
    let begin = Instant::now();
    let fixture = fixture(Forecasting::On, &desk);
    let are_ready = |status: &Status| {
        let vms = status.systems.first().map(|system| &system.vms);
        vms.is_some_and(|vms| vms.len() == 2 && vms.iter().all(|vm| vm.paused))
    };
    let status = fixture.until(are_ready).await;
    let took = begin.elapsed().as_secs();
    assert!((300..310).contains(&took), "{took} s");
    assert_eq!((status.systems[0].warm, keeps(&status)), (2, Some(2)));
    // And they go when it is over.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    fixture.until(|status| status.systems[0].warm == 0).await;
    let took = begin.elapsed().as_secs();
    assert!((4200..4210).contains(&took), "{took} s");
    fixture
        .until(|status| status.systems[0].vms.is_empty())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_forecast_that_is_observed_is_told_and_starts_nothing() {
    let (desk, _kept) = HistoryDesk::channel(busy_week());
    let fixture = fixture(Forecasting::Observe, &desk);
    let mut events = fixture.handle.events().unwrap();
    let status = fixture.until(|status| keeps(status) == Some(2)).await;
    assert!(status.systems[0].vms.is_empty());
    // Nine has begun.
    tokio::time::sleep(Duration::from_secs(600)).await;
    let mut ticket = fixture.open().await;
    drop(granted(&mut ticket).await);
    drop(ticket);
    let (mut started, mut reviews) = (0, Vec::new());
    // The first hour that ends is the one before nine, of which nothing is known.
    while reviews.is_empty() {
        match events.next().await.unwrap().happening {
            Happening::VmStarted { .. } => started += 1,
            Happening::ForecastEnded { review, .. } => reviews.push(review),
            _ => {}
        }
    }
    let expected = Review {
        hours: 1,
        kept: 2,
        came: 1,
        found: 1,
    };
    assert_eq!((started, reviews), (1, vec![expected]));
}

#[tokio::test(start_paused = true)]
async fn what_came_is_kept_when_the_manager_ends() {
    let (desk, kept) = HistoryDesk::channel(Histories::new());
    let fixture = fixture(Forecasting::Observe, &desk);
    let mut ticket = fixture.open().await;
    drop(granted(&mut ticket).await);
    drop(ticket);
    tokio::time::advance(Duration::from_secs(20)).await;
    fixture.shutdown.drain.cancel();
    fixture.running.await.unwrap();
    let text = serde_json::to_string(&kept.borrow()[&SYSTEM]).unwrap();
    assert_eq!(text, format!("{{\"{}\":[1]}}", NINE / HOUR - 1));
}
