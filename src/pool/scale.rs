//! How a pool grows and shrinks: what is missing boots, what is in the way or idle too long goes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::budget::Census;
use super::decision::Scaled;
use super::hold::{Held, Hold, Pressure};
use super::policy::{Policy, Share};
use super::shape::Shape;
use super::vm::{ReadyVm, VmId, VmState};
use super::wanted::Until;
use super::{Action, Mode, Pool, budget, planner};

/// How long a VM may take to become ready, in all, before the pool gives it up. A VM keeps the boot timeout itself, and
/// says what it waited for; this is for one that does not. Its start may have to make the template first (a boot, up to five
/// minutes to save it, a copy to try it), then a copy of that, and after a copy that failed boot as if there were none: four
/// times the boot timeout. Verifying an image and making an overlay come before.
pub(super) fn longest_start(policy: &Policy) -> Duration {
    policy.boot_timeout * 4 + Duration::from_secs(8 * 60)
}

/// Starts at once at the least, before they are slowed.
const LEAST_BURST: u32 = 4;

/// What a VM that is missing is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// Sessions wait.
    Waited,
    /// Somebody has asked for it by number.
    Kept,
    /// So that the next session does not wait.
    Warm,
}

impl Pool {
    /// Starts what is missing and stops what is idle too long. Both at once only where a VM of another client,
    /// or of the other kind, is no help.
    pub(super) fn scale(&mut self, now: Instant) -> Vec<Action> {
        self.note_wanted(now);
        let (figures, before) = (self.figures(), self.held.map(|held| held.hold));
        let mut scaled = Scaled {
            boots: self.boot_missing(now),
            ..Scaled::default()
        };
        scaled.idle = self.stop_idle(now);
        scaled.room = self.make_room(now);
        let mut actions = scaled.boots.clone();
        if !scaled.idle.is_empty() || !scaled.room.is_empty() {
            // What goes takes no more memory, which may be what a start lacked.
            let more = self.boot_missing(now);
            actions.extend(scaled.idle.iter().chain(&scaled.room).cloned());
            actions.extend(more.iter().cloned());
            scaled.boots.extend(more);
        }
        self.note_decisions(figures, before, &scaled);
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
        let held = self.held.filter(|held| held.hold == Hold::BackOff);
        held.and_then(|held| held.look_again)
    }

    /// VMs that nobody has used, to be kept beside the others: none while the machine is short of something.
    fn warm(&self) -> usize {
        match (self.mode, self.machine.pressure) {
            (Mode::Open, None) => self.warm_wanted() as usize,
            _ => 0,
        }
    }

    /// Starts what is missing, as far as nothing holds it back.
    fn boot_missing(&mut self, now: Instant) -> Vec<Action> {
        self.starts.refill(now);
        let before = self.held.take();
        let mut census = Census {
            growing: budget::growing(&self.vms, now),
            all: self.vms.len(),
            vcpus: self.given_vcpus(),
        };
        // Who has asked for several has work for them.
        let own = self.at_work().max(self.kept() as usize);
        let at_work = own + self.machine.others_at_work;
        let mut actions = Vec::new();
        for (share, wish) in self.missing() {
            if let Some(held) = self.hold(now, census, wish) {
                self.held = Some(budget::told(before, held));
                break;
            }
            let left = self.machine.vcpus_left(census);
            let vcpus = self.policy.vcpus.of_each(at_work, left);
            census.growing += 1;
            census.all += 1;
            census.vcpus += vcpus;
            self.starts.take(now);
            self.last_vm += 1;
            let id = VmId(self.last_vm);
            let deadline = now + longest_start(&self.policy);
            self.vms.insert(id, VmState::booting(deadline, share));
            self.vcpus.insert(id, vcpus);
            actions.push(Action::Boot(id, Shape { share, vcpus }));
        }
        actions
    }

    /// What keeps one more VM from being started, that which lasts longest first.
    fn hold(&self, now: Instant, census: Census, wish: Wish) -> Option<Held> {
        let until = |hold, look_again| Some(Held { hold, look_again });
        let limit = self.limit();
        if census.all >= limit as usize {
            return until(Hold::MaxVms { limit }, None);
        }
        // While starts fail, one at a time is tried.
        if self.backoff.failures() > 0 && planner::booting(&self.vms) > 0 {
            return until(Hold::BackOff, None);
        }
        if let Some(at) = self.backoff.retry_at().filter(|at| *at > now) {
            return until(Hold::BackOff, Some(at));
        }
        let is_for_others = self.machine.others_wait && wish != Wish::Waited;
        let lack = self.machine.lack(census, &self.policy);
        // Who has asked for VMs by number has them start on a busy machine, too.
        let is_asked = wish == Wish::Kept && lack == Some(Hold::Pressure(Pressure::Cpu));
        let no_warm = self.machine.pressure.filter(|_| wish == Wish::Warm);
        let hold = no_warm.map(Hold::Pressure);
        let hold = hold.or(is_for_others.then_some(Hold::Others));
        if let Some(hold) = hold.or(lack.filter(|_| !is_asked)) {
            return until(hold, Some(now + budget::RECHECK));
        }
        let is_spent = self.starts.left(limit.max(LEAST_BURST)) == 0;
        is_spent.then_some(Held {
            hold: Hold::Rate,
            look_again: self.starts.next_at(),
        })
    }

