//! A small model of what is around a pool, which knows by counting what may happen. `steps` is what happens in it,
//! `judge` holds the pool to it.

mod judge;
mod steps;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use crate::nix::store_path::StorePath;
use crate::pool::budget::Machine;
use crate::pool::claim::{Claim, Outputs, Purpose, Seat};
use crate::pool::policy::{Policy, Share};
use crate::pool::{Event, Exit, Pool, Retry, SessionId, VmId};

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
    /// VMs that are kept for a build that has failed, and until when. They take no further sessions, and nor do they afterwards.
    kept: BTreeMap<VmId, Instant>,
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
            kept: BTreeMap::new(),
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
        let life = self.vms.remove(&vm);
        let is_theirs = matches!(life, Some(Life::Runs))
            && (self.users.contains_key(&vm) || self.pinned.contains_key(&vm));
        let exit = match life {
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
        let failures = self.pool.backoff.failures();
        self.send(Event::VmExited(vm, exit));
        if is_theirs {
            // 27. Who has had a VM cannot hold up the next start by its end.
            assert_eq!(self.pool.backoff.failures(), failures);
        }
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
