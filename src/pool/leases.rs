//! What a session leaves behind: a VM that is kept while its client has not fetched all that was built there.
//!
//! Three things tell that a session comes for it, the strongest first: its seat, where that is a process; its seat, where that
//! is a slot; and the path that it asks for, which may be known to be on one VM only.

use std::time::{Duration, Instant};

use super::claim::{Outputs, Seat};
use super::policy::Reuse;
use super::vm::{Lease, ReadyVm, Visit, VmState};
use super::{Pool, SessionId, VmId, planner};
use crate::nix::store_path::StorePath;

/// How long a session is there at the least, waiting included, that has use of its VM, where no build was seen. Who stays for
/// that cannot have VMs started faster than they start.
const WORK: Duration = Duration::from_millis(500);

impl Pool {
    /// Where nothing is kept for the session's seat, its VM's work is done. Only one that is used again has to wait until the
    /// guest has closed the slot.
    pub(super) fn session_left(&mut self, now: Instant, session: SessionId, outputs: Outputs) {
        let Some((id, visit)) = self.visit(session) else {
            return;
        };
        let is_used_again = self.policy.reuse != Reuse::Never || self.is_pinned(id);
        if self.is_kept_for(visit, session, outputs) {
            return;
        }
        if is_used_again {
            let vm = self.vms.get_mut(&id).and_then(VmState::as_ready_mut);
            let visit = vm.and_then(|vm| vm.sessions.get_mut(&session));
            if let Some(visit) = visit {
                visit.is_closing = true;
            }
        } else {
            self.session_closed(now, session, outputs);
        }
    }

    pub(super) fn session_closed(&mut self, now: Instant, session: SessionId, outputs: Outputs) {
        self.queue.remove(session);
        let Some((id, visit)) = self.visit(session) else {
            return;
        };
        let seat = visit.claim.seat.clone();
        let keeps = self.is_kept_for(visit, session, outputs);
        if keeps {
            // A seat has one VM that is kept for it.
            self.end_leases(|other, _| *other == seat);
        }
        let Some(vm) = self.vms.get_mut(&id).and_then(VmState::as_ready_mut) else {
            return;
        };
        vm.idle_since = now;
        let Some(visit) = vm.sessions.remove(&session) else {
            return;
        };
        let has_worked = visit.has_built || now >= visit.since + WORK;
        if has_worked && !std::mem::replace(&mut vm.has_worked, true) {
            self.starts.give_back();
        }
        let unfetched = visit.unfetched;
        if keeps {
            let until = now + self.policy.lease;
            let lease = Lease {
                session,
                until,
                unfetched,
            };
            vm.leases.insert(seat, lease);
        } else if let Some(lease) = vm.leases.get_mut(&seat) {
            lease.unfetched.add(unfetched);
        } else if let Some(heir) = vm.latest_visit_of(&seat) {
            heir.unfetched.add(unfetched);
        }
    }

    /// A build of a session has worked.
    pub(super) fn built(&mut self, session: SessionId, paths: Vec<StorePath>) {
        let mut vms = self.vms.values_mut().filter_map(VmState::as_ready_mut);
        if let Some(visit) = vms.find_map(|vm| vm.sessions.get_mut(&session)) {
            visit.has_built = true;
            visit.unfetched.built(paths);
        }
    }

    /// A session's client has an output.
    pub(super) fn fetched(&mut self, session: SessionId, path: &StorePath) {
        let mut vms = self.vms.values_mut().filter_map(VmState::as_ready_mut);
        if let Some(vm) = vms.find(|vm| vm.sessions.contains_key(&session)) {
            let client = vm.sessions[&session].claim.seat.client.clone();
            vm.fetched(&client, path);
        }
    }

    /// No further session will come by a seat.
    pub(super) fn seat_gone(&mut self, gone: &Seat) {
        self.end_leases(|seat, _| seat == gone);
        let vms = self.vms.values_mut().filter_map(VmState::as_ready_mut);
        for visit in vms.flat_map(|vm| vm.sessions.values_mut()) {
            visit.leaves_nothing |= visit.claim.seat == *gone;
        }
    }

    /// Whether a session's VM is kept for its seat when the session ends. A later session of the seat knows better: one that
    /// waits says what it wants, one that runs will say so at its own end, and one whose VM is kept has.
    fn is_kept_for(&self, visit: &Visit, ended: SessionId, outputs: Outputs) -> bool {
        let seat = &visit.claim.seat;
        let running = planner::ready(&self.vms)
            .flat_map(|(_, vm)| &vm.sessions)
            .filter(|(id, other)| **id > ended && other.claim.seat == *seat)
            .map(|(id, _)| (*id, false));
        let left = planner::ready(&self.vms).filter_map(|(_, vm)| vm.leases.get(seat));
        let left = left.map(|lease| (lease.session, false));
        let left = left.filter(|(id, _)| *id > ended);
        let waiting = self.queue.latest_of(seat).into_iter();
        let waiting = waiting
            .filter(|(id, _)| *id > ended)
            .map(|(id, waiting)| (id, waiting.claim.purpose.fetches()));
        let remain = outputs == Outputs::Unfetched && !visit.unfetched.is_done();
        let latest = running.chain(left).chain(waiting).max();
        latest.map_or(remain && !visit.leaves_nothing, |(_, keeps)| keeps)
    }

    /// Ends leases, by seat and time of their end.
    pub(super) fn end_leases(&mut self, is_meant: impl Fn(&Seat, Instant) -> bool) {
        for vm in self.vms.values_mut().filter_map(VmState::as_ready_mut) {
            vm.leases.retain(|seat, lease| !is_meant(seat, lease.until));
        }
    }

    /// When the next lease ends.
    pub(super) fn lease_deadline(&self) -> Option<Instant> {
        planner::ready(&self.vms)
            .flat_map(|(_, vm)| vm.leases.values().map(|lease| lease.until))
            .min()
    }

    fn visit(&self, session: SessionId) -> Option<(VmId, &Visit)> {
        planner::ready(&self.vms).find_map(|(id, vm)| Some((id, vm.sessions.get(&session)?)))
    }

    /// Whether a client has named the VM, so that it is that client's.
    pub fn is_pinned(&self, id: VmId) -> bool {
        let vm = self.vms.get(&id).and_then(VmState::as_ready);
        vm.is_some_and(|vm| vm.is_pinned)
    }
}

impl ReadyVm {
    fn latest_visit_of(&mut self, seat: &Seat) -> Option<&mut Visit> {
        let mut visits = self.sessions.values_mut();
        visits.rfind(|visit| visit.claim.seat == *seat)
    }
}
