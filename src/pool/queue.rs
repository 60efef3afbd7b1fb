//! Who waits, who is given what, and what a session leaves behind.

use std::collections::VecDeque;
use std::time::Instant;

use super::claim::{Claim, Outputs, Purpose, Seat};
use super::policy::Reuse;
use super::vm::VmState;
use super::{Action, Mode, Pool, Rejection, SessionId, planner};

/// A session that waits.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) session: SessionId,
    pub(super) claim: Claim,
}

impl Pool {
    pub(super) fn session_opened(&mut self, session: SessionId, claim: Claim) -> Vec<Action> {
        if claim.purpose == Purpose::Build {
            // The seat's last build is over for its client.
            self.end_leases(|seat, _| *seat == claim.seat);
        }
        let waiting = self.queue.len();
        if self.mode == Mode::Open && waiting >= self.policy.max_queued {
            let reason = Rejection::QueueFull { waiting };
            return vec![Action::Reject { session, reason }];
        }
        self.queue.push_back(Waiting { session, claim });
        Vec::new()
    }

    /// Where nothing is kept for the session's seat, its VM's work is done. Only one that is used again has to wait until the
    /// guest has closed the slot.
    pub(super) fn session_left(&mut self, now: Instant, session: SessionId, outputs: Outputs) {
        if self.policy.reuse != Reuse::Never {
            return;
        }
        let mut claims = self.vms.values().filter_map(VmState::as_ready);
        let claim = claims.find_map(|vm| vm.sessions.get(&session));
        let seat = claim.map(|claim| claim.seat.clone());
        if seat.is_some_and(|seat| !self.is_kept_for(&seat, session, outputs)) {
            self.session_closed(now, session, outputs);
        }
    }

    pub(super) fn session_closed(&mut self, now: Instant, session: SessionId, outputs: Outputs) {
        self.queue.retain(|waiting| waiting.session != session);
        let Some((id, seat)) = self.vms.iter().find_map(|(id, vm)| {
            let claim = vm.as_ready()?.sessions.get(&session)?;
            Some((*id, claim.seat.clone()))
        }) else {
            return;
        };
        let keeps = self.is_kept_for(&seat, session, outputs);
        if keeps {
            // A seat has one VM that is kept for it.
            self.end_leases(|other, _| *other == seat);
        }
        if let Some(vm) = self.vms.get_mut(&id).and_then(VmState::as_ready_mut) {
            vm.sessions.remove(&session);
            vm.idle_since = now;
            if keeps {
                vm.leases.insert(seat, now + self.policy.lease);
            }
        }
    }

    pub(super) fn session_returned(&mut self, session: SessionId, claim: Claim) {
        // Numbers are given in the order of arrival.
        let place = self.queue.partition_point(|other| other.session < session);
        self.queue.insert(place, Waiting { session, claim });
    }

    /// Whether a session's VM is kept for its seat when the session ends. A later session of the seat knows better: one that
    /// waits says what it wants, and one that runs will say so at its own end.
    fn is_kept_for(&self, seat: &Seat, ended: SessionId, outputs: Outputs) -> bool {
        let running = self
            .vms
            .values()
            .filter_map(VmState::as_ready)
            .flat_map(|vm| &vm.sessions)
            .filter(|(id, claim)| **id > ended && claim.seat == *seat)
            .map(|(id, _)| (*id, false));
        let waiting = self
            .queue
            .iter()
            .filter(|waiting| waiting.session > ended && waiting.claim.seat == *seat)
            .map(|waiting| (waiting.session, waiting.claim.purpose == Purpose::Fetch));
        let latest = running.chain(waiting).max();
        latest.map_or(outputs == Outputs::Unfetched, |(_, keeps)| keeps)
    }

    /// Ends leases, by seat and time of their end.
    pub(super) fn end_leases(&mut self, is_meant: impl Fn(&Seat, Instant) -> bool) {
        for vm in self.vms.values_mut().filter_map(VmState::as_ready_mut) {
            vm.leases.retain(|seat, until| !is_meant(seat, *until));
        }
    }

    /// When the next lease ends.
    pub(super) fn lease_deadline(&self) -> Option<Instant> {
        planner::ready(&self.vms)
            .flat_map(|(_, vm)| vm.leases.values().copied())
            .min()
    }

    /// Whether the VM is there that has what a session comes to fetch.
    pub(super) fn has_home(&self, waiting: &Waiting) -> bool {
        planner::home(&self.vms, waiting).is_some()
    }

    /// Gives VMs to those who wait, first come first; who has to wait for a certain VM holds up nobody.
    pub(super) fn assign_waiting(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for waiting in std::mem::take(&mut self.queue) {
            let picked = planner::pick(&self.vms, &waiting, &self.policy);
            let vm = picked.and_then(|id| Some((id, self.vms.get_mut(&id)?.as_ready_mut()?)));
            let Some((id, vm)) = vm else {
                self.queue.push_back(waiting);
                continue;
            };
            let Waiting { session, claim } = waiting;
            let fetch_only = vm.has_had_its_build(&self.policy);
            vm.leases.remove(&claim.seat);
            vm.owner = Some(claim.seat.client.clone());
            vm.used_since = now;
            vm.sessions.insert(session, claim);
            actions.push(Action::Assign {
                session,
                vm: id,
                fetch_only,
            });
        }
        actions
    }

    /// Rejects those who wait for a VM that is to be started. Who waits for one that is there gets it.
    pub(super) fn reject_waiting(&mut self, reason: &Rejection) -> Vec<Action> {
        let waiting = std::mem::take(&mut self.queue);
        let (homed, homeless): (VecDeque<_>, VecDeque<_>) =
            waiting.into_iter().partition(|who| self.has_home(who));
        self.queue = homed;
        let reject = |waiting: Waiting| Action::Reject {
            session: waiting.session,
            reason: reason.clone(),
        };
        homeless.into_iter().map(reject).collect()
    }
}
