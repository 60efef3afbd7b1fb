//! The VMs that have room for a newcomer, by whom they may take: looked up once for everybody who waits.

use std::collections::{BTreeMap, BTreeSet};

use super::claim::Claim;
use super::planner;
use super::policy::{Policy, Reuse, Share};
use super::vm::{ReadyVm, VmId, VmState};

/// Who may come: everybody of a kind, or further sessions of one client.
type Taker = (Share, Option<String>);

/// VMs with free slots.
pub(super) struct Offers {
    /// By how many sessions they have, and age.
    vms: BTreeMap<Taker, BTreeSet<(usize, VmId)>>,
    /// How many more sessions each one takes.
    free: BTreeMap<VmId, usize>,
}

impl Offers {
    pub(super) fn of(vms: &BTreeMap<VmId, VmState>, policy: &Policy) -> Self {
        let mut offers = Self {
            vms: BTreeMap::new(),
            free: BTreeMap::new(),
        };
        for (id, vm) in planner::ready(vms) {
            let free = vm.free_slots(policy);
            if let Some(taker) = taker(vm, policy).filter(|_| free > 0) {
                offers.free.insert(id, free);
                offers.put(taker, vm.sessions.len(), id);
            }
        }
        offers
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// The VM that a session gets: its client's own first, so that what nobody has used stays for the others; then the one
    /// with the fewest sessions, of these the oldest.
    pub(super) fn take(&mut self, claim: &Claim, policy: &Policy) -> Option<VmId> {
        let own = (claim.share, Some(claim.seat.client.clone()));
        let anybodys = (claim.share, None);
        let is_own = policy.reuse == Reuse::Client && self.vms.contains_key(&own);
        let taker = if is_own { own.clone() } else { anybodys };
        let offered = self.vms.get_mut(&taker)?;
        let (sessions, id) = offered.pop_first()?;
        if offered.is_empty() {
            self.vms.remove(&taker);
        }
        let free = self.free.remove(&id)?.saturating_sub(1);
        let further = match policy.reuse {
            Reuse::Always => Some(taker),
            Reuse::Client => Some(own),
            Reuse::Never => None,
        };
        if let Some(taker) = further.filter(|_| free > 0) {
            self.free.insert(id, free);
            self.put(taker, sessions + 1, id);
        }
        Some(id)
    }

    fn put(&mut self, taker: Taker, sessions: usize, id: VmId) {
        self.vms.entry(taker).or_default().insert((sessions, id));
    }
}

/// Whom a VM may take; nobody who has not named it, where what has run on it before is a hindrance to all.
fn taker(vm: &ReadyVm, policy: &Policy) -> Option<Taker> {
    let mut clients = vm.clients.iter();
    let owner = match (policy.reuse, clients.next(), clients.next()) {
        (Reuse::Always, ..) | (_, None, _) => None,
        (Reuse::Client, Some(only), None) => Some(only.clone()),
        (Reuse::Client | Reuse::Never, ..) => return None,
    };
    (!vm.is_pinned && !vm.is_draining()).then_some((vm.share, owner))
}
