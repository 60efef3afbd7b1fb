//! Who waits, and who is given what.

use std::collections::VecDeque;
use std::time::Instant;

use super::claim::{Claim, Purpose, Seat};
use super::{Action, Mode, Pool, Rejection, SessionId, planner};

/// A session that waits.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) session: SessionId,
    /// What it wants, in the seat that has built what it comes to fetch.
    pub(super) claim: Claim,
    /// The seat that it came by.
    own_seat: Seat,
}

impl Waiting {
    fn new(session: SessionId, claim: Claim) -> Self {
        let own_seat = claim.seat.clone();
        Self {
            session,
            claim,
            own_seat,
        }
    }
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
        if let (Mode::Open, Purpose::Pinned(vm)) = (self.mode, &claim.purpose)
            && let Err(reason) = self.pin(*vm, &claim)
        {
            return vec![Action::Reject { session, reason }];
        }
        self.queue.push_back(Waiting::new(session, claim));
        Vec::new()
    }

    pub(super) fn session_returned(&mut self, session: SessionId, claim: Claim) {
        // Numbers are given in the order of arrival.
        let place = self.queue.partition_point(|other| other.session < session);
        self.queue.insert(place, Waiting::new(session, claim));
    }

    /// Whether a session waits for a VM that is there, and would go to no other.
    pub(super) fn has_home(&self, waiting: &Waiting) -> bool {
        planner::home(&self.vms, waiting).is_some()
    }

    /// Puts those who wait into the seats that have built what they come to fetch, as far as that is known by now.
    pub(super) fn seat_waiting(&mut self) {
        let mut queue = std::mem::take(&mut self.queue);
        for waiting in &mut queue {
            waiting.claim.seat.clone_from(&waiting.own_seat);
            if let Some(seat) = self.seat_that_has(&waiting.claim) {
                waiting.claim.seat = seat;
            }
        }
        self.queue = queue;
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
            let Waiting { session, claim, .. } = waiting;
            let is_pinned = matches!(claim.purpose, Purpose::Pinned(_));
            let fetch_only = vm.has_had_its_build(&self.policy) && !is_pinned;
            vm.admit(now, session, claim);
            actions.push(Action::Assign {
                session,
                vm: id,
                fetch_only,
            });
        }
        actions
    }

    /// Rejects those who wait for a VM that is to be started. Who waits for one that is there gets it; but a pool that is
    /// taken down lets its clients fetch, and nothing more.
    pub(super) fn reject_waiting(&mut self, reason: &Rejection) -> Vec<Action> {
        let waiting = std::mem::take(&mut self.queue);
        let may_stay = |who: &Waiting| who.claim.purpose.fetches() || *reason != Rejection::Down;
        let (homed, homeless): (VecDeque<_>, VecDeque<_>) = waiting
            .into_iter()
            .partition(|who| self.has_home(who) && may_stay(who));
        self.queue = homed;
        let reject = |waiting: Waiting| Action::Reject {
            session: waiting.session,
            reason: reason.clone(),
        };
        homeless.into_iter().map(reject).collect()
    }
}
