//! Where those belong who come to fetch: looked up once for all of them.

use std::collections::{BTreeMap, BTreeSet};

use super::claim::{Claim, Purpose, Seat};
use super::policy::Share;
use super::unfetched::Unfetched;
use super::vm::{VmId, VmState};
use super::{Pool, SessionId, planner};

/// What a seat has built on a VM and not fetched yet.
type Built<'a> = (VmId, &'a Seat, &'a Unfetched);

/// What is known of the VMs, by who may come for it.
struct Homes<'a> {
    /// The VM that is kept for a seat.
    leased: BTreeMap<(Share, &'a Seat), VmId>,
    /// Where each session of a seat is.
    visits: BTreeMap<(Share, &'a Seat), BTreeSet<(SessionId, VmId)>>,
    /// What each client's seats have built, and where.
    built: BTreeMap<(Share, &'a str), Vec<Built<'a>>>,
}

impl<'a> Homes<'a> {
    fn of(vms: &'a BTreeMap<VmId, VmState>) -> Self {
        let mut homes = Self {
            leased: BTreeMap::new(),
            visits: BTreeMap::new(),
            built: BTreeMap::new(),
        };
        for (id, vm) in planner::ready(vms) {
            for seat in vm.leases.keys() {
                homes.leased.entry((vm.share, seat)).or_insert(id);
            }
            for (session, visit) in &vm.sessions {
                let visits = homes.visits.entry((vm.share, &visit.claim.seat));
                visits.or_default().insert((*session, id));
            }
            for (seat, unfetched) in vm.unfetched() {
                let built = homes.built.entry((vm.share, seat.client.as_str()));
                built.or_default().push((id, seat, unfetched));
            }
        }
        homes
    }

    /// The seat that is known to have built what a session comes to fetch, and the VM where it has: its own seat, or else
    /// another one of its client's, unless its own may have built it.
    fn known_home(&self, claim: &Claim, own_seat: &Seat) -> Option<(&'a Seat, VmId)> {
        let Purpose::Fetch(Some(path)) = &claim.purpose else {
            return None;
        };
        let built = self.built.get(&(claim.share, own_seat.client.as_str()))?;
        let is_own = |seat: &Seat| seat == own_seat;
        let has_it = built
            .iter()
            .filter(|(.., unfetched)| unfetched.has(path))
            .max_by_key(|(vm, seat, _)| (is_own(seat), *vm));
        let (vm, seat, _) = *has_it?;
        let may_be_own =
            |(_, seat, unfetched): &Built<'_>| is_own(seat) && unfetched.may_have(path);
        (is_own(seat) || !built.iter().any(may_be_own)).then_some((seat, vm))
    }

    /// The VM that may have what a session of this seat comes to fetch: the one that is kept for the seat, or else the one on which
    /// the session of the seat that came before it has not ended yet. The sessions of a seat have one key, so that VM is of
    /// their kind; one that is not is nobody's home.
    fn home(&self, session: SessionId, share: Share, seat: &Seat) -> Option<VmId> {
        let leased = self.leased.get(&(share, seat)).copied();
        leased.or_else(|| {
            let visits = self.visits.get(&(share, seat))?;
            let before = visits.range(..(session, VmId(0))).next_back();
            before.map(|(_, id)| *id)
        })
    }
}

impl Pool {
    /// Puts those who come to fetch into the seats that have built it, and notes their VMs, as far as that is known by now.
    pub(super) fn seat_waiting(&mut self) {
        if self.queue.fetching().next().is_none() {
            return;
        }
        let homes = Homes::of(&self.vms);
        let seated = self.queue.fetching().map(|(session, waiting)| {
            let claim = &waiting.claim;
            let own = &waiting.own_seat;
            let known = homes.known_home(claim, own);
            let (seat, home) = known.map_or_else(
                || (own, homes.home(session, claim.share, own)),
                |(seat, vm)| (seat, Some(vm)),
            );
            (session, seat.clone(), home)
        });
        for (session, seat, home) in seated.collect::<Vec<_>>() {
            self.queue.reseat(session, &seat);
            self.queue.bind(session, home);
        }
    }
}
