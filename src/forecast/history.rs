//! How many sessions came, by hours: what a forecast is made from, and what is kept of it over restarts.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// How long a window is, in seconds: what comes in one has to be served by VMs that were there before it. A copy starts in
/// about one second and a boot in some four, so this is long enough on a machine that is busy; and it is the same for every
/// start, so that counts of other days can be compared.
pub(super) const WINDOW_S: u64 = 10;

/// An hour, in seconds.
pub(super) const HOUR_S: u64 = 3600;

/// Windows in an hour.
const WINDOWS: u64 = HOUR_S / WINDOW_S;

/// What is further back, in hours, says nothing.
const REACH: u64 = 14 * 24;

/// A week, in hours.
const WEEK: u64 = 7 * 24;

/// Different days that have to be known before anything is said. The hour of the week itself comes back after seven.
const LEAST_DAYS: usize = 3;

/// Hours that are kept: those that count, and the one that it is.
const MOST_HOURS: usize = 14 * 24 + 1;

/// Arrivals in one window, at the most; more count as so many. Far above what anybody keeps ready.
const MOST_ARRIVALS: usize = 32;

/// The percentage of windows that a forecast is enough for.
const PERCENT: u64 = 90;

/// The hours in which somebody counted: at most [`MOST_HOURS`], by their number since the epoch, which is one of UTC. Each has how
/// many of its windows had one arrival, two, and so on, as far as there were any. What is not known of an hour counts as
/// windows without any, so that too little is said rather than too much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History(BTreeMap<u64, Vec<u16>>);

impl History {
    /// Whether it can have been written by us; what a file says may be anything.
    pub fn is_sound(&self) -> bool {
        let is_sound =
            |windows: &Vec<u16>| windows.len() <= MOST_ARRIVALS && sum(windows) <= WINDOWS;
        self.0.len() <= MOST_HOURS && self.0.values().all(is_sound)
    }

    /// Notes that somebody counts in this hour. Clocks jump: what is too much then goes from where it is furthest away, and what
    /// lies in the future is kept, as the clock may be what is wrong.
    pub(super) fn begin(&mut self, hour: u64) {
        self.0.entry(hour).or_default();
        while self.0.len() > MOST_HOURS {
            let ends = self
                .0
                .keys()
                .next()
                .into_iter()
                .chain(self.0.keys().next_back());
            let furthest = ends.max_by_key(|at| at.abs_diff(hour)).copied();
            furthest.map(|at| self.0.remove(&at));
        }
    }

    /// Notes a window that has had arrivals, of an hour that was begun.
    pub(super) fn note(&mut self, hour: u64, arrivals: u32) {
        let place = (arrivals as usize).min(MOST_ARRIVALS).checked_sub(1);
        let (Some(place), Some(windows)) = (place, self.0.get_mut(&hour)) else {
            return;
        };
        // An hour that a clock has gone through twice has no more windows than another one.
        if sum(windows) < WINDOWS {
            windows.resize(windows.len().max(place + 1), 0);
            windows[place] += 1;
        }
    }

    /// How many sessions came at the most in nine of ten windows of the same hour of the week, in the last two weeks; `None`
    /// while too little is known.
    pub(super) fn forecast(&self, hour: u64) -> Option<u32> {
        let known = || self.0.range(hour.saturating_sub(REACH)..hour);
        let days: BTreeSet<u64> = known().map(|(at, _)| at / 24).collect();
        if days.len() < LEAST_DAYS {
            return None;
        }
        let is_alike = |at: u64| (hour - at).is_multiple_of(WEEK);
        let alike = known().filter(|(at, _)| is_alike(**at));
        let alike: Vec<&Vec<u16>> = alike.map(|(_, windows)| windows).collect();
        let all = WINDOWS * alike.len() as u64;
        if all == 0 {
            return None;
        }
        let enough = (all * PERCENT).div_ceil(100);
        let with = |arrivals: usize| -> u64 {
            let counts = alike.iter().filter_map(|windows| windows.get(arrivals - 1));
            counts.map(|count| u64::from(*count)).sum()
        };
        let mut seen = all.saturating_sub((1..=MOST_ARRIVALS).map(with).sum());
        let mut arrivals = 0;
        while seen < enough && arrivals < MOST_ARRIVALS {
            arrivals += 1;
            seen += with(arrivals);
        }
        u32::try_from(arrivals).ok()
    }

    /// How many hours are known.
    pub fn hours(&self) -> usize {
        self.0.len()
    }
}

fn sum(windows: &[u16]) -> u64 {
    windows.iter().map(|count| u64::from(*count)).sum()
}
