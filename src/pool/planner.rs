//! How many VMs there should be, and which of them should go.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Instant;

use super::claim::Claim;
use super::policy::{Policy, Reuse, Share};
use super::vm::{ReadyVm, VmId, VmState};

type Vms = BTreeMap<VmId, VmState>;

/// The first VMs that sessions with these claims need, none of which a VM that is there can serve: the kind of each, in the
/// order of the sessions that need one more.
pub(super) fn needs<'a>(
    claims: impl Iterator<Item = &'a Claim>,
    policy: &Policy,
    most: usize,
    mut closing: Closing<'a>,
) -> Vec<Share> {
    let slots = policy.slots_per_vm.get() as usize;
    // How many sessions there are so far of those that may be on one VM.
    let mut companies: BTreeMap<(Share, &str), usize> = BTreeMap::new();
    let mut needs = Vec::new();
    for claim in claims {
        let client = match policy.reuse {
            Reuse::Client => claim.seat.client.as_str(),
            Reuse::Never | Reuse::Always => "",
        };
        if let Some(slots) = closing.get_mut(&(claim.share, client))
            && *slots > 0
        {
            *slots -= 1;
            continue;
        }
        let company = companies.entry((claim.share, client)).or_default();
        if company.is_multiple_of(slots) || policy.reuse == Reuse::Never {
            needs.push(claim.share);
        }
        *company += 1;
        if needs.len() == most {
            break;
        }
    }
    needs
}

/// Slots that are about to be free, by whom they may serve: a kind, and a client where it matters.
pub(super) type Closing<'a> = BTreeMap<(Share, &'a str), usize>;

/// The slots whose sessions' clients have gone, on VMs that are used again.
pub(super) fn closing<'a>(vms: &'a Vms, policy: &Policy) -> Closing<'a> {
    let mut closing = Closing::new();
    for (_, vm) in ready(vms).filter(|(_, vm)| !vm.is_pinned && !vm.is_draining()) {
        let slots = vm.sessions.values().filter(|visit| visit.is_closing);
        let client = match policy.reuse {
            Reuse::Never => continue,
            Reuse::Always => Some(""),
            Reuse::Client => vm.clients.first().map(String::as_str),
        };
        let slots = slots.count();
        if let Some(client) = client.filter(|_| slots > 0) {
            *closing.entry((vm.share, client)).or_default() += slots;
        }
    }
    closing
}

/// How many VMs that nobody has named serve somebody, or are kept for somebody.
pub(super) fn busy(vms: &Vms) -> usize {
    let is_busy = |vm: &ReadyVm| !vm.is_pinned && !vm.is_idle();
    ready(vms).filter(|(_, vm)| is_busy(vm)).count()
}

/// How many VMs boot.
pub(super) fn booting(vms: &Vms) -> usize {
    vms.values().filter(|vm| vm.is_booting()).count()
}

/// How many VMs boot that nobody has named.
pub(super) fn coming(vms: &Vms) -> usize {
    vms.values().filter(|vm| coming_kind(vm).is_some()).count()
}

/// The kind of a VM that boots, if it is going to serve any newcomer.
fn coming_kind(vm: &VmState) -> Option<Share> {
    match vm {
        VmState::Booting {
            share,
            pinned_by: None,
            ..
        } => Some(*share),
        _ => None,
    }
}

/// How many VMs of a kind could serve any newcomer of theirs at once.
pub(super) fn spare(vms: &Vms, share: Share, policy: &Policy) -> usize {
    let is_spare = |vm: &ReadyVm| vm.share == share && vm.is_spare(policy);
    ready(vms).filter(|(_, vm)| is_spare(vm)).count()
}

/// How many VMs of a kind wait for newcomers, or will. Those that boot count as supply: an emulated guest needs seconds to
/// minutes, and without this every event of that wait would start another one.
pub(super) fn supply(vms: &Vms, share: Share, policy: &Policy) -> usize {
    let is_coming = |vm: &&VmState| coming_kind(vm) == Some(share);
    spare(vms, share, policy) + vms.values().filter(is_coming).count()
}

/// How many of the VMs that are to be there can serve. A VM at work, or kept for its outputs, is one of them whatever it
/// sees; one that nobody uses only if it is of the kind that is kept; one that a client has named is none.
pub(super) fn serving(vms: &Vms, share: Share) -> usize {
    let counts =
        |vm: &ReadyVm| !vm.is_pinned && !vm.is_draining() && (vm.share == share || !vm.is_idle());
    ready(vms).filter(|(_, vm)| counts(vm)).count()
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
