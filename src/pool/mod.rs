//! The pure core of one system's pool: events in, actions out, and a deadline.
//!
//! Fully deterministic: no IO, no clock, no randomness, no tokio. Time is an argument. The manager performs the actions
//! and says what came of them.

mod backoff;
pub mod budget;
pub mod claim;
pub mod decision;
mod drain;
mod event;
mod forecast;
pub mod hold;
mod homes;
mod keep;
mod leases;
mod line;
pub mod memory;
mod offers;
mod pinned;
mod planner;
pub mod policy;
mod queue;
mod scale;
pub mod shape;
mod starts;
pub mod status;
mod unfetched;
mod vm;
mod wanted;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use backoff::Backoff;
use budget::Machine;
use decision::Decision;
pub use event::{Action, Down, Event, Exit, Rejection, Retry, SessionId};
use hold::{Held, Hold};
use line::Queue;
use policy::Policy;
use starts::Starts;
pub use vm::VmId;
use vm::VmState;
use wanted::Wanted;

/// Whether a pool serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It starts VMs when something waits.
    Open,
    /// It starts nothing and takes nobody; what runs ends first.
    Draining,
}

/// Decides; never acts.
#[derive(Clone, Debug)]
pub struct Pool {
    policy: Policy,
    mode: Mode,
    /// VMs that somebody asked for with `up`.
    floor: u32,
    vms: BTreeMap<VmId, VmState>,
    /// Processors that each of them was given.
    vcpus: BTreeMap<VmId, u32>,
    queue: Queue,
    backoff: Backoff,
    machine: Machine,
    /// Sessions that will come at once, if that is known.
    forecast: Option<u32>,
    /// What keeps a VM that is wanted from being started.
    held: Option<Held>,
    starts: Starts,
    wanted: Wanted,
    /// What the last event has led to.
    decisions: Vec<Decision>,
    last_decision: Option<Decision>,
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
            vcpus: BTreeMap::new(),
            queue: Queue::default(),
            backoff: Backoff::default(),
            machine: Machine::default(),
            forecast: None,
            held: None,
            starts: Starts::default(),
            wanted: Wanted::default(),
            decisions: Vec::new(),
            last_decision: None,
            last_vm: 0,
        }
    }

    /// What it may do.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Notes what the machine has for this pool, for what is decided from now on.
    pub fn set_machine(&mut self, machine: Machine) {
        self.machine = machine;
    }

    /// The processors, and the memory in MiB, that its VMs are given, whatever their state is.
    pub fn given(&self) -> (u32, u64) {
        let vms = u64::try_from(self.vms.len()).unwrap_or(u64::MAX);
        (
            self.given_vcpus(),
            vms.saturating_mul(self.policy.memory_mib),
        )
    }

    /// The processors that its VMs are given.
    fn given_vcpus(&self) -> u32 {
        self.vcpus.values().copied().fold(0, u32::saturating_add)
    }

    /// VMs that are at work, or wanted by those who wait.
    pub fn at_work(&self) -> usize {
        self.wanted.now()
    }

    /// Whether a VM is about to be gone.
    pub fn has_stopping(&self) -> bool {
        let is_stopping = |vm: &VmState| matches!(vm, VmState::Stopping);
        self.vms.values().any(is_stopping)
    }

    /// Whether somebody waits for a VM that this machine has no room for.
    pub fn lacks_room(&self) -> bool {
        let hold = self.held.map(|held| held.hold);
        hold.is_some_and(Hold::is_for_want_of_room) && !self.queue.has_no_lines()
    }

    /// The memory, in MiB, that VMs will take and have not taken yet.
    pub fn promised_memory_mib(&self, now: Instant) -> u64 {
        budget::estimate_mib(budget::growing(&self.vms, now), &self.policy)
    }

    /// Takes an event and says what to do. Events about sessions and VMs that are gone are nothing new.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        self.end_leases(|_, until| until <= now);
        self.end_keeping(now);
        let mut actions = match event {
            Event::SessionOpened(session, claim) => self.session_opened(now, session, claim),
            Event::SessionLeft(session, outputs) => {
                self.session_left(now, session, outputs);
                Vec::new()
            }
            Event::SessionClosed(session, outputs) => {
                self.session_closed(now, session, outputs);
                Vec::new()
            }
            Event::SessionReturned(session, claim) => {
                self.session_returned(now, session, claim);
                Vec::new()
            }
            Event::Built(session, paths) => {
                self.built(session, paths);
                Vec::new()
            }
            Event::Failed(session) => {
                self.failed(now, session);
                Vec::new()
            }
            Event::Fetched(session, path) => {
                self.fetched(session, &path);
                Vec::new()
            }
            Event::SeatGone(seat) => {
                self.seat_gone(&seat);
                Vec::new()
            }
            Event::VmReady(vm) => {
                self.vm_ready(now, vm);
                Vec::new()
            }
            Event::VmExited(vm, exit) => self.vm_exited(now, vm, exit),
            Event::Up(count) => {
                self.up(count);
                Vec::new()
            }
            Event::Down(how) => self.down(how),
            Event::DrainVm(vm) => self.drain(vm),
            Event::Worn(vm) => {
                self.retire(vm);
                Vec::new()
            }
            Event::MakeRoom => self.make_room_for_others(),
            Event::MemoryIsOut(vm) => self.end_for_memory(vm),
            Event::DeadlineReached => self.give_up_late_boots(now),
        };
        self.seat_waiting();
        actions.extend(self.reject_late(now));
        if self.mode == Mode::Draining {
            actions.extend(self.reject_waiting(&Rejection::Down));
        }
        actions.extend(self.reject_bereft());
        actions.extend(self.assign_waiting(now));
        actions.extend(self.kill_spent());
        actions.extend(self.stop_drained());
        actions.extend(self.scale(now));
        actions
    }

    /// When to send [`Event::DeadlineReached`]; `None` while only other events can change anything.
    pub fn deadline(&self) -> Option<Instant> {
        let boots = self.vms.values().filter_map(|vm| match vm {
            VmState::Booting { deadline, .. } => Some(*deadline),
            _ => None,
        });
        boots
            .chain(self.idle_deadline())
            .chain(self.wait_deadline())
            .chain(self.lease_deadline())
            .chain(self.keep_deadline())
            .chain(self.held.and_then(|held| held.look_again))
            .min()
    }

    /// Whether the pool was taken down and has no VM left.
    pub fn is_down(&self) -> bool {
        self.mode == Mode::Draining && self.vms.is_empty()
    }

    fn vm_ready(&mut self, now: Instant, vm: VmId) {
        if let Some(state) = self.vms.get_mut(&vm)
            && let VmState::Booting {
                share, pinned_by, ..
            } = state
        {
            *state = VmState::ready(now, *share, pinned_by.take());
            self.backoff.succeeded();
        }
    }

    fn vm_exited(&mut self, now: Instant, vm: VmId, exit: Exit) -> Vec<Action> {
        let Some(state) = self.vms.remove(&vm) else {
            return Vec::new();
        };
        self.vcpus.remove(&vm);
        // A VM that was told to stop has nothing to say about the next start, nor has one that somebody has had: its end may be
        // their doing, at work or afterwards, and nobody else's builds wait for it.
        let counts = state.is_booting() || state.is_unused();
        match exit {
            Exit::Failed { reason, retry } if counts => self.start_failed(now, reason, retry),
            _ => Vec::new(),
        }
    }

    fn start_failed(&mut self, now: Instant, reason: String, retry: Retry) -> Vec<Action> {
        self.backoff.failed(now, reason.clone(), &self.policy);
        if retry == Retry::Later && !self.is_degraded() {
            return Vec::new();
        }
        self.reject_waiting(&Rejection::StartFailed { reason })
    }

    /// Whether so many starts failed in a row that it is not an accident.
    pub(super) fn is_degraded(&self) -> bool {
        self.backoff.failures() >= self.policy.max_start_failures
    }

    /// VMs that serve, or will.
    fn live_vms(&self) -> usize {
        let live = self.vms.values().filter(|vm| decision::is_live(vm));
        live.count()
    }

    fn up(&mut self, count: u32) {
        self.mode = Mode::Open;
        // Nobody's wish takes away what another one asked for; `down` does.
        self.floor = self.floor.max(count).min(self.policy.up_limit.get());
        // Somebody asks for it now, perhaps after a repair: the next start need not wait.
        self.backoff.succeeded();
        self.starts = Starts::default();
    }

    fn down(&mut self, how: Down) -> Vec<Action> {
        self.mode = Mode::Draining;
        self.floor = 0;
        let mut actions = Vec::new();
        for vm in self.vms.values_mut().filter_map(VmState::as_ready_mut) {
            vm.kept_until = None;
        }
        for (id, vm) in &mut self.vms {
            // Under `Drain`, a ready VM goes as soon as nobody uses it and nothing is to be fetched from it.
            if how == Down::Now || vm.is_booting() {
                actions.push(Action::Kill(*id));
                *vm = VmState::Stopping;
            }
        }
        actions
    }

    fn give_up_late_boots(&mut self, now: Instant) -> Vec<Action> {
        let is_late =
            |vm: &VmState| matches!(vm, VmState::Booting { deadline, .. } if *deadline <= now);
        let limit = scale::longest_start(&self.policy).as_secs();
        let mut actions = Vec::new();
        for id in self.vms_that(is_late) {
            self.vms.insert(id, VmState::Stopping);
            actions.push(Action::Kill(id));
            let reason = format!("a VM was not ready after {limit} s");
            actions.extend(self.start_failed(now, reason, Retry::Later));
        }
        actions
    }

    /// Ends VMs that may not be used again. They are throw-away copies: nothing in them is worth a shutdown.
    fn kill_spent(&mut self) -> Vec<Action> {
        let policy = &self.policy;
        let is_spent = |vm: &VmState| vm.as_ready().is_some_and(|vm| vm.is_spent(policy));
        let spent = self.vms_that(is_spent);
        for id in &spent {
            self.vms.insert(*id, VmState::Stopping);
        }
        spent.into_iter().map(Action::Kill).collect()
    }

    fn vms_that(&self, is_meant: impl Fn(&VmState) -> bool) -> Vec<VmId> {
        let meant = self.vms.iter().filter(|(_, vm)| is_meant(vm));
        meant.map(|(id, _)| *id).collect()
    }

    /// Sessions that have a VM or wait for one.
    pub fn demand(&self) -> usize {
        self.vms.values().flat_map(VmState::sessions).count() + self.queue.len()
    }
}
