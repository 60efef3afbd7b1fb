//! The VM of a build that has failed: kept for a while, for who wants to look at what is left in it. Nobody else gets it.

use std::time::Instant;

use super::vm::{Service, VmState};
use super::{Mode, Pool, SessionId};

impl Pool {
    /// A build of a session has failed.
    pub(super) fn failed(&mut self, now: Instant, session: SessionId) {
        let Some(time) = self.policy.keep_failed else {
            return;
        };
        if self.mode == Mode::Draining {
            return;
        }
        let mut vms = self.vms.values_mut().filter_map(VmState::as_ready_mut);
        if let Some(vm) = vms.find(|vm| vm.sessions.contains_key(&session)) {
            // One that a client has named is that client's, and stays in any case; one that somebody drains is to end.
            if vm.is_pinned || vm.service == Service::Drained {
                return;
            }
            vm.kept_until = Some(now + time);
            vm.retire();
        }
    }

    /// Keeps those no longer whose time has come.
    pub(super) fn end_keeping(&mut self, now: Instant) {
        for vm in self.vms.values_mut().filter_map(VmState::as_ready_mut) {
            vm.kept_until = vm.kept_until.filter(|until| *until > now);
        }
    }

    /// When the next one's time comes.
    pub(super) fn keep_deadline(&self) -> Option<Instant> {
        let vms = self.vms.values().filter_map(VmState::as_ready);
        vms.filter_map(|vm| vm.kept_until).min()
    }
}
