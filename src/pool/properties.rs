//! What always holds, whatever happens in whatever order: random events in virtual time against a small model.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::policy::Policy;
use super::{Action, Down, Event, Exit, Mode, Pool, Retry, SessionId, VmId};

/// One random step of the world.
#[derive(Clone, Copy, Debug)]
enum Step {
    Open,
    /// The n-th of the sessions that wait or run ends.
    Close(usize),
    /// The n-th VM that boots gets ready.
    Ready(usize),
    /// The n-th VM that boots, runs, or stops ends.
    Exit(usize, Retry),
    Pass(Duration),
    UntilDeadline,
    Up(u32),
    Down(Down),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Open),
        5 => any::<usize>().prop_map(Step::Close),
        5 => any::<usize>().prop_map(Step::Ready),
        2 => any::<usize>().prop_map(|n| Step::Exit(n, Retry::Later)),
        1 => any::<usize>().prop_map(|n| Step::Exit(n, Retry::Pointless)),
        3 => (0u64..2000).prop_map(|seconds| Step::Pass(Duration::from_secs(seconds))),
        4 => Just(Step::UntilDeadline),
        1 => (0u32..6).prop_map(Step::Up),
        1 => prop_oneof![Just(Step::Down(Down::Drain)), Just(Step::Down(Down::Now))],
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Boots,
    Runs,
    Stops,
}

/// What the manager would know, kept by counting.
struct World {
    pool: Pool,
    now: Instant,
    vms: BTreeMap<VmId, Life>,
    /// Sessions that wait, in the order of their arrival.
    waiting: VecDeque<SessionId>,
    running: BTreeMap<SessionId, VmId>,
    sessions: u64,
    shutting_down: bool,
}

