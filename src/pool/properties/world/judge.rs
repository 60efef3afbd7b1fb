//! What the pool says, done as the manager would and judged: what may never happen panics.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{Life, World};
use crate::pool::claim::{Claim, Purpose, Seat};
use crate::pool::hold::Pressure;
use crate::pool::policy::{Forecasting, Reuse, Share};
use crate::pool::shape::Shape;
use crate::pool::{Action, Event, Pool, SessionId, VmId};

impl World {
    /// Looks at all actions of one step together.
    pub(super) fn check_together(&self, actions: &[Action]) {
        let boots = actions.iter().filter_map(|action| match action {
            Action::Boot(_, shape) => Some(shape.share),
            _ => None,
        });
        let stops = actions.iter().filter_map(|action| match action {
            Action::PowerDown(vm) if !self.is_apart(*vm) => Some(self.shares[vm]),
            _ => None,
        });
        let (boots, stops): (BTreeSet<Share>, BTreeSet<Share>) = (boots.collect(), stops.collect());
        // 8. One step never both starts and stops VMs of a kind, but for VMs that only their client may use, or that take no
        //    further sessions.
        let is_exempt = self.pool.policy.reuse == Reuse::Client;
        assert!(is_exempt || boots.is_disjoint(&stops), "{actions:?}");
    }

    /// Whether no newcomer could have used a VM.
    fn is_apart(&self, vm: VmId) -> bool {
        self.pinned.contains_key(&vm) || self.drained.contains(&vm) || self.kept.contains_key(&vm)
    }

