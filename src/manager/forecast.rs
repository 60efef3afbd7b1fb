//! What the manager knows of the time of day: each system's forecast hears it before its pool decides anything, and hours that
//! have ended are told and kept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::info;

use super::Manager;
use super::events::{Happening, wall_clock};
use super::system::ManagedSystem;
use crate::forecast::history::History;
use crate::forecast::{ForecastStatus, Forecaster, Review};
use crate::nix::System;
use crate::pool::policy::{Forecasting, Policy};
use crate::vm::VmBackend;

/// What came so far, of each system.
pub type Histories = BTreeMap<System, History>;

/// Tells the time of day, in seconds since the epoch.
pub(super) type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Where what came so far is told to whoever keeps it: the latest of it, so that nobody waits and nothing piles up.
#[derive(Clone, Debug)]
pub struct HistoryDesk(watch::Sender<Histories>);

impl HistoryDesk {
    /// One that begins with what was kept, and where to receive what follows.
    pub fn channel(kept: Histories) -> (Self, watch::Receiver<Histories>) {
        let (sender, receiver) = watch::channel(kept);
        (Self(sender), receiver)
    }

    fn kept(&self, system: System) -> History {
        self.0.borrow().get(&system).cloned().unwrap_or_default()
    }

    /// Has one system's be kept.
    pub fn keep(&self, system: System, history: &History) {
        self.0.send_modify(|all| {
            all.insert(system, history.clone());
        });
    }
}

/// One system's forecast, and when to look at the clock for it.
pub(super) struct SystemForecast {
    forecaster: Forecaster,
    clock: WallClock,
    look_at: Option<Instant>,
    desk: Option<HistoryDesk>,
}

impl SystemForecast {
    /// One that knows nothing yet, if there is to be one.
    pub(super) fn new(policy: &Policy) -> Option<Self> {
        (policy.forecast != Forecasting::Off).then(|| Self {
            forecaster: Forecaster::new(policy, History::default()),
            clock: Arc::new(wall_clock),
            look_at: None,
            desk: None,
        })
    }

    /// When the pool has to hear of the time, whatever else happens.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// A session has come that any VM could serve.
    pub(super) fn arrived(&mut self) {
        self.forecaster.arrived();
    }

    /// What is to be shown.
    pub(super) fn status(&self) -> ForecastStatus {
        self.forecaster.status((self.clock)())
    }

    fn keep(&self, system: System) {
        if let Some(desk) = &self.desk {
            desk.keep(system, self.forecaster.history());
        }
    }
}

impl<B: VmBackend> Manager<B> {
    /// Goes on with what came before, and tells there what comes.
    #[must_use]
    pub fn with_history(mut self, desk: &HistoryDesk) -> Self {
        for (name, system) in &mut self.systems {
            let policy = system.pool.policy();
            if let Some(forecast) = &mut system.forecast {
                forecast.forecaster = Forecaster::new(policy, desk.kept(*name));
                forecast.desk = Some(desk.clone());
            }
        }
        self
    }

    /// Asks there for the time of day, instead of the machine's clock.
    #[must_use]
    pub fn with_wall_clock(mut self, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let clock: WallClock = Arc::new(clock);
        for system in self.systems.values_mut() {
            if let Some(forecast) = &mut system.forecast {
                forecast.clock = clock.clone();
            }
        }
        self
    }

    /// Tells what came so far to who keeps it, at the end.
    pub(super) fn keep_histories(&self) {
        for (name, system) in &self.systems {
            if let Some(forecast) = &system.forecast {
                forecast.keep(*name);
            }
        }
    }
}

impl<B: VmBackend> ManagedSystem<B> {
    /// Has the pool know what the forecast says by now.
    pub(super) fn look_ahead(&mut self, now: Instant) {
        let Some(forecast) = &mut self.forecast else {
            return;
        };
        let time = (forecast.clock)();
        let ended = forecast.forecaster.look(time);
        self.pool.set_forecast(forecast.forecaster.says(time));
        let next = Duration::from_secs(Forecaster::next_look_s(time));
        forecast.look_at = Some(now + next);
        if let Some(ended) = ended {
            forecast.keep(self.system);
            if let Some(review) = ended.review {
                self.tell_review(review);
            }
        }
    }

    fn tell_review(&self, review: Review) {
        let system = self.system;
        if review.kept > 0 || review.came > 0 {
            info!(%system, "forecast: {review}");
        }
        self.events
            .tell(|| Happening::ForecastEnded { system, review });
    }
}
