//! How a pool's size follows what is wanted of it.

use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;

use super::{policy, start};
use crate::pool::claim::{Claim, Outputs, Purpose, Seat};
use crate::pool::policy::{Forecasting, Policy, Reuse, Share};
use crate::pool::{Action, Event, Pool, SessionId, VmId};

/// The n-th session, of one client and in a slot of its own.
fn open(n: u64) -> Event {
    let claim = Claim {
        seat: Seat {
            client: "anna".to_owned(),
            slot: n.to_string(),
        },
        purpose: Purpose::Build,
        share: Share::Host,
    };
    Event::SessionOpened(SessionId(n), claim)
}

/// How many VMs a pool has started for so many sessions that came one after the other.
fn started(policy: &Policy, forecast: Option<u32>, sessions: u64) -> usize {
    let mut pool = Pool::new(policy.clone());
    pool.set_forecast(forecast);
    let now = start();
    let mut actions = pool.handle(now, Event::DeadlineReached);
    for n in 1..=sessions {
        actions.extend(pool.handle(now, open(n)));
    }
    let is_boot = |action: &&Action| matches!(action, Action::Boot(..));
    actions.iter().filter(is_boot).count()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Properties 27 and 28: what is wanted starts in the step in which it is wanted, and no more than that; and more sessions
    /// never lead to fewer VMs.
    #[test]
    fn a_pool_grows_at_once_with_what_waits(policy in policy(), sessions in 0u64..20) {
        let policy = Policy { share: Share::Host, max_queued: 100, ..policy };
        let slots = u64::from(policy.slots_per_vm.get());
        let most = u64::from(policy.max_vms.get());
        let needed = sessions.div_ceil(slots) + u64::from(policy.warm);
        let expected = needed.max(u64::from(policy.min_vms)).min(most);
        let few = started(&policy, None, sessions);
        prop_assert_eq!(few as u64, expected);
        prop_assert!(started(&policy, None, sessions + 1) >= few);
    }

    /// Property 31: what a forecast asks for is what `warm` would have asked for, up to its limit.
    #[test]
    fn a_forecast_is_more_warm_vms_and_never_fewer(policy in policy(), forecast in 0u32..8, sessions in 0u64..20) {
        let policy = Policy { share: Share::Host, max_queued: 100, ..policy };
        let warm = policy.warm.max(forecast.min(policy.warm_max));
        let on = Policy { forecast: Forecasting::On, ..policy.clone() };
        let as_warm = Policy { warm, forecast: Forecasting::Off, ..policy.clone() };
        let with = started(&on, Some(forecast), sessions);
        prop_assert_eq!(with, started(&as_warm, None, sessions));
        prop_assert!(with >= started(&on, None, sessions));
        prop_assert!(with <= policy.max_vms.get() as usize);
        let observed = Policy { forecast: Forecasting::Observe, ..policy };
        prop_assert_eq!(started(&observed, Some(forecast), sessions), started(&observed, None, sessions));
    }

    /// Property 29: whatever comes and goes in waves of less than ten minutes, no VM stops between two of them.
    #[test]
    fn a_pool_does_not_follow_short_waves(half in 1u64..300, size in 1u32..6, idle in 1u64..60, waves in 2u32..12) {
        let policy = Policy {
            max_vms: NonZeroU32::new(size).unwrap(),
            reuse: Reuse::Always,
            idle_timeout: Duration::from_secs(idle),
            ..Policy::default()
        };
        let mut pool = Pool::new(policy);
        let (mut now, mut session, half) = (start(), 0, Duration::from_secs(half));
        for wave in 0..waves {
            let first = session + 1;
            for vm in 1..=size {
                session += 1;
                let boots = pool.handle(now, open(session)).len();
                prop_assert_eq!(boots, 1, "an assignment, or a start in wave {}", wave);
                pool.handle(now, Event::VmReady(VmId(vm)));
            }
            now += half;
            for id in first..=session {
                pool.handle(now, Event::SessionClosed(SessionId(id), Outputs::Fetched));
            }
            let next = now + half;
            while let Some(at) = pool.deadline().filter(|at| *at < next) {
                prop_assert_eq!(pool.handle(at, Event::DeadlineReached), []);
            }
            now = next;
        }
        prop_assert_eq!(pool.given().0, size);
    }
}