    pub(super) fn perform(&mut self, action: &Action) {
        match action {
            Action::Boot(vm, shape) => self.boot(*vm, *shape),
            Action::Assign {
                session,
                vm,
                fetch_only,
            } => {
                // 17. Under `never`, who comes to a VM that was used may only fetch; nobody else is kept from building.
                let is_used = self.users.contains_key(vm);
                let has_named_it = self.claims[session].purpose == Purpose::Pinned(*vm);
                let may_build = self.pool.policy.reuse != Reuse::Never || !is_used || has_named_it;
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
                    life == Some(Life::Boots)
                        || self.is_urgent
                        || (self.makes_room && !self.running.values().any(|at| at == vm))
                        || self.may_be_killed(*vm),
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
            // 33. So is one whose build has failed, for who wants to look at it.
            let is_kept = self.kept.get(vm).is_some_and(|until| *until > now);
            assert!(self.is_urgent || !is_kept, "{vm:?} is kept");
        }
    }

    fn boot(&mut self, vm: VmId, shape: Shape) {
        self.shares.insert(vm, shape.share);
        self.vcpus.insert(vm, shape.vcpus);
        self.boots += 1;
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
            self.machine
                .available_mib
                .is_none_or(|memory| memory >= needed),
            "no memory for {vm:?}"
        );
        // 25. Never a start beyond the budget, or while programs wait for memory, and under `MakeRoom` none for nobody.
        let given = self.vms.keys().map(|vm| self.vcpus[vm]);
        let taken = given.sum::<u32>() + shape.vcpus;
        assert!(
            self.machine.vcpus.is_none_or(|vcpus| vcpus >= taken),
            "no processor for {vm:?}"
        );
        assert_ne!(self.machine.pressure, Some(Pressure::Memory), "{vm:?}");
        assert!(
            !self.machine.others_wait || !self.waiting.is_empty(),
            "{vm:?} is for nobody, and others wait"
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
        // 26. What is taken out of service takes nobody but who comes back for outputs, or had named it before.
        let is_expected = self.claims[&session].purpose != Purpose::Build;
        assert!(!self.is_apart(vm) || is_expected, "{session:?} on {vm:?}");
        let claim = self.claims[&session].clone();
        // 18. No session ever gets a VM of the other kind.
        assert_eq!(self.shares[&vm], claim.share, "{session:?} on {vm:?}");
        self.served.insert(session);
        let comes_home = self.is_home(vm, &claim);
        let place = self.waiting.iter().position(|waiting| *waiting == session);
        let place = place.expect("it waits");
        // 4. No session is overtaken by one of its client's that could wait for the same VM, unless room may have been kept
        // there for that one's seat.
        let has_its_room = |users: &BTreeSet<Seat>| users.contains(&claim.seat);
        let has_its_room = comes_home
            || (matches!(claim.purpose, Purpose::Pinned(_))
                && self.users.get(&vm).is_some_and(has_its_room));
        let is_clients = |id: &&SessionId| {
            let other = &self.claims[*id];
            other.seat.client == claim.seat.client && other.share == claim.share
        };
        let earlier = self.waiting.range(..place).filter(is_clients);
        for earlier in earlier.filter(|_| !has_its_room) {
            let earlier_claim = &self.claims[earlier];
            let could_have_it = match earlier_claim.purpose {
                Purpose::Pinned(named) => named == vm,
                _ => !self.has_home(*earlier) && self.is_open_to(vm, earlier_claim),
            };
            assert!(!could_have_it, "{session:?} overtook {earlier:?} on {vm:?}");
        }
        // Whether who comes home had to wait for a turn is the pool's to know.
        let is_served = (claim.seat.client.clone(), claim.share);
        self.passed
            .retain(|(loser, _, kind), _| (loser, kind) != (&is_served.0, &is_served.1));
        if !comes_home {
            self.check_turn(session, vm);
        }
        if let Some((home, until)) = self.leases.get(&claim.seat) {
            assert!(
                !claim.purpose.fetches()
                    || *home == vm
                    || self.has_built(vm, &claim)
                    || self.shares[home] != claim.share
                    || *until <= self.now,
                "{session:?} should have come to {home:?}"
            );
        }
        if let Purpose::Pinned(named) = claim.purpose {
            // 21. Who names a VM gets that one, and nobody else has ever had it.
            assert_eq!(named, vm, "{session:?}");
            assert!(self.may_be_named(vm, &claim), "{session:?} on {vm:?}");
        } else {
            // 13. Under `never`, no second build; 14. under `client`, no other client; 22. none at all on one with a name.
            assert!(
                comes_home || self.is_open_to(vm, &claim),
                "{session:?} on {vm:?}, which was {:?}'s",
                self.users.get(&vm)
            );
        }
        self.leases.remove(&claim.seat);
        self.users.entry(vm).or_default().insert(claim.seat);
        self.waiting.remove(place);
        self.running.insert(session, vm);
        self.used_since.insert(vm, self.now);
    }

    /// Property 24. Who could have had what another client of the same priority gets is next, or after two more turns (one that the
    /// other has missed for want of a VM of its kind, and one of this round), and after those that the other had back: nobody is
    /// passed over for ever. Who comes before others is never passed over.
    fn check_turn(&mut self, session: SessionId, vm: VmId) {
        let winner = self.claims[&session].seat.client.clone();
        let share = self.shares[&vm];
        let could_have_it = |other: &&SessionId| {
            let claim = &self.claims[*other];
            claim.seat.client != winner
                && !matches!(claim.purpose, Purpose::Pinned(_))
                && !self.has_home(**other)
                && self.is_open_to(vm, claim)
        };
        let losers = self.waiting.iter().filter(could_have_it);
        let losers: BTreeSet<String> = losers
            .map(|other| self.claims[other].seat.client.clone())
            .collect();
        let priority_of = |client: &str| {
            let priorities = &self.pool.policy.priorities;
            priorities.get(client).copied().unwrap_or_default()
        };
        let (own, losers) = (priority_of(&winner), losers.into_iter());
        let losers: Vec<String> = losers.filter(|loser| priority_of(loser) >= own).collect();
        for loser in &losers {
            assert_eq!(priority_of(loser), own, "{session:?} was before {loser}'s");
        }
        let back = self.back.get_mut(&(winner.clone(), share));
        if let Some(back) = back.filter(|back| **back > 0) {
            *back -= 1;
            return;
        }
        for loser in losers {
            let passed = self.passed.entry((loser, winner.clone(), share));
            let passed = passed.or_default();
            *passed += 1;
            assert!(*passed <= 3, "{session:?} has {vm:?}: {:?}", self.passed);
        }
    }

    /// Whether a VM takes any session of this kind and client.
    fn is_open_to(&self, vm: VmId, claim: &Claim) -> bool {
        let users = self.users.get(&vm).into_iter().flatten();
        let is_alike = self.shares[&vm] == claim.share;
        is_alike
            && !self.is_apart(vm)
            && match self.pool.policy.reuse {
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
        let may_have_it = was_here || self.has_built(vm, claim);
        claim.purpose.fetches() && may_have_it && self.shares[&vm] == claim.share
    }

    /// Whether what a session comes to fetch was built on this VM, for its client.
    fn has_built(&self, vm: VmId, claim: &Claim) -> bool {
        let Purpose::Fetch(Some(path)) = &claim.purpose else {
            return false;
        };
        let built = (vm, claim.seat.client.clone(), path.clone());
        self.built.contains(&built)
    }

    /// Whether a session comes to fetch what a VM that runs may have.
    fn has_home(&self, session: SessionId) -> bool {
        let mut running = self.vms.iter().filter(|(_, life)| **life == Life::Runs);
        running.any(|(vm, _)| self.is_home(*vm, &self.claims[&session]))
    }

    /// Whether a VM that runs has done what it was for, or makes room for who waits for one of the other kind.
    fn may_be_killed(&self, vm: VmId) -> bool {
        let is_idle = !self.running.values().any(|at| *at == vm);
        let is_done = self.users.contains_key(&vm) && self.pool.policy.reuse != Reuse::Always;
        let mut waiting = self.waiting.iter().map(|session| &self.claims[session]);
        let is_in_the_way = waiting.any(|claim| claim.share != self.shares[&vm]);
        is_idle && (is_done || is_in_the_way) && !self.pinned.contains_key(&vm)
    }

    pub(super) fn check(&self) {
        let policy = &self.pool.policy;
        let slots = policy.slots_per_vm.get() as usize;
        // 3. Never more sessions on a VM than slots.
        for vm in self.vms.keys() {
            assert!(self.running.values().filter(|at| *at == vm).count() <= slots);
        }
        // 23. Nobody waits for a VM that is gone, or is about to be.
        for session in &self.waiting {
            if let Purpose::Pinned(vm) = self.claims[session].purpose {
                let life = self.vms.get(&vm);
                assert!(
                    matches!(life, Some(Life::Boots | Life::Runs)),
                    "{session:?} waits for {vm:?}"
                );
            }
        }
        // 30. A forecast never leads to fewer VMs, nor to more warm ones than are allowed; and to none where it is only observed.
        let mut without = self.pool.clone();
        without.set_forecast(None);
        let (more, warm) = (self.pool.warm_wanted(), without.warm_wanted());
        assert!(warm == policy.warm && (warm..=policy.warm_max.max(warm)).contains(&more));
        let missing = [&self.pool, &without].map(Pool::missing_count);
        assert!(missing[0] >= missing[1] && missing[0] - missing[1] <= (more - warm) as usize);
        assert!(policy.forecast == Forecasting::On || more == warm);
        // 11. A second look at the same moment finds nothing new.
        let mut again = self.pool.clone();
        again.set_machine(self.machine);
        assert_eq!(again.handle(self.now, Event::DeadlineReached), []);
    }
}