impl World {
    fn new(policy: Policy) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the start of virtual time")]
        let now = Instant::now();
        let mut world = Self {
            pool: Pool::new(policy),
            now,
            vms: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            sessions: 0,
            shutting_down: false,
        };
        // As the manager does: this starts the minimum.
        world.send(Event::DeadlineReached);
        world
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Open => {
                self.sessions += 1;
                let session = SessionId(self.sessions);
                self.waiting.push_back(session);
                self.send(Event::SessionOpened(session));
            }
            Step::Close(n) => self.close(n),
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
                self.shutting_down = false;
                self.send(Event::Up(count));
            }
            Step::Down(how) => {
                self.shutting_down = true;
                self.send(Event::Down(how));
            }
        }
    }

    fn close(&mut self, n: usize) {
        let known: Vec<SessionId> = self
            .waiting
            .iter()
            .chain(self.running.keys())
            .copied()
            .collect();
        let Some(session) = (!known.is_empty()).then(|| known[n % known.len()]) else {
            return;
        };
        self.waiting.retain(|waiting| *waiting != session);
        self.running.remove(&session);
        self.send(Event::SessionClosed(session));
    }

    fn exit(&mut self, vm: VmId, retry: Retry) {
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
        self.send(Event::VmExited(vm, exit));
        // Say that every other session had not used its VM yet.
        for session in lost.into_keys().filter(|session| session.0 % 2 == 0) {
            let place = self.waiting.partition_point(|waiting| *waiting < session);
            self.waiting.insert(place, session);
            self.send(Event::SessionReturned(session));
        }
    }

    /// Lets time pass, with every deadline on the way kept.
    fn pass(&mut self, until: Instant) {
        let mut deadlines = 0;
        while let Some(at) = self.pool.deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            let before = self.pool.deadline();
            let acted = self.send(Event::DeadlineReached);
            // 12. After a deadline there is progress: an action, or a later deadline.
            assert!(
                acted > 0 || self.pool.deadline() > before,
                "busy loop at {before:?}"
            );
            deadlines += 1;
            assert!(deadlines < 10_000, "no end of deadlines");
        }
        self.now = self.now.max(until);
    }

    fn send(&mut self, event: Event) -> usize {
        let actions = self.pool.handle(self.now, event);
        let kinds = |boots: bool| {
            actions.iter().any(|action| match action {
                Action::Boot(_) => boots,
                Action::PowerDown(_) => !boots,
                _ => false,
            })
        };
        // 8. One step never both starts and stops.
        assert!(!(kinds(true) && kinds(false)), "{actions:?}");
        for action in &actions {
            self.perform(action);
        }
        self.check();
        actions.len()
    }

    fn perform(&mut self, action: &Action) {
        match action {
            Action::Boot(vm) => {
                assert!(!self.shutting_down, "started {vm:?} in a pool that is down");
                assert_eq!(
                    self.vms.insert(*vm, Life::Boots),
                    None,
                    "{vm:?} was there already"
                );
            }
            Action::Assign { session, vm } => {
                // 4. No session is overtaken.
                assert_eq!(self.waiting.pop_front(), Some(*session), "overtaken");
                assert_eq!(self.vms.get(vm), Some(&Life::Runs), "{vm:?} is not ready");
                self.running.insert(*session, *vm);
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
                    life == Some(Life::Boots) || self.shutting_down,
                    "killed {vm:?}: {life:?}"
                );
                self.running.retain(|_, at| at != vm);
            }
        }
    }

    fn check(&self) {
        let policy = &self.pool.policy;
        let slots = policy.slots_per_vm.get() as usize;
        // 1. Never more VMs than allowed.
        assert!(
            self.vms.len() <= policy.max_vms.get() as usize,
            "{:?}",
            self.vms
        );
        // 3. Never more sessions on a VM than slots.
        for vm in self.vms.keys() {
            assert!(self.running.values().filter(|at| *at == vm).count() <= slots);
        }
        // 11. A second look at the same moment finds nothing new.
        let mut again = self.pool.clone();
        assert_eq!(again.handle(self.now, Event::DeadlineReached), []);
    }

    /// Lets the world run on its own until nothing is left to happen: boots succeed, what stops is gone, sessions end.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            if let Some(vm) = nth(self.vms.iter().filter(|vm| *vm.1 == Life::Boots), 0) {
                self.vms.insert(vm, Life::Runs);
                self.send(Event::VmReady(vm));
            } else if let Some(vm) = nth(self.vms.iter().filter(|vm| *vm.1 == Life::Stops), 0) {
                self.exit(vm, Retry::Later);
            } else if let Some(session) = self.running.keys().next().copied() {
                self.running.remove(&session);
                self.send(Event::SessionClosed(session));
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

fn policy() -> impl Strategy<Value = Policy> {
    (0u32..3, 1u32..5, 1u32..4, 1usize..20).prop_map(|(min_vms, max_vms, slots, max_queued)| {
        Policy {
            min_vms,
            max_vms: NonZeroU32::new(max_vms).unwrap(),
            slots_per_vm: NonZeroU32::new(slots).unwrap(),
            max_queued,
            ..Policy::default()
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_pool_keeps_its_limits_and_its_order(policy in policy(), steps in prop::collection::vec(step(), 1..200)) {
        let mut world = World::new(policy);
        for step in steps {
            world.take(step);
        }
    }

    /// Properties 5, 6 and 7: everybody gets an answer, and what is left in the end is exactly what was asked for.
    #[test]
    fn a_pool_comes_to_rest(policy in policy(), steps in prop::collection::vec(step(), 1..100)) {
        let mut world = World::new(policy);
        for step in steps {
            world.take(step);
        }
        world.settle();
        prop_assert!(world.waiting.is_empty(), "{:?} wait for ever", world.waiting);
        let expected = match world.pool.mode {
            Mode::Open => world.pool.floor.max(world.pool.policy.min_vms).min(world.pool.policy.max_vms.get()),
            Mode::Draining => 0,
        };
        prop_assert_eq!(world.vms.len(), expected as usize);
        let before: BTreeSet<VmId> = world.vms.keys().copied().collect();
        world.pass(world.now + Duration::from_secs(24 * 3600));
        prop_assert_eq!(world.vms.keys().copied().collect::<BTreeSet<_>>(), before, "an idle VM was cycled");
    }

    /// Property 10: starts under permanent failure are bounded, however many sessions come.
    #[test]
    fn starts_that_always_fail_are_bounded(sessions in 1usize..50) {
        let mut world = World::new(Policy { max_vms: NonZeroU32::new(4).unwrap(), min_vms: 1, ..Policy::default() });
        let end = world.now + Duration::from_secs(3600);
        let mut starts = 0;
        for _ in 0..sessions {
            world.take(Step::Open);
        }
        while world.now < end {
            while let Some(vm) = world.vms.keys().next().copied() {
                starts += 1;
                world.exit(vm, Retry::Later);
            }
            world.take(Step::Open);
            let next = world.pool.deadline().unwrap_or(end);
            world.now = next;
            world.send(Event::DeadlineReached);
        }
        // The sum of the pauses 10, 15, 22 … 300 reaches an hour with the 19th; the first start may be four at once.
        prop_assert!(starts <= 4 + 20, "{starts} starts in an hour");
    }
}
