//! How long one step of the pool's core takes with 200 VMs at work and 10,000 sessions waiting. Prints a line for each kind of
//! step; the aim is less than a millisecond.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::expect_used,
    missing_docs,
    reason = "a measurement prints what the clock says"
)]

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use xpool::pool::claim::{Claim, Outputs, Purpose, Seat};
use xpool::pool::policy::{Policy, Reuse, Share};
use xpool::pool::{Action, Event, Exit, Pool, SessionId, VmId};

const VMS: u32 = 200;
const WAITING: u64 = 10_000;
const STEPS: u32 = 1000;

fn main() {
    for (reuse, clients) in [
        (Reuse::Never, 1),
        (Reuse::Never, 100),
        (Reuse::Client, 100),
        (Reuse::Always, 10_000),
    ] {
        let mut bench = Bench::new(reuse, clients);
        println!("reuse {}, {clients} clients:", reuse.as_str());
        bench.fill();
        bench.turn_over();
        bench.deadlines();
    }
}

struct Bench {
    pool: Pool,
    now: Instant,
    clients: u64,
    sessions: u64,
    serving: Vec<(SessionId, VmId)>,
}

impl Bench {
    fn new(reuse: Reuse, clients: u64) -> Self {
        let policy = Policy {
            max_vms: NonZeroU32::new(VMS).expect("there are some"),
            max_queued: 20_000,
            reuse,
            ..Policy::default()
        };
        Self {
            pool: Pool::new(policy),
            now: Instant::now(),
            clients,
            sessions: 0,
            serving: Vec::new(),
        }
    }

    fn open(&mut self) -> Event {
        self.sessions += 1;
        let client = format!("SHA256:client-{}", self.sessions % self.clients);
        let slot = format!("riscv64-{:02}", self.sessions % 64);
        let seat = Seat { client, slot };
        let claim = Claim {
            seat,
            purpose: Purpose::Build,
            share: Share::Host,
        };
        Event::SessionOpened(SessionId(self.sessions), claim)
    }

    /// One step, with everything that the manager asks the core after it.
    fn step(&mut self, event: Event) -> Duration {
        let began = Instant::now();
        let actions = self.pool.handle(self.now, event);
        std::hint::black_box(self.pool.deadline());
        std::hint::black_box(self.pool.promised_memory_mib(self.now));
        let took = began.elapsed();
        self.note(actions);
        took
    }

    fn note(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Boot(vm, _) => {
                    let more = self.pool.handle(self.now, Event::VmReady(vm));
                    self.note(more);
                }
                Action::Assign { session, vm, .. } => self.serving.push((session, vm)),
                Action::Kill(vm) | Action::PowerDown(vm) => {
                    let gone = Event::VmExited(vm, Exit::Stopped);
                    let more = self.pool.handle(self.now, gone);
                    self.note(more);
                }
                Action::Reject { .. } => {}
            }
        }
    }

    fn fill(&mut self) {
        let mut took = Vec::new();
        while self.sessions < WAITING + u64::from(VMS) {
            self.now += Duration::from_secs(1);
            let open = self.open();
            took.push(self.step(open));
        }
        report("a session comes", &mut took);
    }

    fn turn_over(&mut self) {
        let mut took = Vec::new();
        for _ in 0..STEPS {
            self.now += Duration::from_secs(1);
            let (session, _) = self.serving.remove(0);
            took.push(self.step(Event::SessionClosed(session, Outputs::Fetched)));
            let open = self.open();
            self.step(open);
        }
        report("a session ends", &mut took);
    }

    fn deadlines(&mut self) {
        let mut took: Vec<Duration> = (0..STEPS)
            .map(|_| self.step(Event::DeadlineReached))
            .collect();
        report("a deadline", &mut took);
    }
}

fn report(what: &str, took: &mut [Duration]) {
    took.sort_unstable();
    let (median, most) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    println!("  {what}: {median:?} in the middle, 99 of 100 within {most:?}");
}
