//! What sessions are told where memory runs out: in a guest, or on the host.

use std::time::Instant;

use tracing::warn;

use super::system::ManagedSystem;
use super::ticket::SessionUpdate;
use crate::pool::{Event, VmId};
use crate::vm::VmBackend;

impl<B: VmBackend> ManagedSystem<B> {
    /// Whose process it was is not known, so all that are in the VM are told.
    pub(super) fn out_of_memory(&mut self, id: VmId, process: &str) {
        let vm = self.vm_name(id);
        warn!(vm, process, "the guest ran out of memory");
        let text = format!(
            "{vm} ran out of memory and its kernel killed `{process}`; it has {} MiB: raise `memory-mib` in xpool.toml",
            self.memory_mib
        );
        for (session, managed) in &self.sessions {
            if managed.vm == Some(id) {
                managed.tell(SessionUpdate::Note(text.clone()));
                self.builds.out_of_memory(*session, process);
            }
        }
    }

    /// Ends a VM for want of memory on the host, with those told who are in it.
    pub(super) fn end_for_memory(&mut self, now: Instant, id: VmId, available_mib: u64) {
        let Some(vm) = self.vms.get_mut(&id) else {
            return;
        };
        warn!(
            vm = vm.name,
            available_mib, "the host runs out of memory: the VM is ended"
        );
        vm.ended_because = Some(format!(
            "this machine ran out of memory ({available_mib} MiB available), and the VM with the shortest work ended for the others; lower `max-vms` or `memory-mib` in xpool.toml"
        ));
        self.handle(now, Event::MemoryIsOut(id));
    }
}
