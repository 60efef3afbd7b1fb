//! What always holds, whatever happens in whatever order: random events in virtual time against a small model.

mod growth;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::claim::{Outputs, Purpose};
use super::hold::Pressure;
use super::policy::{Forecasting, Policy, Reuse, Share};
use super::shape::Vcpus;
use super::{Down, Event, Mode, Retry, VmId};
use crate::nix::store_path::StorePath;
use world::World;

/// One random step of the world.
#[derive(Clone, Debug)]
enum Step {
    /// A session of a client comes by a slot.
    Open {
        client: u8,
        slot: u8,
        purpose: Purpose,
        share: Share,
    },
    /// The n-th of the sessions that wait or run ends.
    Close(usize, Outputs),
    /// The n-th of the sessions that run has built something, which may be known.
    Built(usize, Option<StorePath>),
    /// The n-th of the sessions that run has a build that has failed.
    Failed(usize),
    /// The n-th of the sessions that run has fetched something.
    Fetched(usize, StorePath),
    /// No further session of a client comes by a slot.
    SeatGone {
        client: u8,
        slot: u8,
    },
    /// The host has this much memory available.
    Memory(Option<u64>),
    /// What the kernel says of pressure, processors that are left, and whether another pool's sessions wait.
    Machine(Option<Pressure>, Option<u32>, bool),
    /// So many sessions are said to come.
    Forecast(Option<u32>),
    /// Another pool's sessions wait for room.
    MakeRoom,
    /// The host runs out of memory.
    MemoryIsOut,
    /// The n-th VM is taken out of service.
    Drain(usize),
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
        6 => open(purpose()),
        2 => open(pinned()),
        2 => (any::<usize>(), prop::option::of(path())).prop_map(|(n, path)| Step::Built(n, path)),
        1 => any::<usize>().prop_map(Step::Failed),
        2 => (any::<usize>(), path()).prop_map(|(n, path)| Step::Fetched(n, path)),
        1 => (0u8..2, 0u8..4).prop_map(|(client, slot)| Step::SeatGone { client, slot }),
        5 => (any::<usize>(), outputs()).prop_map(|(n, outputs)| Step::Close(n, outputs)),
        1 => prop_oneof![Just(None), (0u64..6000).prop_map(Some)].prop_map(Step::Memory),
        1 => machine(),
        1 => prop::option::of(0u32..6).prop_map(Step::Forecast),
        1 => prop_oneof![Just(Step::MakeRoom), Just(Step::MemoryIsOut)],
        1 => any::<usize>().prop_map(Step::Drain),
        5 => any::<usize>().prop_map(Step::Ready),
        2 => any::<usize>().prop_map(|n| Step::Exit(n, Retry::Later)),
        1 => any::<usize>().prop_map(|n| Step::Exit(n, Retry::Pointless)),
        3 => (0u64..2000).prop_map(|seconds| Step::Pass(Duration::from_secs(seconds))),
        4 => Just(Step::UntilDeadline),
        1 => (0u32..6).prop_map(Step::Up),
        1 => prop_oneof![Just(Step::Down(Down::Drain)), Just(Step::Down(Down::Now))],
    ]
}

fn machine() -> impl Strategy<Value = Step> {
    let pressure = prop_oneof![Just(Pressure::Memory), Just(Pressure::Cpu)];
    let vcpus = prop::option::of(0u32..6);
    (prop::option::of(pressure), vcpus, any::<bool>())
        .prop_map(|(pressure, vcpus, others)| Step::Machine(pressure, vcpus, others))
}

/// The sessions of a seat have one key, and so are of one kind; those of a client need not be.
fn open(purpose: impl Strategy<Value = Purpose>) -> impl Strategy<Value = Step> {
    (0u8..2, 0u8..4, purpose).prop_map(|(client, slot, purpose)| Step::Open {
        client,
        slot,
        purpose,
        share: if slot < 2 { Share::Host } else { Share::None },
    })
}

/// A session that names a VM, which may be there or not.
fn pinned() -> impl Strategy<Value = Purpose> {
    (1u32..8).prop_map(|vm| Purpose::Pinned(VmId(vm)))
}

fn path() -> impl Strategy<Value = StorePath> {
    (0u8..3).prop_map(|n| {
        let text = format!("/nix/store/{}-output-{n}", "0".repeat(32));
        StorePath::parse(text.as_bytes()).unwrap()
    })
}

fn share() -> impl Strategy<Value = Share> {
    prop_oneof![3 => Just(Share::Host), 2 => Just(Share::None)]
}

fn purpose() -> impl Strategy<Value = Purpose> {
    prop_oneof![2 => Just(Purpose::Build), 1 => prop::option::of(path()).prop_map(Purpose::Fetch)]
}

fn outputs() -> impl Strategy<Value = Outputs> {
    prop_oneof![Just(Outputs::Fetched), Just(Outputs::Unfetched)]
}

fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "the start of virtual time")]
    Instant::now()
}