    /// The VMs that are missing, in the order in which they are to start. Who waits comes before what is only kept: that would
    /// take the room of those who wait, and be ended for them again.
    fn missing(&self) -> Vec<(Share, Wish)> {
        if self.mode == Mode::Draining {
            return Vec::new();
        }
        let own = self.policy.share;
        let needs = self.needs();
        let count = |shares: &[Share]| shares.iter().filter(|share| **share == own).count();
        let needed = count(&needs);
        let unserved = self.unserved(needs);
        let supply = planner::supply(&self.vms, own, &self.policy) + count(&unserved);
        // While the machine is short of something these are missing, too: they come back when it no longer is.
        let cold = (needed + self.warm_wanted() as usize).saturating_sub(supply);
        // What boots for a session is about to be at work.
        let serving = planner::serving(&self.vms, own) + planner::coming(&self.vms);
        let short = (self.kept() as usize).saturating_sub(serving + unserved.len());
        let kept = std::iter::repeat_n((own, Wish::Kept), short);
        let warm = std::iter::repeat_n((own, Wish::Warm), cold.saturating_sub(short));
        let waited = unserved.into_iter().map(|share| (share, Wish::Waited));
        waited.chain(kept).chain(warm).collect()
    }

    /// How many VMs are missing.
    pub(super) fn missing_count(&self) -> usize {
        self.missing().len()
    }

    /// How many VMs are wanted, those apart that are kept or warm.
    fn note_wanted(&mut self, now: Instant) {
        let wanted = match self.mode {
            Mode::Open => planner::busy(&self.vms) + self.needs().len(),
            Mode::Draining => 0,
        };
        let wanted = wanted.min(self.limit() as usize);
        self.wanted.note(now, wanted, self.policy.scale_down_delay);
    }

    /// The VMs that those who wait need, the first few: as many as there may be, and as many again as may be there already.
    /// Those whose VM is there and only busy need none.
    fn needs(&self) -> Vec<Share> {
        let most = self.limit() as usize + self.vms.len();
        let claims = self.queue.in_order().map(|(_, waiting)| &waiting.claim);
        let closing = planner::closing(&self.vms, &self.policy);
        planner::needs(claims, &self.policy, most, closing)
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
        let is_stuck = self.held.is_some_and(|held| match held.hold {
            Hold::MaxVms { .. } => self.backoff.retry_at().is_none_or(|at| at <= now),
            hold => hold.is_for_want_of_room(),
        });
        if !is_stuck {
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

    /// Ends an idle VM, kept or warm though it may be, for sessions of another system: it starts again when they have theirs.
    pub(super) fn make_room_for_others(&mut self) -> Vec<Action> {
        let Some((_, id)) = self.first_for_others() else {
            return Vec::new();
        };
        self.vms.insert(id, VmState::Stopping);
        vec![Action::Kill(id)]
    }

    /// Since when the VM is idle that [`super::Event::MakeRoom`] would end, if there is one.
    pub fn idle_for_others(&self) -> Option<Instant> {
        self.first_for_others().map(|(since, _)| since)
    }

    fn first_for_others(&self) -> Option<(Instant, VmId)> {
        let idle = planner::first_to_go(&self.vms, |vm| !vm.is_pinned);
        idle.filter(|_| self.queue.has_no_lines())
    }

    /// The next idle VM that is not wanted any more, and when it is to go.
    fn next_to_go(&self) -> Option<(Instant, VmId)> {
        let (patience, delay) = match self.mode {
            Mode::Draining => (Duration::ZERO, Duration::ZERO),
            Mode::Open => (self.policy.idle_timeout, self.policy.scale_down_delay),
        };
        let idle = |is_meant: &dyn Fn(&ReadyVm) -> bool| {
            let idle = planner::first_to_go(&self.vms, is_meant);
            idle.map(|(since, id)| (since + patience, id))
        };
        let pinned = idle(&|vm| vm.is_pinned);
        let own = self.policy.share;
        // Only VMs that are ready count: what still boots may fail.
        let can_miss_one = planner::serving(&self.vms, own) > self.kept() as usize;
        let can_miss_spare = planner::spare(&self.vms, own, &self.policy) > self.warm();
        let surplus = idle(&|vm| {
            let can_miss_it = can_miss_spare || !vm.is_spare(&self.policy);
            !vm.is_pinned && (vm.share != own || (can_miss_one && can_miss_it))
        });
        let here = planner::ready(&self.vms).filter(|(_, vm)| !vm.is_pinned);
        let surplus = match self.wanted.until(here.count(), delay) {
            _ if self.mode == Mode::Draining => surplus,
            Until::Changed => None,
            Until::Time(at) => surplus.map(|(since, id)| (since.max(at), id)),
            Until::Past => surplus,
        };
        surplus.into_iter().chain(pinned).min()
    }
}
