//! A small model of what is around a pool, which knows by counting what may happen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::Step;
use crate::pool::claim::{Claim, Outputs, Purpose, Seat};
use crate::pool::policy::{Policy, Reuse};
use crate::pool::{Action, Down, Event, Exit, Pool, Retry, SessionId, VmId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Boots,
    Runs,
    Stops,
}

/// What the manager would know, kept by counting.
pub(super) struct World {
    pub(super) pool: Pool,
    pub(super) now: Instant,
    pub(super) vms: BTreeMap<VmId, Life>,
    /// Sessions that wait, in the order of their arrival.
    pub(super) waiting: VecDeque<SessionId>,
    running: BTreeMap<SessionId, VmId>,
    /// The VM of a session whose client has gone and whose slot is not free yet, as the pool sees it.
    leaving: Option<VmId>,
    /// When a VM got its latest session.
    used_since: BTreeMap<VmId, Instant>,
    claims: BTreeMap<SessionId, Claim>,
    /// Who has been on a VM.
    users: BTreeMap<VmId, BTreeSet<Seat>>,
    /// VMs that must be kept for a seat, and until when. Not those that the pool keeps because a session waits for them.
    leases: BTreeMap<Seat, (VmId, Instant)>,
    memory: Option<u64>,
    sessions: u64,
    shutting_down: bool,
    is_urgent: bool,
}

impl World {
    pub(super) fn new(policy: Policy, now: Instant) -> Self {
        let mut world = Self {
            pool: Pool::new(policy),
            now,
            vms: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            leaving: None,
            used_since: BTreeMap::new(),
            claims: BTreeMap::new(),
            users: BTreeMap::new(),
            leases: BTreeMap::new(),
            memory: None,
            sessions: 0,
            shutting_down: false,
            is_urgent: false,
        };
        // As the manager does: this starts the minimum.
        world.send(Event::DeadlineReached);
        world
    }

    pub(super) fn take(&mut self, step: Step) {
        match step {
            Step::Open {
                client,
                slot,
                purpose,
            } => {
                let (client, slot) = (client.to_string(), slot.to_string());
                let seat = Seat { client, slot };
                self.open(Claim { seat, purpose });
            }
            Step::Close(n, outputs) => self.close(n, outputs),
            Step::Memory(available) => self.memory = available,
            Step::Ready(n) => {
                if let Some(vm) = nth(self.vms.iter().filter(|vm| *vm.1 == Life::Boots), n) {
                    self.vms.insert(vm, Life::Runs);
                    self.send(Event::VmReady(vm));
                }
            }
            Step::Exit(n, retry) => {
                if let Some(vm) = nth(self.vms.iter(), n) {
                    self.exit(vm, retry);
                }
            }
            Step::Pass(duration) => self.pass(self.now + duration),
            Step::UntilDeadline => {
                if let Some(at) = self.pool.deadline() {
                    self.pass(at);
                }
            }
            Step::Up(count) => {
                (self.shutting_down, self.is_urgent) = (false, false);
                self.send(Event::Up(count));
            }
            Step::Down(how) => {
                self.shutting_down = true;
                self.is_urgent = how == Down::Now;
                self.send(Event::Down(how));
                self.is_urgent = false;
            }
        }
    }

