//! How a pool grows and shrinks: what is missing boots, what is in the way or idle too long goes.

use std::time::{Duration, Instant};

use super::policy::{Policy, Reuse};
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
    /// Starts what is missing and stops what is idle too long. Both at once only where a VM of another client is no help.
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
        if self.wants_boot() && self.budget.shortage().is_none() {
            self.backoff.retry_at()
        } else {
            None
        }
    }

    fn boot_missing(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut lack = None;
        while self.wants_boot() && self.is_allowed_to_try(now) {
            let growing = budget::growing(&self.vms, now);
            lack = self.budget.lack(growing, &self.policy);
            if lack.is_some() {
                break;
            }
            self.last_vm += 1;
            let id = VmId(self.last_vm);
            let deadline = now + longest_start(&self.policy);
            self.vms.insert(id, VmState::Booting { deadline });
            actions.push(Action::Boot(id));
        }
        self.budget.hold_back(now, lack);
        actions
    }

    /// Whether a further VM is wanted and there is room for it; the back-off and memory apart.
    fn wants_boot(&self) -> bool {
        let one_at_a_time = self.backoff.failures() > 0;
        self.mode == Mode::Open
            && self.missing() > 0
            && self.has_room()
            && !(one_at_a_time && planner::booting(&self.vms) > 0)
    }

    fn is_allowed_to_try(&self, now: Instant) -> bool {
        self.backoff.retry_at().is_none_or(|at| at <= now)
    }

    fn has_room(&self) -> bool {
        self.vms.len() < self.limit() as usize
    }

    /// How many VMs there are too few, whatever their maximum is.
    fn missing(&self) -> usize {
        let booting = planner::booting(&self.vms);
        let unused = planner::spare(&self.vms, &self.policy) + booting;
        // A VM at work, or kept for its outputs, is one of those that are to be there.
        let serving = planner::ready(&self.vms).count() + booting;
        let wanted = self.need() + self.policy.warm as usize;
        let for_newcomers = wanted.saturating_sub(unused);
        for_newcomers.max((self.kept() as usize).saturating_sub(serving))
    }

    /// How many VMs the sessions that wait need. None for those whose VM is there and only busy.
    fn need(&self) -> usize {
        let homeless = self.queue.iter().filter(|waiting| !self.has_home(waiting));
        planner::need(homeless.map(|waiting| &waiting.claim.seat), &self.policy)
    }

    /// Ends idle VMs of other clients while those who wait cannot get one otherwise.
    fn make_room(&mut self, now: Instant) -> Vec<Action> {
        let is_stuck = !self.has_room() || self.budget.shortage().is_some();
        let applies = self.policy.reuse == Reuse::Client && self.mode == Mode::Open;
        if !applies || !is_stuck || !self.is_allowed_to_try(now) {
            return Vec::new();
        }
        let gone_soon = |vm: &&VmState| matches!(vm, VmState::Stopping);
        let stopping = self.vms.values().filter(gone_soon).count();
        let coming = planner::booting(&self.vms) + stopping;
        let mut actions = Vec::new();
        for _ in coming..self.need() {
            let Some((_, id)) = planner::first_to_go(&self.vms, |_| true) else {
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
        // Only VMs that are ready count: what still boots may fail.
        let ready = planner::ready(&self.vms).count();
        if ready <= self.kept() as usize {
            return None;
        }
        let warm = match self.mode {
            Mode::Draining => 0,
            Mode::Open => self.policy.warm as usize,
        };
        let can_miss_spare = planner::spare(&self.vms, &self.policy) > warm;
        let is_surplus = |vm: &ReadyVm| can_miss_spare || !vm.is_spare(&self.policy);
        planner::first_to_go(&self.vms, is_surplus).map(|(since, id)| (since + patience, id))
    }
}
