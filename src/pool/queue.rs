//! Who waits, and who is given what.

use std::time::Instant;

use super::claim::{Claim, Purpose, Seat};
use super::offers::Offers;
use super::status::whole_seconds;
use super::vm::{ReadyVm, VmState};
use super::{Action, Mode, Pool, Rejection, SessionId, VmId};

impl Pool {
    pub(super) fn session_opened(
        &mut self,
        now: Instant,
        session: SessionId,
        claim: Claim,
    ) -> Vec<Action> {
        if claim.purpose == Purpose::Build {
            // The seat's last build is over for its client.
            self.end_leases(|seat, _| *seat == claim.seat);
        }
        let waiting = self.queue.len();
        if self.mode == Mode::Open && waiting >= self.policy.max_queued {
            let reason = Rejection::QueueFull { waiting };
            return vec![Action::Reject { session, reason }];
        }
        if let (Mode::Open, Purpose::Pinned(vm)) = (self.mode, &claim.purpose)
            && let Err(reason) = self.pin(*vm, &claim)
        {
            return vec![Action::Reject { session, reason }];
        }
        if let Some(reason) = self.hopeless(now) {
            return vec![Action::Reject { session, reason }];
        }
        let (named, priority) = (named(&claim), self.policy.priority_of(&claim));
        self.queue.push(now, session, claim, priority);
        self.queue.bind(session, named);
        Vec::new()
    }

    pub(super) fn session_returned(&mut self, now: Instant, session: SessionId, claim: Claim) {
        let (named, priority) = (named(&claim), self.policy.priority_of(&claim));
        self.queue.put_back(now, session, claim, priority);
        self.queue.bind(session, named);
    }

    /// Why a session that comes now would wait for nothing: starts have failed for long, the next try is not due, and no VM
    /// is there that could serve anybody.
    fn hopeless(&self, now: Instant) -> Option<Rejection> {
        let at = self.backoff.retry_at().filter(|at| *at > now)?;
        let is_alone = self.mode == Mode::Open && self.live_vms() == 0;
        (is_alone && self.is_degraded()).then(|| Rejection::Degraded {
            failures: self.backoff.failures(),
            retry_in_s: whole_seconds(at.saturating_duration_since(now)),
            reason: self.backoff.reason().unwrap_or_default().to_owned(),
        })
    }

    /// Rejects those who have waited too long.
    pub(super) fn reject_late(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(after) = self.policy.wait_timeout
            && let Some((since, session)) = self.queue.oldest()
            && since + after <= now
        {
            self.queue.remove(session);
            let reason = Rejection::WaitTimeout { after };
            actions.push(Action::Reject { session, reason });
        }
        actions
    }

    /// When the next one has waited too long.
    pub(super) fn wait_deadline(&self) -> Option<Instant> {
        let (since, _) = self.queue.oldest()?;
        self.policy.wait_timeout.map(|after| since + after)
    }

    /// Gives VMs to those who wait: each its own, and then to everybody else in their order. Who has to wait for a certain VM,
    /// or for one of its kind, holds up nobody.
    pub(super) fn assign_waiting(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        loop {
            let before = actions.len();
            actions.extend(self.assign_bound(now));
            actions.extend(self.assign_lines(now));
            // Where somebody has just come, there is the home of who fetches for the same seat.
            if actions.len() == before || self.queue.fetching().next().is_none() {
                return actions;
            }
            self.seat_waiting();
        }
    }

    fn assign_bound(&mut self, now: Instant) -> Vec<Action> {
        let bound = self.queue.bound();
        let bound = bound.filter_map(|(session, waiting)| Some((session, waiting.home?)));
        let mut actions = Vec::new();
        for (session, home) in bound.collect::<Vec<_>>() {
            let vm = self.vms.get(&home).and_then(VmState::as_ready);
            let seat = self.queue.get(session).map(|waiting| &waiting.claim.seat);
            let has_room = |vm: &ReadyVm| {
                vm.has_free_slot(&self.policy)
                    || seat.is_some_and(|seat| vm.leases.contains_key(seat))
            };
            if vm.is_some_and(has_room) {
                actions.extend(self.assign(now, session, home));
            }
        }
        actions
    }

    fn assign_lines(&mut self, now: Instant) -> Vec<Action> {
        if self.queue.has_no_lines() {
            return Vec::new();
        }
        let mut offers = Offers::of(&self.vms, &self.policy);
        let mut picks: Vec<(SessionId, VmId, &Seat)> = Vec::new();
        let mut order = self.queue.in_order();
        while !offers.is_empty()
            && let Some((session, waiting)) = order.next()
        {
            let claim = &waiting.claim;
            // Its seat's VM is found in this moment.
            let is_taken = |(.., seat): &(SessionId, VmId, &Seat)| **seat == claim.seat;
            if claim.purpose.fetches() && picks.iter().any(is_taken) {
                continue;
            }
            match offers.take(claim, &self.policy) {
                Some(vm) => picks.push((session, vm, &claim.seat)),
                None => order.leave_line(),
            }
        }
        let picks = picks.into_iter().map(|(session, vm, _)| (session, vm));
        let mut actions = Vec::new();
        for (session, vm) in picks.collect::<Vec<_>>() {
            actions.extend(self.assign(now, session, vm));
        }
        actions
    }

    fn assign(&mut self, now: Instant, session: SessionId, id: VmId) -> Option<Action> {
        let vm = self.vms.get_mut(&id)?.as_ready_mut()?;
        let claim = self.queue.serve(session)?.claim;
        let is_pinned = matches!(claim.purpose, Purpose::Pinned(_));
        let fetch_only = vm.has_had_its_build(&self.policy) && !is_pinned;
        vm.admit(now, session, claim);
        Some(Action::Assign {
            session,
            vm: id,
            fetch_only,
        })
    }

    /// Rejects those who wait for a VM that is to be started. Who waits for one that is there gets it; but a pool that is
    /// taken down lets its clients fetch, and nothing more.
    pub(super) fn reject_waiting(&mut self, reason: &Rejection) -> Vec<Action> {
        self.seat_waiting();
        let is_down = *reason == Rejection::Down;
        let mut rejected: Vec<SessionId> = self.queue.in_order().map(|(id, _)| id).collect();
        let bound = self.queue.bound();
        let may_not_stay = bound.filter(|(_, who)| is_down && !who.claim.purpose.fetches());
        rejected.extend(may_not_stay.map(|(id, _)| id));
        rejected.sort_unstable();
        let mut actions = Vec::new();
        for session in rejected {
            self.queue.remove(session);
            let reason = reason.clone();
            actions.push(Action::Reject { session, reason });
        }
        actions
    }
}

/// The VM that a session has named.
fn named(claim: &Claim) -> Option<VmId> {
    match claim.purpose {
        Purpose::Pinned(vm) => Some(vm),
        Purpose::Build | Purpose::Fetch(_) => None,
    }
}
