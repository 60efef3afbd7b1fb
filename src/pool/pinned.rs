//! Sessions that name the VM they want. From then on it is theirs: no build that may run anywhere comes to it, and it outlives
//! its sessions until nobody has used it for a while.

use super::claim::{Claim, Purpose};
use super::line::Waiting;
use super::vm::{Unreachable, VmState};
use super::{Action, Pool, Rejection, SessionId, VmId};

impl Pool {
    /// Gives a VM to the client that has named it, if it may have it. What is done there for the client already goes on.
    pub(super) fn pin(&mut self, id: VmId, claim: &Claim) -> Result<(), Rejection> {
        let reached = match self.vms.get_mut(&id) {
            Some(vm) => vm.pin(claim),
            None => Err(Unreachable::Gone),
        };
        reached.map_err(|why| self.unreachable(id, claim, why))
    }

    /// Rejects those who wait for a VM that is not there any more.
    pub(super) fn reject_bereft(&mut self) -> Vec<Action> {
        let is_bereft = |(_, waiting): &(SessionId, &Waiting)| {
            let named = match waiting.claim.purpose {
                Purpose::Pinned(id) => Some(id),
                Purpose::Build | Purpose::Fetch(_) => None,
            };
            named.is_some_and(|id| self.is_gone(id))
        };
        let bereft = self.queue.bound().filter(is_bereft);
        let mut actions = Vec::new();
        for session in bereft.map(|(id, _)| id).collect::<Vec<_>>() {
            let Some(Waiting {
                claim,
                home: Some(vm),
                ..
            }) = self.queue.remove(session)
            else {
                continue;
            };
            let reason = self.unreachable(vm, &claim, Unreachable::Gone);
            actions.push(Action::Reject { session, reason });
        }
        actions
    }

    fn is_gone(&self, id: VmId) -> bool {
        matches!(self.vms.get(&id), None | Some(VmState::Stopping))
    }

    fn unreachable(&self, vm: VmId, claim: &Claim, why: Unreachable) -> Rejection {
        match why {
            Unreachable::Gone => Rejection::NoSuchVm {
                vm,
                there: self.vms_that(|vm| vm.may_be_reached(claim).is_ok()),
            },
            Unreachable::OtherKind => Rejection::OtherKind { vm },
            Unreachable::OtherClients => Rejection::OtherClients { vm },
        }
    }
}