fn policy() -> impl Strategy<Value = Policy> {
    let reuse = prop_oneof![Just(Reuse::Never), Just(Reuse::Client), Just(Reuse::Always)];
    let keep_failed = prop::option::weighted(0.3, (1u64..1000).prop_map(Duration::from_secs));
    let limits = (0u32..3, 1u32..5, 1u32..4, 1usize..20);
    let (kinds, warm) = ((reuse, share(), vcpus()), (0u32..3, 0u32..4, any::<bool>()));
    (
        limits,
        kinds,
        warm,
        any::<bool>(),
        (times(), keep_failed),
        priorities(),
    )
        .prop_map(
            |(
                (min_vms, max_vms, slots, max_queued),
                kinds,
                warm,
                is_configured,
                (times, keep_failed),
                priorities,
            )| {
                let ((reuse, share, vcpus), (warm, warm_max, is_on)) = (kinds, warm);
                let slots = if reuse == Reuse::Never { 1 } else { slots };
                let up_limit = if is_configured { max_vms } else { 8 };
                Policy {
                    min_vms: min_vms.min(max_vms),
                    max_vms: NonZeroU32::new(max_vms).unwrap(),
                    up_limit: NonZeroU32::new(up_limit).unwrap(),
                    slots_per_vm: NonZeroU32::new(slots).unwrap(),
                    reuse,
                    share,
                    vcpus,
                    warm: warm.min(max_vms),
                    warm_max: warm_max.max(warm).min(max_vms),
                    forecast: if is_on {
                        Forecasting::On
                    } else {
                        Forecasting::Observe
                    },
                    max_queued,
                    keep_failed,
                    scale_down_delay: times.0,
                    wait_timeout: times.1,
                    priorities,
                    ..Policy::default()
                }
            },
        )
}

/// How long as many VMs stay as were wanted, and how long a session may wait.
fn times() -> impl Strategy<Value = (Duration, Option<Duration>)> {
    let delay = (0u64..1000).prop_map(Duration::from_secs);
    let wait = (1u64..1000).prop_map(Duration::from_secs);
    (delay, prop::option::weighted(0.2, wait))
}

/// Those of the clients that there are, for most pools none.
fn priorities() -> impl Strategy<Value = BTreeMap<String, i32>> {
    let some = (0u8..2, -1i32..2).prop_map(|(client, priority)| {
        let client = world::seat(client, 0).client;
        BTreeMap::from([(client, priority)])
    });
    prop_oneof![2 => Just(BTreeMap::new()), 1 => some]
}

fn vcpus() -> impl Strategy<Value = Vcpus> {
    let count = |count| NonZeroU32::new(count).unwrap();
    prop_oneof![
        (1u32..3).prop_map(move |fixed| Vcpus::fixed(count(fixed))),
        (1u32..5, 1u32..5).prop_map(move |(most, host)| Vcpus::following(count(most), host)),
    ]
}

const OPEN: Step = Step::Open {
    client: 0,
    slot: 0,
    purpose: Purpose::Build,
    share: Share::Host,
};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_pool_keeps_its_limits_and_its_order(policy in policy(), steps in prop::collection::vec(step(), 1..200)) {
        let mut world = World::new(policy, start());
        for step in steps {
            world.take(step);
        }
    }

    /// Properties 5, 6 and 7: everybody gets an answer, and what is left in the end is exactly what was asked for.
    #[test]
    fn a_pool_comes_to_rest(policy in policy(), steps in prop::collection::vec(step(), 1..100)) {
        let mut world = World::new(policy, start());
        for step in steps {
            world.take(step);
        }
        world.settle();
        prop_assert!(world.waiting.is_empty(), "{:?} wait for ever", world.waiting);
        let expected = match world.pool.mode {
            Mode::Open => world.pool.kept().max(world.pool.warm_wanted()),
            Mode::Draining => 0,
        };
        prop_assert_eq!(world.vms.len(), expected as usize);
        let own = world.pool.policy.share;
        prop_assert!(world.vms.keys().all(|vm| world.shares[vm] == own), "kept for nobody");
        let before: BTreeSet<VmId> = world.vms.keys().copied().collect();
        world.pass(world.now + Duration::from_secs(24 * 3600));
        prop_assert_eq!(world.vms.keys().copied().collect::<BTreeSet<_>>(), before, "an idle VM was cycled");
    }

    /// Property 19: who waits for a VM of either kind gets one where there is room for one only, and no VM is started for
    /// nothing meanwhile.
    #[test]
    fn both_kinds_are_served_where_there_is_room_for_one_vm(policy in policy(), sessions in prop::collection::vec(open(purpose()), 1..15)) {
        let one = Policy { max_vms: NonZeroU32::MIN, up_limit: NonZeroU32::MIN, min_vms: policy.min_vms.min(1), warm: policy.warm.min(1), warm_max: policy.warm_max.min(1), max_queued: 20, wait_timeout: None, ..policy };
        let mut world = World::new(one, start());
        let opened = sessions.len();
        for session in sessions {
            world.take(session);
        }
        world.settle();
        prop_assert_eq!(world.served.len(), opened);
        // One for each at the most, and one that is kept before and after.
        prop_assert!(world.boots <= opened + 2, "{} starts for {} sessions", world.boots, opened);
    }

    /// Property 10: starts under permanent failure are bounded, however many sessions come.
    #[test]
    fn starts_that_always_fail_are_bounded(sessions in 1usize..50) {
        let mut world = World::new(Policy { max_vms: NonZeroU32::new(4).unwrap(), min_vms: 1, ..Policy::default() }, start());
        let end = world.now + Duration::from_secs(3600);
        let mut starts = 0;
        for _ in 0..sessions {
            world.take(OPEN);
        }
        while world.now < end {
            while let Some(vm) = world.vms.keys().next().copied() {
                starts += 1;
                world.exit(vm, Retry::Later);
            }
            world.take(OPEN);
            let next = world.pool.deadline().unwrap_or(end);
            world.now = next;
            world.send(Event::DeadlineReached);
        }
        // The sum of the pauses 10, 15, 22 … 300 reaches an hour with the 19th; the first start may be four at once.
        prop_assert!(starts <= 4 + 20, "{starts} starts in an hour");
    }
}
