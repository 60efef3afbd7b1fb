//! Which VM ends first where the host runs out of memory.

use std::cmp::Reverse;
use std::time::Instant;

use super::vm::{VmId, VmState};
use super::{Action, Pool};

/// How much is lost with a VM: the least ends first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// Nobody uses it.
    Idle,
    /// It boots, and who waits for it goes on waiting.
    Booting,
    /// A client has named it, and may have put something in; or it is kept for who wants to look at a failed build.
    Named,
    /// Builds, that have been at work since then: the shorter, the less is lost.
    Builds(Reverse<Instant>),
}

impl Pool {
    /// The VM whose end loses least, and what that is.
    pub fn first_for_memory(&self) -> Option<(Loss, VmId)> {
        let losses = self.vms.iter().filter_map(|(id, vm)| {
            let loss = match vm {
                VmState::Stopping => return None,
                VmState::Booting { .. } => Loss::Booting,
                VmState::Ready(vm) if vm.kept_until.is_some() && vm.sessions.is_empty() => {
                    Loss::Named
                }
                VmState::Ready(vm) if !vm.is_idle() => Loss::Builds(Reverse(vm.at_work_since())),
                VmState::Ready(vm) if vm.is_pinned => Loss::Named,
                VmState::Ready(_) => Loss::Idle,
            };
            Some((loss, Reverse(*id)))
        });
        losses.min().map(|(loss, Reverse(id))| (loss, id))
    }

    pub(super) fn end_for_memory(&mut self, id: VmId) -> Vec<Action> {
        let Some(vm) = self.vms.get_mut(&id) else {
            return Vec::new();
        };
        *vm = VmState::Stopping;
        vec![Action::Kill(id)]
    }
}
