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
        self.retry_at
    }

    /// Starts what is missing, as far as there is room for it.
    fn boot_missing(&mut self, now: Instant) -> Vec<Action> {
        let missing = self.missing(self.room());
        self.retry_at = self.backoff.retry_at().filter(|_| !missing.is_empty());
        if !self.is_allowed_to_try(now) {
            self.budget.hold_back(now, None);
            return Vec::new();
        }
        let mut actions = Vec::new();
        let mut lack = None;
        let mut growing = budget::growing(&self.vms, now);
        for share in missing {
            lack = self.budget.lack(growing, &self.policy);
            if lack.is_some() {
                break;
            }
            growing += 1;
            self.last_vm += 1;
            let id = VmId(self.last_vm);
            let deadline = now + longest_start(&self.policy);
            self.vms.insert(id, VmState::booting(deadline, share));
            actions.push(Action::Boot(id, share));
        }
        // What is tried now is what the back-off waited for; what memory holds back has its own deadline.
        self.retry_at = None;
        self.budget.hold_back(now, lack);
        actions
    }

    fn is_allowed_to_try(&self, now: Instant) -> bool {
        self.backoff.retry_at().is_none_or(|at| at <= now)
    }

    /// How many VMs may be started now, the back-off and memory apart. While starts fail, one at a time is tried.
    fn room(&self) -> usize {
        let room = (self.limit() as usize).saturating_sub(self.vms.len());
        match self.mode {
            Mode::Draining => 0,
            Mode::Open if self.backoff.failures() > 0 => {
                room.min(1_usize.saturating_sub(planner::booting(&self.vms)))
            }
            Mode::Open => room,
        }
    }

    fn has_room(&self) -> bool {
        self.vms.len() < self.limit() as usize
    }

    /// The kinds of the VMs that are missing, so many at the most, in the order in which they are to start. Who waits comes
    /// before what is only kept: that would take the room of those who wait, and be ended for them again.
    fn missing(&self, most: usize) -> Vec<Share> {
        if most == 0 {
            return Vec::new();
        }
        let own = self.policy.share;
        let needs = self.needs();
        let needed = needs.iter().filter(|share| **share == own).count();
        let mut missing = self.unserved(needs);
        let unserved = missing.iter().filter(|share| **share == own).count();
        let supply = planner::supply(&self.vms, own, &self.policy) + unserved;
        let cold = (needed + self.policy.warm as usize).saturating_sub(supply);
        // What boots for a session is about to be at work.
        let serving = planner::serving(&self.vms, own) + planner::coming(&self.vms);
        let short = (self.kept() as usize).saturating_sub(serving + missing.len());
        missing.extend(std::iter::repeat_n(own, cold.max(short)));
        missing.truncate(most);
        missing
    }

    /// The VMs that those who wait need, the first few: as many as there may be, and as many again as may be there already.
    /// Those whose VM is there and only busy need none.
    fn needs(&self) -> Vec<Share> {
        let most = self.limit() as usize + self.vms.len();
        let claims = self.queue.in_order().map(|(_, waiting)| &waiting.claim);
        planner::needs(claims, &self.policy, most)
    }

    /// Of these, those that neither are there nor boot.
    fn unserved(&self, mut needs: Vec<Share>) -> Vec<Share> {
        let supply = |share| planner::supply(&self.vms, share, &self.policy);
        let mut left: BTreeMap<Share, usize> = BTreeMap::new();
        needs.retain(|share| {
            let left = left.entry(*share).or_insert_with(|| supply(*share));
            let is_served = *left > 0;
            *left = left.saturating_sub(1);
            !is_served
        });
        needs
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
        for _ in stopping..self.unserved(self.needs()).len() {
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
