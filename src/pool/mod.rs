//! The pure core of one system's pool: events in, actions out, and a deadline.
//!
//! Fully deterministic: no IO, no clock, no randomness, no tokio. Time is an argument. The manager performs the actions
//! and says what came of them.

mod backoff;
mod event;
mod planner;
pub mod policy;
pub mod status;
mod vm;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use backoff::Backoff;
pub use event::{Action, Down, Event, Exit, Rejection, Retry, SessionId};
use policy::Policy;
pub use vm::VmId;
use vm::VmState;

/// Whether a pool serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It starts VMs when something waits.
    Open,
    /// It starts nothing and takes nobody; what runs ends first.
    Draining,
}

/// A VM keeps the boot timeout itself, and says what it waited for; the pool gives it up only when it does not. Verifying
/// an image and making an overlay come before.
const BOOT_MARGIN: Duration = Duration::from_secs(60);

/// Decides; never acts.
#[derive(Clone, Debug)]
pub struct Pool {
    policy: Policy,
    mode: Mode,
    /// VMs that somebody asked for with `up`.
    floor: u32,
    vms: BTreeMap<VmId, VmState>,
    queue: VecDeque<SessionId>,
    backoff: Backoff,
    last_vm: u32,
}

impl Pool {
    /// A pool without VMs.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            mode: Mode::Open,
            floor: 0,
            vms: BTreeMap::new(),
            queue: VecDeque::new(),
            backoff: Backoff::default(),
            last_vm: 0,
        }
    }

    /// Takes an event and says what to do. Events about sessions and VMs that are gone are nothing new.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = match event {
            Event::SessionOpened(session) => self.session_opened(session),
            Event::SessionClosed(session) => self.session_closed(now, session),
            Event::SessionReturned(session) => self.session_returned(session),
            Event::VmReady(vm) => self.vm_ready(now, vm),
            Event::VmExited(vm, exit) => self.vm_exited(now, vm, exit),
            Event::Up(count) => self.up(count),
            Event::Down(how) => self.down(how),
            Event::DeadlineReached => self.give_up_late_boots(now),
        };
        actions.extend(self.assign_waiting());
        actions.extend(self.scale(now));
        actions
    }

    /// When to send [`Event::DeadlineReached`]; `None` while only other events can change anything.
    pub fn deadline(&self) -> Option<Instant> {
        let boots = self.vms.values().filter_map(|vm| match vm {
            VmState::Booting { deadline } => Some(*deadline),
            _ => None,
        });
        boots
            .chain(self.idle_deadline())
            .chain(self.retry_deadline())
            .min()
    }

    /// Whether the pool was taken down and has no VM left.
    pub fn is_down(&self) -> bool {
        self.mode == Mode::Draining && self.vms.is_empty()
    }

    fn session_opened(&mut self, session: SessionId) -> Vec<Action> {
        let waiting = self.queue.len();
        let reason = match self.mode {
            Mode::Draining => Rejection::Down,
            Mode::Open if waiting >= self.policy.max_queued => Rejection::QueueFull { waiting },
            Mode::Open => {
                self.queue.push_back(session);
                return Vec::new();
            }
        };
        vec![Action::Reject { session, reason }]
    }

    fn session_closed(&mut self, now: Instant, session: SessionId) -> Vec<Action> {
        self.queue.retain(|waiting| *waiting != session);
        for vm in self.vms.values_mut() {
            if let VmState::Ready {
                sessions,
                idle_since,
            } = vm
                && sessions.remove(&session)
            {
                *idle_since = now;
            }
        }
        Vec::new()
    }

    fn session_returned(&mut self, session: SessionId) -> Vec<Action> {
        if self.mode == Mode::Draining {
            return vec![Action::Reject {
                session,
                reason: Rejection::Down,
            }];
        }
        // Numbers are given in the order of arrival.
        let place = self.queue.partition_point(|waiting| *waiting < session);
        self.queue.insert(place, session);
        Vec::new()
    }

    fn vm_ready(&mut self, now: Instant, vm: VmId) -> Vec<Action> {
        if let Some(state) = self.vms.get_mut(&vm)
            && matches!(state, VmState::Booting { .. })
        {
            *state = VmState::ready(now);
            self.backoff.succeeded();
        }
        Vec::new()
    }

    fn vm_exited(&mut self, now: Instant, vm: VmId, exit: Exit) -> Vec<Action> {
        let Some(state) = self.vms.remove(&vm) else {
            return Vec::new();
        };
        // A VM that was told to stop has nothing to say about the next start, nor has one that died at work: that may
        // be the work's doing, and its client has been told.
        let counts = matches!(state, VmState::Booting { .. }) || state.idle_since().is_some();
        match exit {
            Exit::Failed { reason, retry } if counts => self.start_failed(now, reason, retry),
            _ => Vec::new(),
        }
    }

    fn start_failed(&mut self, now: Instant, reason: String, retry: Retry) -> Vec<Action> {
        self.backoff.failed(now, reason.clone(), &self.policy);
        if retry == Retry::Later && self.backoff.failures() < self.policy.max_start_failures {
            return Vec::new();
        }
        self.reject_waiting(&Rejection::StartFailed { reason })
    }

    fn reject_waiting(&mut self, reason: &Rejection) -> Vec<Action> {
        let reject = |session| Action::Reject {
            session,
            reason: reason.clone(),
        };
        self.queue.drain(..).map(reject).collect()
    }

    fn up(&mut self, count: u32) -> Vec<Action> {
        self.mode = Mode::Open;
        // Nobody's wish takes away what another one asked for; `down` does.
        self.floor = self.floor.max(count).min(self.policy.max_vms.get());
        // Somebody asks for it now, perhaps after a repair: the next start need not wait.
        self.backoff.succeeded();
        Vec::new()
    }

    fn down(&mut self, how: Down) -> Vec<Action> {
        self.mode = Mode::Draining;
        self.floor = 0;
        let mut actions = self.reject_waiting(&Rejection::Down);
        for (id, vm) in &mut self.vms {
            // Under `Drain`, `scale` powers a ready VM down as soon as it is idle.
            if how == Down::Now || matches!(vm, VmState::Booting { .. }) {
                actions.push(Action::Kill(*id));
                *vm = VmState::Stopping;
            }
        }
        actions
    }

    fn give_up_late_boots(&mut self, now: Instant) -> Vec<Action> {
        let is_late =
            |vm: &VmState| matches!(vm, VmState::Booting { deadline } if *deadline <= now);
        let late: Vec<VmId> = self
            .vms
            .iter()
            .filter(|(_, vm)| is_late(vm))
            .map(|(id, _)| *id)
            .collect();
        let mut actions = Vec::new();
        for id in late {
            self.vms.insert(id, VmState::Stopping);
            actions.push(Action::Kill(id));
            let reason = format!(
                "a VM was not ready after {} s",
                self.policy.boot_timeout.as_secs()
            );
            actions.extend(self.start_failed(now, reason, Retry::Later));
        }
        actions
    }

    fn assign_waiting(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(vm) = planner::pick(&self.vms, &self.policy) {
            let Some(session) = self.queue.pop_front() else {
                break;
            };
            if let Some(VmState::Ready { sessions, .. }) = self.vms.get_mut(&vm) {
                sessions.insert(session);
            }
            actions.push(Action::Assign { session, vm });
        }
        actions
    }

    /// Starts what is missing, or else stops what is idle too long.
    fn scale(&mut self, now: Instant) -> Vec<Action> {
        let boots = self.boot_missing(now);
        if boots.is_empty() {
            self.stop_idle(now)
        } else {
            boots
        }
    }

    fn boot_missing(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        while self.may_boot() && self.backoff.retry_at().is_none_or(|at| at <= now) {
            self.last_vm += 1;
            let id = VmId(self.last_vm);
            let deadline = now + self.policy.boot_timeout + BOOT_MARGIN;
            self.vms.insert(id, VmState::Booting { deadline });
            actions.push(Action::Boot(id));
        }
        actions
    }

    /// Whether a further VM is wanted and there is room for it; the back-off apart.
    fn may_boot(&self) -> bool {
        let live = self.vms.len();
        let one_at_a_time = self.backoff.failures() > 0;
        let booting = self
            .vms
            .values()
            .any(|vm| matches!(vm, VmState::Booting { .. }));
        self.mode == Mode::Open
            && planner::supply(&self.vms) < self.want()
            && live < self.policy.max_vms.get() as usize
            && !(one_at_a_time && booting)
    }

    fn stop_idle(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        while self.idle_deadline().is_some_and(|at| at <= now) {
            let Some((_, id)) = planner::first_to_go(&self.vms) else {
                break;
            };
            self.vms.insert(id, VmState::Stopping);
            actions.push(Action::PowerDown(id));
        }
        actions
    }

    fn idle_deadline(&self) -> Option<Instant> {
        let (idle_since, _) = planner::first_to_go(&self.vms)?;
        let patience = match self.mode {
            Mode::Draining => Duration::ZERO,
            Mode::Open if planner::supply(&self.vms) > self.want() => self.policy.idle_timeout,
            Mode::Open => return None,
        };
        Some(idle_since + patience)
    }

    fn retry_deadline(&self) -> Option<Instant> {
        if self.may_boot() {
            self.backoff.retry_at()
        } else {
            None
        }
    }

    fn want(&self) -> u32 {
        match self.mode {
            Mode::Open => planner::want(self.demand(), self.floor, &self.policy),
            Mode::Draining => 0,
        }
    }

    /// Sessions that have a VM or wait for one.
    fn demand(&self) -> usize {
        self.vms.values().flat_map(VmState::sessions).count() + self.queue.len()
    }
}
