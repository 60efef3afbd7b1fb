//! Which VM a session gets, how many VMs there should be, and which of them should go.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Instant;

use super::claim::{Purpose, Seat};
use super::policy::{Policy, Reuse};
use super::queue::Waiting;
use super::vm::{ReadyVm, VmId, VmState};

type Vms = BTreeMap<VmId, VmState>;

/// The VM that has what a session comes to fetch: the one that is kept for its seat, or else the one on which the session of
/// its seat that came before it has not ended yet.
pub(super) fn home(vms: &Vms, waiting: &Waiting) -> Option<VmId> {
    if waiting.claim.purpose != Purpose::Fetch {
        return None;
    }
    let seat = &waiting.claim.seat;
    let leased = ready(vms).find(|(_, vm)| vm.leases.contains_key(seat));
    let before = |vm: &ReadyVm| vm.last_session_before(waiting.session, seat);
    let served = || ready(vms).filter_map(|(id, vm)| Some((before(vm)?, id)));
    leased
        .map(|(id, _)| id)
        .or_else(|| served().max().map(|(_, id)| id))
}

/// Which VM a session gets now; none when it has to wait.
pub(super) fn pick(vms: &Vms, waiting: &Waiting, policy: &Policy) -> Option<VmId> {
    let claim = &waiting.claim;
    if let Some(home) = home(vms, waiting) {
        let vm = vms.get(&home)?.as_ready()?;
        let has_room = vm.leases.contains_key(&claim.seat) || vm.has_free_slot(policy);
        return has_room.then_some(home);
    }
    let client = &claim.seat.client;
    // A client's own VM first, so that what nobody has used stays for the others; then the one with the fewest sessions,
    // of these the oldest.
    let rank = |id: VmId, vm: &ReadyVm| {
        let is_others = policy.reuse == Reuse::Client && vm.owner.as_ref() != Some(client);
        (is_others, vm.sessions.len(), id)
    };
    ready(vms)
        .filter(|(_, vm)| vm.has_free_slot(policy) && vm.may_take(client, policy))
        .map(|(id, vm)| rank(id, vm))
        .min()
        .map(|(_, _, id)| id)
}

/// How many VMs that nobody has used the sessions of these seats need, none of which a VM that is there can serve.
pub(super) fn need<'a>(seats: impl Iterator<Item = &'a Seat>, policy: &Policy) -> usize {
    let slots = policy.slots_per_vm.get() as usize;
    match policy.reuse {
        Reuse::Never => seats.count(),
        Reuse::Always => seats.count().div_ceil(slots),
        Reuse::Client => {
            let mut clients: BTreeMap<&str, usize> = BTreeMap::new();
            for seat in seats {
                *clients.entry(&seat.client).or_default() += 1;
            }
            clients.values().map(|count| count.div_ceil(slots)).sum()
        }
    }
}

/// How many VMs boot. They count as supply: an emulated guest needs seconds to minutes, and without this every event of
/// that wait would start another one.
pub(super) fn booting(vms: &Vms) -> usize {
    vms.values().filter(|vm| vm.is_booting()).count()
}

/// How many VMs could serve any newcomer at once.
pub(super) fn spare(vms: &Vms, policy: &Policy) -> usize {
    ready(vms).filter(|(_, vm)| vm.is_spare(policy)).count()
}

/// The VMs that can serve.
pub(super) fn ready(vms: &Vms) -> impl Iterator<Item = (VmId, &ReadyVm)> {
    vms.iter()
        .filter_map(|(id, vm)| Some((*id, vm.as_ready()?)))
}

/// Which of the idle VMs that are meant goes first, and since when it is idle: the one that is idle longest, of these the
/// youngest.
pub(super) fn first_to_go(
    vms: &Vms,
    is_meant: impl Fn(&ReadyVm) -> bool,
) -> Option<(Instant, VmId)> {
    ready(vms)
        .filter(|(_, vm)| vm.is_idle() && is_meant(vm))
        .map(|(id, vm)| (vm.idle_since, Reverse(id)))
        .min()
        .map(|(idle_since, Reverse(id))| (idle_since, id))
}
