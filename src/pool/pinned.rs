//! Sessions that name the VM they want. From then on it is theirs: no build that may run anywhere comes to it, and it outlives
//! its sessions until nobody has used it for a while.

use super::claim::{Claim, Purpose};
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
        let mut actions = Vec::new();
        for waiting in std::mem::take(&mut self.queue) {
            match waiting.claim.purpose {
                Purpose::Pinned(id) if self.is_gone(id) => {
                    let reason = self.unreachable(id, &waiting.claim, Unreachable::Gone);
                    let session: SessionId = waiting.session;
                    actions.push(Action::Reject { session, reason });
                }
                _ => self.queue.push_back(waiting),
            }
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
