//! What is around the pools: builds that come, VMs that take their time to start and to end, and a clock that jumps from one
//! event to the next.

mod side;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use side::{Session, Side, Vm};

use super::Plan;
use super::course::Course;
use super::trace::{Build, ClientId, Trace};
use crate::nix::System;
use crate::pool::claim::{Claim, Outputs, Purpose, Seat};
use crate::pool::{Action, Event, Exit, SessionId, VmId};

/// How long the pools are there before the first build, so that what they keep is ready.
const LEAD: Duration = Duration::from_secs(2 * 3600);

/// What a trace's clock is put forward, as it may begin at 0 and there is a time before it. No hour becomes another one of its week.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long nothing may come of anything while builds wait. Longer than any build.
const PATIENCE: Duration = Duration::from_secs(31 * 24 * 3600);

/// Builds wait and nothing will ever come of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{waiting} builds wait for ever, the first of them of {system}: the policy never gives them a VM"
)]
pub struct Stuck {
    /// How many.
    pub waiting: usize,
    /// Which system is the first of those that they are of.
    pub system: System,
}

/// What comes by itself, of one system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Coming {
    Ready(VmId),
    Gone(VmId),
    Done(SessionId),
}

/// All of it.
pub(super) struct World<'a> {
    trace: &'a Trace,
    sides: BTreeMap<System, Side>,
    /// In the order of time, and then of their noting.
    coming: BinaryHeap<Reverse<(Instant, u64, System, Coming)>>,
    noted: u64,
    now: Instant,
    /// When the first build is wanted.
    begin: Instant,
    /// How many builds have come.
    arrived: usize,
    /// Builds that have come to an end, good or bad.
    over: usize,
    last_session: u64,
    /// Clients that may have a free slot for a build that they hold.
    freed: VecDeque<(System, ClientId)>,
    /// When something came of something.
    progress: Instant,
    peak: usize,
}

/// What happens next.
enum Next {
    Coming,
    Arrival(Build),
    Deadline(System),
}

impl<'a> World<'a> {
    /// A world with empty pools; builds of systems without a plan do not come.
    pub(super) fn new(trace: &'a Trace, plans: BTreeMap<System, Plan>, origin: Instant) -> Self {
        let begin = origin + LEAD;
        let sides = plans
            .into_iter()
            .map(|(system, plan)| (system, Side::new(plan)));
        Self {
            trace,
            sides: sides.collect(),
            coming: BinaryHeap::new(),
            noted: 0,
            now: origin,
            begin,
            arrived: 0,
            over: 0,
            last_session: 0,
            freed: VecDeque::new(),
            progress: begin,
            peak: 0,
        }
    }

    /// Lets every build come and end.
    pub(super) fn run(mut self) -> Result<Course, Stuck> {
        let systems: Vec<System> = self.sides.keys().copied().collect();
        for system in systems {
            // As the manager does: this starts what is always to be there.
            self.tell(system, Event::DeadlineReached);
        }
        while self.over < self.trace.builds().len() {
            let Some((at, next)) = self
                .next()
                .filter(|(at, _)| *at <= self.progress + PATIENCE)
            else {
                return Err(self.stuck());
            };
            self.now = self.now.max(at);
            match next {
                Next::Coming => self.take_coming(),
                Next::Arrival(build) => self.arrive(build),
                Next::Deadline(system) => {
                    if let Some(side) = self.sides.get_mut(&system) {
                        side.looked = Some(self.now);
                    }
                    self.tell(system, Event::DeadlineReached);
                }
            }
            while let Some((system, client)) = self.freed.pop_front() {
                self.fill_slots(system, client);
            }
        }
        Ok(self.finish())
    }

    /// What happens next, and when. Of what happens at the same time, what was decided earlier comes first.
    fn next(&self) -> Option<(Instant, Next)> {
        let coming = self
            .coming
            .peek()
            .map(|Reverse((at, ..))| (*at, Next::Coming));
        let build = self.trace.builds().get(self.arrived);
        let arrival = build.map(|build| (self.begin + build.at, Next::Arrival(*build)));
        let deadlines = self
            .sides
            .iter()
            .filter_map(|(system, side)| Some((side.deadline()?, Next::Deadline(*system))));
        // The first of those that are equal.
        coming
            .into_iter()
            .chain(arrival)
            .chain(deadlines)
            .min_by_key(|(at, _)| *at)
    }

    fn take_coming(&mut self) {
        let Some(Reverse((_, _, system, coming))) = self.coming.pop() else {
            return;
        };
        match coming {
            Coming::Ready(vm) => self.ready(system, vm),
            Coming::Gone(vm) => self.gone(system, vm),
            Coming::Done(session) => self.done(system, session),
        }
    }

    fn arrive(&mut self, build: Build) {
        self.arrived += 1;
        self.progress = self.now;
        let Some(side) = self.sides.get_mut(&build.system) else {
            self.over += 1;
            return;
        };
        side.slots_of(build.client).held.push_back(build);
        self.freed.push_back((build.system, build.client));
    }

    /// Opens sessions for a client's builds as far as it has slots.
    fn fill_slots(&mut self, system: System, client: ClientId) {
        while let Some(side) = self.sides.get_mut(&system)
            && let Some((build, slot)) = side.slots_of(client).take()
        {
            self.last_session += 1;
            let session = SessionId(self.last_session);
            let claim = Claim {
                seat: Seat {
                    client: self.trace.client(client).to_owned(),
                    slot: slot.to_string(),
                },
                purpose: Purpose::Build,
                share: side.plan.policy.share,
            };
            let vm = None;
            side.sessions.insert(session, Session { build, slot, vm });
            self.tell(system, Event::SessionOpened(session, claim));
        }
    }

