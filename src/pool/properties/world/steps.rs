//! What happens, one random step after the other, told to the pool as the manager would.

use super::{Life, World, nth, seat};
use crate::nix::store_path::StorePath;
use crate::pool::budget::Machine;
use crate::pool::claim::{Claim, Outputs, Purpose, Seat};
use crate::pool::memory::Loss;
use crate::pool::properties::Step;
use crate::pool::{Down, Event, SessionId, VmId};

impl World {
    pub(in crate::pool::properties) fn take(&mut self, step: Step) {
        match step {
            Step::Open {
                client,
                slot,
                purpose,
                share,
            } => self.open(Claim {
                seat: seat(client, slot),
                purpose,
                share,
            }),
            Step::Built(n, path) => self.build(n, path),
            Step::Failed(n) => self.fail(n),
            Step::Fetched(n, path) => self.fetch(n, path),
            Step::SeatGone { client, slot } => self.leave(seat(client, slot)),
            Step::Close(n, outputs) => self.close(n, outputs),
            Step::Memory(available) => self.machine.available_mib = available,
            Step::Machine(pressure, vcpus, others_wait) => {
                self.machine = Machine {
                    available_mib: self.machine.available_mib,
                    vcpus,
                    pressure,
                    others_wait,
                    ..Machine::default()
                };
            }
            Step::Forecast(sessions) => {
                self.pool.set_forecast(sessions);
                self.send(Event::DeadlineReached);
            }
            Step::MakeRoom => self.make_room(),
            Step::MemoryIsOut => self.run_out_of_memory(),
            Step::Drain(n) => self.drain(n),
            Step::Ready(n) => self.get_ready(n),
            Step::Exit(n, retry) => {
                if let Some(vm) = nth(self.vms.iter(), n) {
                    self.exit(vm, retry);
                }
            }
            Step::Pass(duration) => self.pass(self.now + duration),
            Step::UntilDeadline => {
                if let Some(at) = self.pool.deadline() {
                    self.pass(at);
                }
            }
            Step::Up(count) => self.up(count),
            Step::Down(how) => self.down(how),
        }
    }

    fn open(&mut self, claim: Claim) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        if claim.purpose == Purpose::Build {
            self.leases.remove(&claim.seat);
        }
        let is_taken = self.waiting.len() < self.pool.policy.max_queued && !self.shutting_down;
        let named = match claim.purpose {
            Purpose::Pinned(vm) => {
                let is_served =
                    is_taken && !self.drained.contains(&vm) && !self.kept.contains_key(&vm);
                Some((vm, is_served && self.may_be_named(vm, &claim)))
            }
            _ => None,
        };
        if let Some((vm, true)) = named {
            self.pinned.insert(vm, claim.seat.client.clone());
        }
        self.waiting.push_back(session);
        self.claims.insert(session, claim.clone());
        self.send(Event::SessionOpened(session, claim));
        if let Some((vm, may_have_it)) = named {
            // 20. Who names a VM gets it or waits for it, or is told at once why not.
            let is_in = self.waiting.contains(&session) || self.running.contains_key(&session);
            assert_eq!(is_in, may_have_it, "{session:?} has named {vm:?}");
        }
    }

    /// Whether a VM is there, shows what the claim may see, and was nobody else's.
    pub(super) fn may_be_named(&self, vm: VmId, claim: &Claim) -> bool {
        let is_there = matches!(self.vms.get(&vm), Some(Life::Boots | Life::Runs));
        let users = self.users.get(&vm).into_iter().flatten();
        let mut clients = users.map(|seat| &seat.client).chain(self.pinned.get(&vm));
        is_there
            && self.shares[&vm] == claim.share
            && clients.all(|client| *client == claim.seat.client)
    }

    fn build(&mut self, n: usize, path: Option<StorePath>) {
        let Some((session, vm)) = self.nth_running(n) else {
            return;
        };
        let seat = self.claims[&session].seat.clone();
        if let Some(path) = &path {
            self.built.insert((vm, seat.client.clone(), path.clone()));
        }
        self.told.0.insert(vm);
        self.leases.remove(&seat);
        self.told.1.insert(seat);
        self.send(Event::Built(session, path.into_iter().collect()));
    }

    fn nth_running(&self, n: usize) -> Option<(SessionId, VmId)> {
        let count = self.running.len();
        let (session, vm) = self.running.iter().nth(n.checked_rem(count)?)?;
        Some((*session, *vm))
    }

    fn close(&mut self, n: usize, outputs: Outputs) {
        let known: Vec<SessionId> = self
            .waiting
            .iter()
            .chain(self.running.keys())
            .copied()
            .collect();
        if !known.is_empty() {
            self.end_session(known[n % known.len()], outputs);
        }
    }

    fn fail(&mut self, n: usize) {
        let Some((session, vm)) = self.nth_running(n) else {
            return;
        };
        let is_to_end = self.shutting_down || self.drained.contains(&vm);
        if let Some(time) = self.pool.policy.keep_failed
            && !is_to_end
            && !self.pinned.contains_key(&vm)
        {
            self.kept.insert(vm, self.now + time);
        }
        self.send(Event::Failed(session));
    }

    fn fetch(&mut self, n: usize, path: StorePath) {
        if let Some((session, _)) = self.nth_running(n) {
            self.send(Event::Fetched(session, path));
        }
    }

    /// No further session comes by a seat.
    fn leave(&mut self, seat: Seat) {
        self.leases.remove(&seat);
        self.told.1.insert(seat.clone());
        self.send(Event::SeatGone(seat));
    }

    fn make_room(&mut self) {
        self.makes_room = true;
        self.send(Event::MakeRoom);
        self.makes_room = false;
    }

    fn run_out_of_memory(&mut self) {
        let Some((loss, vm)) = self.pool.first_for_memory() else {
            // 31. Only where there is none is none named.
            assert!(self.vms.values().all(|life| *life == Life::Stops));
            return;
        };
        // 32. No build is lost while there is a VM that boots or has never been used.
        let is_spare = |(vm, life): (&VmId, &Life)| match life {
            Life::Boots => true,
            Life::Runs => !self.users.contains_key(vm) && !self.pinned.contains_key(vm),
            Life::Stops => false,
        };
        let is_build = matches!(loss, Loss::Builds(_));
        assert!(!is_build || !self.vms.iter().any(is_spare), "{loss:?}");
        self.is_urgent = true;
        self.send(Event::MemoryIsOut(vm));
        self.is_urgent = false;
        assert_eq!(self.vms.get(&vm), Some(&Life::Stops));
    }

    fn drain(&mut self, n: usize) {
        if let Some(vm) = nth(self.vms.iter(), n) {
            self.drained.insert(vm);
            self.kept.entry(vm).and_modify(|until| *until = self.now);
            self.send(Event::DrainVm(vm));
        }
    }

    fn get_ready(&mut self, n: usize) {
        if let Some(vm) = nth(self.vms.iter().filter(|vm| *vm.1 == Life::Boots), n) {
            self.vms.insert(vm, Life::Runs);
            self.send(Event::VmReady(vm));
        }
    }

    fn up(&mut self, count: u32) {
        (self.shutting_down, self.is_urgent) = (false, false);
        self.send(Event::Up(count));
    }

    fn down(&mut self, how: Down) {
        self.shutting_down = true;
        self.kept.values_mut().for_each(|until| *until = self.now);
        self.is_urgent = how == Down::Now;
        self.send(Event::Down(how));
        self.is_urgent = false;
    }
}
