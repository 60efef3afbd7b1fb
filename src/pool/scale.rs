//! How a pool grows and shrinks: what is missing boots, what is in the way or idle too long goes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::policy::{Policy, Share};
use super::vm::{ReadyVm, VmId, VmState};
use super::{Action, Mode, Pool, budget, planner};

/// How long a VM may take to become ready, in all, before the pool gives it up. A VM keeps the boot timeout itself, and
/// says what it waited for; this is for one that does not. Its start may have to make the template first (a boot, up to five
/// minutes to save it, a copy to try it), then a copy of that, and after a copy that failed boot as if there were none: four
/// times the boot timeout. Verifying an image and making an overlay come before.
pub(super) fn longest_start(policy: &Policy) -> Duration {
    policy.boot_timeout * 4 + Duration::from_secs(8 * 60)
}

impl Pool {
    /// Starts what is missing and stops what is idle too long. Both at once only where a VM of another client,
    /// or of the other kind, is no help.
    pub(super) fn scale(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = self.boot_missing(now);
        let mut stops = self.stop_idle(now);
        stops.extend(self.make_room(now));
        if !stops.is_empty() {
            actions.extend(stops);
            // What goes takes no more memory, which may be what a start lacked.
            actions.extend(self.boot_missing(now));
        }
        actions
    }

    /// VMs at the most: what is configured, or what `up` asked for beyond it.
    pub(super) fn limit(&self) -> u32 {
        self.policy.max_vms.get().max(self.floor)
    }

    /// VMs that are kept even when nothing waits.
    pub(super) fn kept(&self) -> u32 {
        match self.mode {
            Mode::Open => self.floor.max(self.policy.min_vms),
            Mode::Draining => 0,
        }
    }

    /// When an idle VM is to go.
    pub(super) fn idle_deadline(&self) -> Option<Instant> {
        self.next_to_go().map(|(at, _)| at)
    }

    /// When a start that the back-off holds back is allowed.
    pub(super) fn retry_deadline(&self) -> Option<Instant> {
        // What memory holds back has its own deadline.
        if self.next_to_boot().is_some() && self.budget.shortage().is_none() {
            self.backoff.retry_at()
        } else {
            None
        }
    }

    fn boot_missing(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut lack = None;
        while let Some(share) = self.next_to_boot()
            && self.is_allowed_to_try(now)
        {
            let growing = budget::growing(&self.vms, now);
            lack = self.budget.lack(growing, &self.policy);
            if lack.is_some() {
                break;
            }
            self.last_vm += 1;
            let id = VmId(self.last_vm);
            let deadline = now + longest_start(&self.policy);
            self.vms.insert(id, VmState::booting(deadline, share));
            actions.push(Action::Boot(id, share));
        }
        self.budget.hold_back(now, lack);
        actions
    }

    /// Which kind of VM is wanted next, if there is room for one; the back-off and memory apart.
    fn next_to_boot(&self) -> Option<Share> {
        let one_at_a_time = self.backoff.failures() > 0;
        let may_boot = self.mode == Mode::Open
            && self.has_room()
            && !(one_at_a_time && planner::booting(&self.vms) > 0);
        may_boot.then(|| self.first_missing()).flatten()
    }

    fn is_allowed_to_try(&self, now: Instant) -> bool {
        self.backoff.retry_at().is_none_or(|at| at <= now)
    }

    fn has_room(&self) -> bool {
        self.vms.len() < self.limit() as usize
    }

    /// The kind of the VM that is missing first, whatever the maximum is. Who waits longest comes before what is only kept:
    /// that would take the room of those who wait, and be ended for them again.
    fn first_missing(&self) -> Option<Share> {
        if let Some(share) = self.unserved().first() {
            return Some(*share);
        }
        let own = self.policy.share;
        let needed = self.needs().iter().filter(|share| **share == own).count();
        let wanted = needed + self.policy.warm as usize;
        let is_cold = planner::supply(&self.vms, own, &self.policy) < wanted;
        // What boots for a session is about to be at work.
        let serving = planner::serving(&self.vms, own) + planner::coming(&self.vms);
        (is_cold || serving < self.kept() as usize).then_some(own)
    }

    /// The VMs that those who wait need; none for those whose VM is there and only busy.
    fn needs(&self) -> Vec<Share> {
        let homeless = self.queue.iter().filter(|waiting| !self.has_home(waiting));
        planner::needs(homeless.map(|waiting| &waiting.claim), &self.policy)
    }

    /// Of these, those that neither are there nor boot.
    fn unserved(&self) -> Vec<Share> {
        let supply = |share| planner::supply(&self.vms, share, &self.policy);
        let mut left: BTreeMap<Share, usize> = BTreeMap::new();
        let mut unserved = self.needs();
        unserved.retain(|share| {
            let left = left.entry(*share).or_insert_with(|| supply(*share));
            let is_served = *left > 0;
            *left = left.saturating_sub(1);
            !is_served
        });
        unserved
    }

    /// Ends idle VMs while those who wait cannot get one otherwise. A VM that is idle while somebody waits is of the other
    /// kind, or another client's; one that a client has named stays.
    fn make_room(&mut self, now: Instant) -> Vec<Action> {
        let is_stuck = !self.has_room() || self.budget.shortage().is_some();
        if self.mode != Mode::Open || !is_stuck || !self.is_allowed_to_try(now) {
            return Vec::new();
        }
        let gone_soon = |vm: &&VmState| matches!(vm, VmState::Stopping);
        let stopping = self.vms.values().filter(gone_soon).count();
        let mut actions = Vec::new();
        for _ in stopping..self.unserved().len() {
            let Some((_, id)) = planner::first_to_go(&self.vms, |vm| !vm.is_pinned) else {
                break;
            };
            self.vms.insert(id, VmState::Stopping);
            actions.push(Action::Kill(id));
        }
        actions
    }

    fn stop_idle(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some((_, id)) = self.next_to_go().filter(|(at, _)| *at <= now) {
            self.vms.insert(id, VmState::Stopping);
            actions.push(Action::PowerDown(id));
        }
        actions
    }

    /// The next idle VM that is not wanted any more, and when it is to go.
    fn next_to_go(&self) -> Option<(Instant, VmId)> {
        let patience = match self.mode {
            Mode::Draining => Duration::ZERO,
            Mode::Open => self.policy.idle_timeout,
        };
        let own = self.policy.share;
        // Only VMs that are ready count: what still boots may fail.
        let can_miss_one = planner::serving(&self.vms, own) > self.kept() as usize;
        let warm = match self.mode {
            Mode::Draining => 0,
            Mode::Open => self.policy.warm as usize,
        };
        let can_miss_spare = planner::spare(&self.vms, own, &self.policy) > warm;
        let is_surplus = |vm: &ReadyVm| {
            let can_miss_it = can_miss_spare || !vm.is_spare(&self.policy);
            vm.is_pinned || vm.share != own || (can_miss_one && can_miss_it)
        };
        planner::first_to_go(&self.vms, is_surplus).map(|(since, id)| (since + patience, id))
    }
}
