//! How many VMs will be wanted at once, by what came in the same hour of the week before. Pure: no clock and no IO. The time of day
//! is an argument, in seconds since the epoch, and may jump either way. What becomes of a forecast is the pool's to say.

pub mod history;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use history::{HOUR_S, History, WINDOW_S};

use crate::pool::policy::{Forecasting, Policy};

/// How long before an hour begins what it needs is kept ready, in seconds: AWS' figure, and longer than a boot takes on a machine that
/// is overloaded.
const LEAD_S: u64 = 300;

/// How long until somebody looks again, in seconds: what is said changes when an hour begins or [`LEAD_S`] before, which are both
/// multiples of it. Nobody tells when a clock is set or a machine has slept, so it is no longer.
const LOOK_S: u64 = LEAD_S;

/// What was said and what came, of an hour or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Review {
    /// Hours that something was said of.
    pub hours: u64,
    /// VMs that were to be kept ready in them, of all hours together, those included that are in any case.
    pub kept: u64,
    /// Sessions that came.
    pub came: u64,
    /// Those of them that would have found one of these VMs ready.
    pub found: u64,
}

impl std::ops::AddAssign for Review {
    fn add_assign(&mut self, more: Self) {
        self.hours += more.hours;
        self.kept += more.kept;
        self.came += more.came;
        self.found += more.found;
    }
}

impl std::fmt::Display for Review {
    /// Of one hour.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            kept, came, found, ..
        } = self;
        write!(
            f,
            "asked for {kept} warm VMs, enough for {found} of {came} sessions"
        )
    }
}

/// What is shown of a forecast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ForecastStatus {
    /// What becomes of it.
    pub mode: Forecasting,
    /// VMs that it would have kept ready now; `None` while too little is known.
    pub keeps: Option<u32>,
    /// Hours of the last two weeks in which a manager was there.
    pub known_hours: usize,
    /// How right it was in the last hour that something was said of.
    pub last_hour: Option<Review>,
    /// How right it was since the manager began.
    pub so_far: Review,
}

/// The hour that it is.
#[derive(Clone, Debug)]
struct Hour {
    number: u64,
    /// What is said of it, and of the one after it.
    says: Option<u32>,
    next: Option<u32>,
    /// The window that it is, and what has come in it.
    window: u64,
    arrivals: u32,
    came: u64,
    found: u64,
}

/// What an hour has shown, at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How right the forecast was; `None` where it had said nothing.
    pub review: Option<Review>,
}

/// One system's forecast.
#[derive(Clone, Debug)]
pub struct Forecaster {
    mode: Forecasting,
    /// What is kept ready in any case, and the most that may be.
    warm: u32,
    warm_max: u32,
    history: History,
    hour: Option<Hour>,
    last_hour: Option<Review>,
    so_far: Review,
}

impl Forecaster {
    /// One that knows what came before.
    pub fn new(policy: &Policy, history: History) -> Self {
        Self {
            mode: policy.forecast,
            warm: policy.warm,
            warm_max: policy.warm_max,
            history,
            hour: None,
            last_hour: None,
            so_far: Review::default(),
        }
    }

    /// Notes what time it is; what the hour has shown that has ended by it.
    pub fn look(&mut self, time: u64) -> Option<Ended> {
        self.end_window(time / WINDOW_S);
        let number = time / HOUR_S;
        if self.hour.as_ref().is_some_and(|hour| hour.number == number) {
            return None;
        }
        self.history.begin(number);
        let begun = Hour {
            number,
            says: self.history.forecast(number),
            next: self.history.forecast(number + 1),
            window: time / WINDOW_S,
            arrivals: 0,
            came: 0,
            found: 0,
        };
        let ended = self.hour.replace(begun)?;
        Some(self.review(&ended))
    }

    /// Notes that a session has come that any VM could serve, at the time that was noted last.
    pub fn arrived(&mut self) {
        if let Some(hour) = &mut self.hour {
            hour.arrivals = hour.arrivals.saturating_add(1);
        }
    }

    /// How many VMs will be wanted within a window, now or when the next hour has begun that is about to.
    pub fn says(&self, time: u64) -> Option<u32> {
        let hour = self.hour.as_ref()?;
        let is_about_to = (time + LEAD_S) / HOUR_S > hour.number;
        hour.says.max(hour.next.filter(|_| is_about_to))
    }

    /// In how many seconds to look again.
    pub fn next_look_s(time: u64) -> u64 {
        LOOK_S - time % LOOK_S
    }

    /// What came so far, to be kept. What has come in the window that it is is not in it yet.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// What is to be shown.
    pub fn status(&self, time: u64) -> ForecastStatus {
        ForecastStatus {
            mode: self.mode,
            keeps: self.says(time).map(|says| self.kept(says)),
            known_hours: self.history.hours(),
            last_hour: self.last_hour,
            so_far: self.so_far,
        }
    }

    fn kept(&self, says: u32) -> u32 {
        self.warm.max(says.min(self.warm_max))
    }

    /// Whatever window it was is over, if it is another one now.
    fn end_window(&mut self, window: u64) {
        let kept = self.hour.as_ref().and_then(|hour| hour.says);
        let kept = kept.map_or(0, |says| self.kept(says));
        let Some(hour) = self.hour.as_mut().filter(|hour| hour.window != window) else {
            return;
        };
        hour.window = window;
        let arrivals = std::mem::take(&mut hour.arrivals);
        hour.came += u64::from(arrivals);
        hour.found += u64::from(arrivals.min(kept));
        self.history.note(hour.number, arrivals);
    }

    fn review(&mut self, hour: &Hour) -> Ended {
        let review = hour.says.map(|says| Review {
            hours: 1,
            kept: self.kept(says).into(),
            came: hour.came,
            found: hour.found,
        });
        if let Some(review) = review {
            self.last_hour = Some(review);
            self.so_far += review;
        }
        Ended { review }
    }
}