    fn ready(&mut self, system: System, id: VmId) {
        let vm = self
            .sides
            .get_mut(&system)
            .and_then(|side| side.vms.get_mut(&id));
        // It may have been given up meanwhile.
        if let Some(vm) = vm.filter(|vm| vm.is_booting) {
            vm.is_booting = false;
            self.tell(system, Event::VmReady(id));
        }
    }

    fn gone(&mut self, system: System, id: VmId) {
        let Some(side) = self.sides.get_mut(&system) else {
            return;
        };
        let Some(vm) = side.vms.remove(&id) else {
            return;
        };
        side.tally.vm_time += self
            .now
            .saturating_duration_since(vm.started.max(self.begin));
        let on_it = |(session, on): (&SessionId, &Session)| (on.vm == Some(id)).then_some(*session);
        let mut lost: Vec<SessionId> = side.sessions.iter().filter_map(on_it).collect();
        // Not in the order of a hash.
        lost.sort_unstable();
        side.tally.lost += lost.len() as u64;
        self.tell(system, Event::VmExited(id, Exit::Stopped));
        for session in lost {
            self.forget(system, session);
        }
    }

    fn done(&mut self, system: System, session: SessionId) {
        let side = self.sides.get(&system);
        // It may have lost its VM.
        if side.is_some_and(|side| side.sessions.contains_key(&session)) {
            self.tell(system, Event::SessionClosed(session, Outputs::Fetched));
            self.forget(system, session);
        }
    }

    /// A session is over, and its slot free.
    fn forget(&mut self, system: System, session: SessionId) {
        let Some(side) = self.sides.get_mut(&system) else {
            return;
        };
        if let Some(Session { build, slot, .. }) = side.sessions.remove(&session) {
            self.over += 1;
            self.progress = self.now;
            side.slots_of(build.client).free.push(slot);
            self.freed.push_back((system, build.client));
        }
    }

    /// Lets a pool decide and does what it says.
    fn tell(&mut self, system: System, event: Event) {
        let time = self.time();
        let Some(side) = self.sides.get_mut(&system) else {
            return;
        };
        side.look_ahead(self.now, time);
        if matches!(event, Event::SessionOpened(..)) {
            side.arrived();
        }
        for action in side.pool.handle(self.now, event) {
            self.perform(system, &action);
        }
    }

    /// The time of day, by the trace's clock, in seconds.
    fn time(&self) -> u64 {
        let first = WEEK + self.trace.begin();
        let since = self.now.saturating_duration_since(self.begin);
        let before = self.begin.saturating_duration_since(self.now);
        (first + since).saturating_sub(before).as_secs()
    }

    fn perform(&mut self, system: System, action: &Action) {
        let Some(side) = self.sides.get_mut(&system) else {
            return;
        };
        let times = side.plan.times;
        match *action {
            Action::Boot(vm, _) => {
                let (started, is_booting) = (self.now, true);
                side.vms.insert(
                    vm,
                    Vm {
                        started,
                        is_booting,
                    },
                );
                side.tally.starts += 1;
                self.note(times.start, system, Coming::Ready(vm));
                self.note_peak(system);
            }
            Action::Assign { session, vm, .. } => {
                let Some(assigned) = side.sessions.get_mut(&session) else {
                    return;
                };
                assigned.vm = Some(vm);
                let (wanted, work) = (self.begin + assigned.build.at, assigned.build.work);
                side.tally
                    .waits
                    .push(self.now.saturating_duration_since(wanted));
                self.progress = self.now;
                self.note(work, system, Coming::Done(session));
            }
            Action::Reject { session, .. } => {
                side.tally.rejected += 1;
                self.forget(system, session);
            }
            Action::PowerDown(vm) => self.stop(system, vm, times.power_down),
            Action::Kill(vm) => self.stop(system, vm, times.kill),
        }
    }

    fn stop(&mut self, system: System, id: VmId, takes: Duration) {
        let vm = self
            .sides
            .get_mut(&system)
            .and_then(|side| side.vms.get_mut(&id));
        if let Some(vm) = vm {
            vm.is_booting = false;
            self.note(takes, system, Coming::Gone(id));
        }
    }

    fn note(&mut self, after: Duration, system: System, coming: Coming) {
        self.noted += 1;
        self.coming
            .push(Reverse((self.now + after, self.noted, system, coming)));
    }

    fn note_peak(&mut self, system: System) {
        let total = self.sides.values().map(|side| side.vms.len()).sum();
        self.peak = self.peak.max(total);
        if let Some(side) = self.sides.get_mut(&system) {
            side.tally.peak = side.tally.peak.max(side.vms.len());
        }
    }

    fn stuck(&self) -> Stuck {
        let first = self
            .sides
            .iter()
            .find(|(_, side)| !side.sessions.is_empty());
        Stuck {
            waiting: self.trace.builds().len() - self.over,
            system: first.map_or(System::Riscv64Linux, |(system, _)| *system),
        }
    }

    fn finish(self) -> Course {
        let (begin, end) = (self.begin, self.now);
        let counted = |(system, side): (System, Side)| {
            let since = |vm: &Vm| end.saturating_duration_since(vm.started.max(begin));
            let left: Duration = side.vms.values().map(since).sum();
            let mut tally = side.tally;
            tally.vm_time += left;
            (system, tally)
        };
        Course {
            systems: self.sides.into_iter().map(counted).collect(),
            peak: self.peak,
        }
    }
}
