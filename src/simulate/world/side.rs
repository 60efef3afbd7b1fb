//! One system of the simulated world: its pool, its VMs, and its clients with their slots.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::forecast::Forecaster;
use crate::forecast::history::History;
use crate::pool::policy::Forecasting;
use crate::pool::{Pool, SessionId, VmId};
use crate::simulate::Plan;
use crate::simulate::course::Tally;
use crate::simulate::trace::{Build, ClientId};

/// The shortest time between two looks at the same deadline, so that time goes on whatever a pool says.
const TICK: Duration = Duration::from_millis(1);

/// A VM that was started and is not gone.
pub(super) struct Vm {
    pub(super) started: Instant,
    pub(super) is_booting: bool,
}

/// A build that a pool knows of.
pub(super) struct Session {
    pub(super) build: Build,
    pub(super) slot: u32,
    pub(super) vm: Option<VmId>,
}

/// A client's slots, and the builds that it keeps to itself until one is free.
pub(super) struct Slots {
    /// The first that was never used.
    fresh: u32,
    count: u32,
    pub(super) free: Vec<u32>,
    pub(super) held: VecDeque<Build>,
}

/// One system.
pub(super) struct Side {
    pub(super) plan: Plan,
    pub(super) pool: Pool,
    /// When its deadline was last looked at.
    pub(super) looked: Option<Instant>,
    pub(super) vms: BTreeMap<VmId, Vm>,
    pub(super) sessions: HashMap<SessionId, Session>,
    pub(super) slots: HashMap<ClientId, Slots>,
    pub(super) tally: Tally,
    /// What is kept warm by a forecast, if there is one that does so, and when to look at the time for it.
    forecast: Option<(Forecaster, Option<Instant>)>,
}

impl Side {
    pub(super) fn new(plan: Plan) -> Self {
        let is_on = plan.policy.forecast == Forecasting::On;
        let forecaster = || Forecaster::new(&plan.policy, History::default());
        Self {
            forecast: is_on.then(|| (forecaster(), None)),
            pool: Pool::new(plan.policy.clone()),
            plan,
            looked: None,
            vms: BTreeMap::new(),
            sessions: HashMap::new(),
            slots: HashMap::new(),
            tally: Tally::default(),
        }
    }

    /// Has the pool know what the forecast says; `time` is the time of day, in seconds.
    pub(super) fn look_ahead(&mut self, now: Instant, time: u64) {
        if let Some((forecaster, look_at)) = &mut self.forecast {
            forecaster.look(time);
            self.pool.set_forecast(forecaster.says(time));
            *look_at = Some(now + Duration::from_secs(Forecaster::next_look_s(time)));
        }
    }

    /// A session has come.
    pub(super) fn arrived(&mut self) {
        if let Some((forecaster, _)) = &mut self.forecast {
            forecaster.arrived();
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let look = self.forecast.as_ref().and_then(|(_, look_at)| *look_at);
        let at = self.pool.deadline().into_iter().chain(look).min()?;
        let soonest = self
            .looked
            .filter(|looked| at <= *looked)
            .map(|looked| looked + TICK);
        Some(soonest.unwrap_or(at))
    }

    pub(super) fn slots_of(&mut self, client: ClientId) -> &mut Slots {
        let count = self.plan.slots;
        self.slots.entry(client).or_insert_with(|| Slots {
            fresh: 0,
            count,
            free: Vec::new(),
            held: VecDeque::new(),
        })
    }
}

impl Slots {
    /// The next build that can come in, and the slot it comes in by.
    pub(super) fn take(&mut self) -> Option<(Build, u32)> {
        if self.held.is_empty() || (self.free.is_empty() && self.fresh == self.count) {
            return None;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.fresh += 1;
            self.fresh - 1
        });
        Some((self.held.pop_front()?, slot))
    }
}
