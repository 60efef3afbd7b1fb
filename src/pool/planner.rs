//! How many VMs there should be, and which of them should go.

use std::collections::BTreeMap;
use std::time::Instant;

use super::policy::Policy;
use super::vm::{VmId, VmState};

/// How many VMs should serve: as many as the demand fills, at least `floor`, at most the policy's maximum.
pub(super) fn want(demand: usize, floor: u32, policy: &Policy) -> u32 {
    let slots = policy.slots_per_vm.get() as usize;
    let filled = u32::try_from(demand.div_ceil(slots)).unwrap_or(u32::MAX);
    filled
        .max(floor)
        .max(policy.min_vms)
        .min(policy.max_vms.get())
}

/// How many VMs serve or will.
pub(super) fn supply(vms: &BTreeMap<VmId, VmState>) -> u32 {
    // Booting VMs count: an emulated guest needs seconds to minutes, and without this every event of that wait would
    // start another one.
    u32::try_from(vms.values().filter(|vm| vm.is_supply()).count()).unwrap_or(u32::MAX)
}

/// Which idle VM goes first, and since when it is idle: the one that is idle longest, of these the youngest.
pub(super) fn first_to_go(vms: &BTreeMap<VmId, VmState>) -> Option<(Instant, VmId)> {
    vms.iter()
        .filter_map(|(id, vm)| Some((vm.idle_since()?, std::cmp::Reverse(*id))))
        .min()
        .map(|(idle_since, std::cmp::Reverse(id))| (idle_since, id))
}

/// Which VM the next session gets: the one with the fewest sessions, of these the oldest; none when all slots are taken.
pub(super) fn pick(vms: &BTreeMap<VmId, VmState>, policy: &Policy) -> Option<VmId> {
    let slots = policy.slots_per_vm.get() as usize;
    vms.iter()
        .filter_map(|(id, vm)| match vm {
            VmState::Ready { sessions, .. } if sessions.len() < slots => {
                Some((sessions.len(), *id))
            }
            _ => None,
        })
        .min()
        .map(|(_, id)| id)
}