    fn open(&mut self, claim: Claim) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        if claim.purpose == Purpose::Build {
            self.leases.remove(&claim.seat);
        }
        self.waiting.push_back(session);
        self.claims.insert(session, claim.clone());
        self.send(Event::SessionOpened(session, claim));
    }

    fn close(&mut self, n: usize, outputs: Outputs) {
        let known: Vec<SessionId> = self
            .waiting
            .iter()
            .chain(self.running.keys())
            .copied()
            .collect();
        if !known.is_empty() {
            self.end_session(known[n % known.len()], outputs);
        }
    }

    fn end_session(&mut self, session: SessionId, outputs: Outputs) {
        let seat = &self.claims[&session].seat;
        let known = self.waiting.iter().chain(self.running.keys());
        let is_last = !known
            .copied()
            .any(|other| other > session && self.claims[&other].seat == *seat);
        if let Some(vm) = self.running.get(&session)
            && outputs == Outputs::Unfetched
            && is_last
        {
            let until = self.now + self.pool.policy.lease;
            self.leases.insert(seat.clone(), (*vm, until));
        }
        self.waiting.retain(|waiting| *waiting != session);
        self.leaving = self.running.remove(&session);
        self.send(Event::SessionLeft(session, outputs));
        self.leaving = None;
        self.send(Event::SessionClosed(session, outputs));
    }

    pub(super) fn exit(&mut self, vm: VmId, retry: Retry) {
        let exit = match self.vms.remove(&vm) {
            Some(Life::Stops) => Exit::Stopped,
            _ => Exit::Failed {
                reason: "it broke".to_owned(),
                retry,
            },
        };
        let (lost, running): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|(_, at)| *at == vm);
        self.running = running;
        self.leases.retain(|_, (at, _)| *at != vm);
        self.send(Event::VmExited(vm, exit));
        // Say that every other session had not used its VM yet.
        for session in lost.into_keys().filter(|session| session.0 % 2 == 0) {
            let place = self.waiting.partition_point(|waiting| *waiting < session);
            self.waiting.insert(place, session);
            let claim = self.claims[&session].clone();
            self.send(Event::SessionReturned(session, claim));
        }
    }

    /// Lets time pass, with every deadline on the way kept.
    pub(super) fn pass(&mut self, until: Instant) {
        let mut deadlines = 0;
        while let Some(at) = self.pool.deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            let before = self.pool.deadline();
            let acted = self.send(Event::DeadlineReached);
            // 12. After a deadline there is progress: an action, or a later deadline, or none.
            assert!(
                acted > 0 || self.pool.deadline().is_none_or(|at| Some(at) > before),
                "busy loop at {before:?}"
            );
            deadlines += 1;
            if deadlines % 20 == 0 {
                self.memory = None;
            }
            assert!(deadlines < 10_000, "no end of deadlines");
        }
        self.now = self.now.max(until);
    }

    pub(super) fn send(&mut self, event: Event) -> usize {
        self.pool.set_available_memory(self.memory);
        let actions = self.pool.handle(self.now, event);
        let kinds = |boots: bool| {
            actions.iter().any(|action| match action {
                Action::Boot(_) => boots,
                Action::PowerDown(_) => !boots,
                _ => false,
            })
        };
        // 8. One step never both starts and stops, but for VMs that only their client may use.
        let is_exempt = self.pool.policy.reuse == Reuse::Client;
        assert!(is_exempt || !(kinds(true) && kinds(false)), "{actions:?}");
        for action in &actions {
            self.perform(action);
        }
        self.check();
        actions.len()
    }

    fn perform(&mut self, action: &Action) {
        match action {
            Action::Boot(vm) => self.boot(*vm),
            Action::Assign {
                session,
                vm,
                fetch_only,
            } => {
                // 17. Under `never`, who comes to a VM that was used may only fetch; nobody else is kept from building.
                let is_used = self.users.contains_key(vm);
                let may_build = self.pool.policy.reuse != Reuse::Never || !is_used;
                assert_eq!(*fetch_only, !may_build, "{session:?} on {vm:?}");
                self.assign(*session, *vm);
            }
            Action::Reject { session, .. } => {
                let before = self.waiting.len();
                self.waiting.retain(|waiting| waiting != session);
                assert_eq!(self.waiting.len() + 1, before, "{session:?} did not wait");
            }
            Action::PowerDown(vm) => {
                // 2. A VM with sessions is never powered down.
                assert!(
                    !self.running.values().any(|at| at == vm),
                    "{vm:?} has sessions"
                );
                assert_eq!(self.vms.insert(*vm, Life::Stops), Some(Life::Runs));
            }
            Action::Kill(vm) => {
                let life = self.vms.insert(*vm, Life::Stops);
                assert!(
                    life == Some(Life::Boots) || self.is_urgent || self.may_be_killed(*vm),
                    "killed {vm:?}: {life:?}"
                );
                self.running.retain(|_, at| at != vm);
            }
        }
        if let Action::PowerDown(vm) | Action::Kill(vm) = action {
            let now = self.now;
            let is_kept = |(at, until): &(VmId, Instant)| at == vm && *until > now;
            // 15. A VM is kept for its outputs.
            assert!(
                self.is_urgent || !self.leases.values().any(is_kept),
                "{vm:?} is leased"
            );
            self.leases.retain(|_, (at, _)| at != vm);
        }
    }

    fn boot(&mut self, vm: VmId) {
        assert!(!self.shutting_down, "started {vm:?} in a pool that is down");
        let growing = self.vms.iter().filter(|(vm, life)| match life {
            Life::Boots => true,
            Life::Runs => self.is_growing(**vm),
            Life::Stops => false,
        });
        let policy = &self.pool.policy;
        let starts = growing.count() as u64 + 1;
        let needed = policy.memory_floor_mib + policy.memory_estimate_mib * starts;
        // 16. Never a start without memory for it.
        assert!(
            self.memory.is_none_or(|memory| memory >= needed),
            "no memory for {vm:?}"
        );
        let was = self.vms.insert(vm, Life::Boots);
        assert_eq!(was, None, "{vm:?} was there already");
        // 1. Never more VMs than allowed.
        let most = self.pool.policy.max_vms.get().max(self.pool.floor);
        assert!(self.vms.len() <= most as usize, "{:?}", self.vms);
    }

    /// Whether a VM that runs has not taken its memory yet: nobody uses it, or its latest session came less than a minute ago.
    fn is_growing(&self, vm: VmId) -> bool {
        let is_busy = self.leaving == Some(vm) || self.running.values().any(|at| *at == vm);
        let used = self.used_since.get(&vm);
        let is_new = used.is_some_and(|used| self.now < *used + Duration::from_secs(60));
        !is_busy || is_new
    }

    fn assign(&mut self, session: SessionId, vm: VmId) {
        assert_eq!(self.vms.get(&vm), Some(&Life::Runs), "{vm:?} is not ready");
        let claim = self.claims[&session].clone();
        let comes_home = self.is_home(vm, &claim);
        let place = self.waiting.iter().position(|waiting| *waiting == session);
        let place = place.expect("it waits");
        // 4. No session is overtaken by one that could wait for the same VM.
        for earlier in self.waiting.range(..place).filter(|_| !comes_home) {
            assert!(
                self.has_home(*earlier) || !self.is_open_to(vm, &self.claims[earlier]),
                "{session:?} overtook {earlier:?} on {vm:?}"
            );
        }
        if let Some((home, until)) = self.leases.get(&claim.seat) {
            assert!(
                claim.purpose == Purpose::Build || *home == vm || *until <= self.now,
                "{session:?} should have come to {home:?}"
            );
        }
        // 13. Under `never`, no second build; 14. under `client`, no other client.
        assert!(
            comes_home || self.is_open_to(vm, &claim),
            "{session:?} on {vm:?}, which was {:?}'s",
            self.users.get(&vm)
        );
        self.leases.remove(&claim.seat);
        self.users.entry(vm).or_default().insert(claim.seat);
        self.waiting.remove(place);
        self.running.insert(session, vm);
        self.used_since.insert(vm, self.now);
    }

    /// Whether a VM takes any session of this client.
    fn is_open_to(&self, vm: VmId, claim: &Claim) -> bool {
        let users = self.users.get(&vm).into_iter().flatten();
        match self.pool.policy.reuse {
            Reuse::Always => true,
            Reuse::Client => users
                .into_iter()
                .all(|user| user.client == claim.seat.client),
            Reuse::Never => users.count() == 0,
        }
    }

    /// Whether a session comes to fetch what this VM may have.
    fn is_home(&self, vm: VmId, claim: &Claim) -> bool {
        let was_here = self
            .users
            .get(&vm)
            .is_some_and(|users| users.contains(&claim.seat));
        claim.purpose == Purpose::Fetch && was_here
    }

    /// Whether a session comes to fetch what a VM that runs may have.
    fn has_home(&self, session: SessionId) -> bool {
        let mut running = self.vms.iter().filter(|(_, life)| **life == Life::Runs);
        running.any(|(vm, _)| self.is_home(*vm, &self.claims[&session]))
    }

    /// Whether a VM that runs has done what it was for, or can make room.
    fn may_be_killed(&self, vm: VmId) -> bool {
        let is_used = self.users.contains_key(&vm);
        let is_idle = !self.running.values().any(|at| *at == vm);
        is_used && is_idle && self.pool.policy.reuse != Reuse::Always
    }

    fn check(&self) {
        let policy = &self.pool.policy;
        let slots = policy.slots_per_vm.get() as usize;
        // 3. Never more sessions on a VM than slots.
        for vm in self.vms.keys() {
            assert!(self.running.values().filter(|at| *at == vm).count() <= slots);
        }
        // 11. A second look at the same moment finds nothing new.
        let mut again = self.pool.clone();
        again.set_available_memory(self.memory);
        assert_eq!(again.handle(self.now, Event::DeadlineReached), []);
    }

    /// Lets the world run on its own until nothing is left to happen: boots succeed, what stops is gone, sessions end.
    pub(super) fn settle(&mut self) {
        self.memory = None;
        for _ in 0..10_000 {
            if let Some(vm) = nth(self.vms.iter().filter(|vm| *vm.1 == Life::Boots), 0) {
                self.vms.insert(vm, Life::Runs);
                self.send(Event::VmReady(vm));
            } else if let Some(vm) = nth(self.vms.iter().filter(|vm| *vm.1 == Life::Stops), 0) {
                self.exit(vm, Retry::Later);
            } else if let Some(session) = self.running.keys().next().copied() {
                self.end_session(session, Outputs::Fetched);
            } else if let Some(at) = self.pool.deadline() {
                self.pass(at);
            } else {
                return;
            }
        }
        panic!("the pool does not settle");
    }
}

fn nth<'a>(mut vms: impl Iterator<Item = (&'a VmId, &'a Life)> + Clone, n: usize) -> Option<VmId> {
    let count = vms.clone().count();
    if count == 0 {
        None
    } else {
        vms.nth(n % count).map(|(vm, _)| *vm)
    }
}
