//! A small model of what is around a pool, which knows by counting what may happen. `judge` holds the pool to it.

mod judge;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::Step;
use crate::nix::store_path::StorePath;
use crate::pool::budget::Machine;
use crate::pool::claim::{Claim, Outputs, Purpose, Seat};
use crate::pool::policy::{Policy, Share};
use crate::pool::{Down, Event, Exit, Pool, Retry, SessionId, VmId};

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
    /// The client that has named a VM.
    pinned: BTreeMap<VmId, String>,
    /// What was built on which VM for which client.
    built: BTreeSet<(VmId, String, StorePath)>,
    /// VMs and seats that something was told of, so that they may be kept for a shorter time than otherwise.
    told: (BTreeSet<VmId>, BTreeSet<Seat>),
    /// VMs that must be kept for a seat, and until when. Not those that the pool keeps because a session waits for them.
    leases: BTreeMap<Seat, (VmId, Instant)>,
    /// The latest session of each seat that has ended on a VM with something left to fetch.
    left: BTreeMap<Seat, SessionId>,
    /// What each VM that ever was sees of the machine's store.
    pub(super) shares: BTreeMap<VmId, Share>,
    pub(super) vcpus: BTreeMap<VmId, u32>,
    /// Sessions that were ever given a VM.
    pub(super) served: BTreeSet<SessionId>,
    /// VMs that were ever started.
    pub(super) boots: usize,
    /// How often a client was passed over by another one since it was served, with a VM of a kind.
    passed: BTreeMap<(String, String, Share), u32>,
    /// How many turns a client has back, for VMs of a kind.
    back: BTreeMap<(String, Share), u32>,
    /// What the machine has; its memory is what the host has available.
    machine: Machine,
    /// VMs that take no further sessions.
    drained: BTreeSet<VmId>,
    /// Whether another pool's sessions want an idle VM to go.
    makes_room: bool,
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
            pinned: BTreeMap::new(),
            built: BTreeSet::new(),
            told: (BTreeSet::new(), BTreeSet::new()),
            leases: BTreeMap::new(),
            left: BTreeMap::new(),
            shares: BTreeMap::new(),
            vcpus: BTreeMap::new(),
            served: BTreeSet::new(),
            boots: 0,
            passed: BTreeMap::new(),
            back: BTreeMap::new(),
            machine: Machine::default(),
            drained: BTreeSet::new(),
            makes_room: false,
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
                share,
            } => {
                let claim = Claim {
                    seat: seat(client, slot),
                    purpose,
                    share,
                };
                self.open(claim);
            }
            Step::Built(n, path) => self.build(n, path),
            Step::Fetched(n, path) => {
                if let Some((session, _)) = self.nth_running(n) {
                    self.send(Event::Fetched(session, path));
                }
            }
            Step::SeatGone { client, slot } => {
                let seat = seat(client, slot);
                self.leases.remove(&seat);
                self.told.1.insert(seat.clone());
                self.send(Event::SeatGone(seat));
            }
            Step::Close(n, outputs) => self.close(n, outputs),
            Step::Memory(available) => self.machine.available_mib = available,
            Step::Machine(pressure, vcpus, others_wait) => {
                let available_mib = self.machine.available_mib;
                self.machine = Machine {
                    available_mib,
                    vcpus,
                    pressure,
                    others_wait,
                    ..Machine::default()
                };
            }
            Step::Forecast(sessions) => {
                self.pool.set_forecast(sessions);
                self.send(Event::DeadlineReached);
            }
            Step::MakeRoom => {
                self.makes_room = true;
                self.send(Event::MakeRoom);
                self.makes_room = false;
            }
            Step::Drain(n) => {
                if let Some(vm) = nth(self.vms.iter(), n) {
                    self.drained.insert(vm);
                    self.send(Event::DrainVm(vm));
                }
            }
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
        let is_taken = self.waiting.len() < self.pool.policy.max_queued && !self.shutting_down;
        let named = match claim.purpose {
            Purpose::Pinned(vm) => {
                let is_served = is_taken && !self.drained.contains(&vm);
                Some((vm, is_served && self.may_be_named(vm, &claim)))
            }
            _ => None,
        };
        if let Some((vm, true)) = named {
            self.pinned.insert(vm, claim.seat.client.clone());
        }
        self.waiting.push_back(session);
        self.claims.insert(session, claim.clone());
        self.send(Event::SessionOpened(session, claim));
        if let Some((vm, may_have_it)) = named {
            // 20. Who names a VM gets it or waits for it, or is told at once why not.
            let is_in = self.waiting.contains(&session) || self.running.contains_key(&session);
            assert_eq!(is_in, may_have_it, "{session:?} has named {vm:?}");
        }
    }

    /// Whether a VM is there, shows what the claim may see, and was nobody else's.
    fn may_be_named(&self, vm: VmId, claim: &Claim) -> bool {
        let is_there = matches!(self.vms.get(&vm), Some(Life::Boots | Life::Runs));
        let users = self.users.get(&vm).into_iter().flatten();
        let mut clients = users.map(|seat| &seat.client).chain(self.pinned.get(&vm));
        is_there
            && self.shares[&vm] == claim.share
            && clients.all(|client| *client == claim.seat.client)
    }

    fn build(&mut self, n: usize, path: Option<StorePath>) {
        let Some((session, vm)) = self.nth_running(n) else {
            return;
        };
        let seat = self.claims[&session].seat.clone();
        if let Some(path) = &path {
            self.built.insert((vm, seat.client.clone(), path.clone()));
        }
        self.told.0.insert(vm);
        self.leases.remove(&seat);
        self.told.1.insert(seat);
        self.send(Event::Built(session, path.into_iter().collect()));
    }

    fn nth_running(&self, n: usize) -> Option<(SessionId, VmId)> {
        let count = self.running.len();
        let (session, vm) = self.running.iter().nth(n.checked_rem(count)?)?;
        Some((*session, *vm))
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
        let left = self.left.get(seat).into_iter();
        let is_last = !known
            .filter(|other| self.claims[*other].seat == *seat)
            .chain(left)
            .any(|other| *other > session);
        let is_told = |vm: &VmId| self.told.0.contains(vm) || self.told.1.contains(seat);
        let is_pinned = matches!(self.claims[&session].purpose, Purpose::Pinned(_));
        if let Some(vm) = self.running.get(&session)
            && outputs == Outputs::Unfetched
            && is_last
            && !is_pinned
            && !is_told(vm)
        {
            let until = self.now + self.pool.policy.lease;
            self.leases.insert(seat.clone(), (*vm, until));
        }
        if outputs == Outputs::Unfetched && self.running.contains_key(&session) {
            let left = self.left.entry(seat.clone()).or_insert(session);
            *left = session.max(*left);
        }
        self.waiting.retain(|waiting| *waiting != session);
        self.leaving = self.running.remove(&session);
        if self.leaving.is_some() {
            self.send(Event::SessionLeft(session, outputs));
        }
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
            self.passed.clear();
            let claim = self.claims[&session].clone();
            let back = (claim.seat.client.clone(), claim.share);
            *self.back.entry(back).or_default() += 1;
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
                self.machine = Machine::default();
            }
            assert!(deadlines < 10_000, "no end of deadlines");
        }
        self.now = self.now.max(until);
    }

    pub(super) fn send(&mut self, event: Event) -> usize {
        self.pool.set_machine(self.machine);
        let actions = self.pool.handle(self.now, event);
        self.check_together(&actions);
        for action in &actions {
            self.perform(action);
        }
        self.forget_who_waits_no_longer();
        self.check();
        actions.len()
    }

    /// Who has gone and comes anew is passed over from then on.
    fn forget_who_waits_no_longer(&mut self) {
        if self.passed.is_empty() {
            return;
        }
        let waiting = self.waiting.iter().map(|session| &self.claims[session]);
        let waiting: BTreeSet<(&str, Share)> = waiting
            .map(|claim| (claim.seat.client.as_str(), claim.share))
            .collect();
        self.passed
            .retain(|(loser, _, share), _| waiting.contains(&(loser, *share)));
    }

    /// Lets the world run on its own until nothing is left to happen: boots succeed, what stops is gone, sessions end.
    pub(super) fn settle(&mut self) {
        self.machine = Machine::default();
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

pub(super) fn seat(client: u8, slot: u8) -> Seat {
    let (client, slot) = (client.to_string(), slot.to_string());
    Seat { client, slot }
}

fn nth<'a>(mut vms: impl Iterator<Item = (&'a VmId, &'a Life)> + Clone, n: usize) -> Option<VmId> {
    let count = vms.clone().count();
    if count == 0 {
        None
    } else {
        vms.nth(n % count).map(|(vm, _)| *vm)
    }
}
