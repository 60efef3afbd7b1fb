//! A VM that is taken out of service: it takes no further sessions, and ends with those that it has.

use super::vm::{Service, VmState};
use super::{Action, Pool, VmId};

impl Pool {
    /// A VM that boots is of no use to anybody any more.
    pub(super) fn drain(&mut self, id: VmId) -> Vec<Action> {
        match self.vms.get_mut(&id) {
            Some(VmState::Ready(vm)) => {
                vm.service = Service::Drained;
                vm.kept_until = None;
                Vec::new()
            }
            Some(vm @ VmState::Booting { .. }) => {
                *vm = VmState::Stopping;
                vec![Action::Kill(id)]
            }
            Some(VmState::Stopping) | None => Vec::new(),
        }
    }

    /// It takes no further sessions, and is kept for what it is kept for.
    pub(super) fn retire(&mut self, id: VmId) {
        if let Some(vm) = self.vms.get_mut(&id).and_then(VmState::as_ready_mut) {
            vm.retire();
        }
    }

    /// Ends those that have done what they were kept for.
    pub(super) fn stop_drained(&mut self) -> Vec<Action> {
        let is_done = |vm: &VmState| {
            let ready = vm.as_ready();
            ready.is_some_and(|vm| vm.is_draining() && vm.is_idle())
        };
        let done = self.vms_that(is_done);
        for id in &done {
            self.vms.insert(*id, VmState::Stopping);
        }
        done.into_iter().map(Action::PowerDown).collect()
    }
}
