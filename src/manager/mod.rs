//! The one task that owns the pools: takes events, asks the pure core, performs its actions.
//!
//! Everything that changes a pool happens here, one event after the other. Callers hold a [`ManagerHandle`]; VMs have a
//! supervisor task each; sessions have a ticket.

mod boot;
mod builds;
pub mod counters;
mod ended;
pub mod events;
pub mod forecast;
mod handle;
mod host_sleep;
mod look_up;
mod machine;
pub mod memory;
mod report;
mod rest;
mod session;
mod sharing;
pub mod shell;
mod short_of_memory;
pub mod status;
mod supervisor;
mod system;
mod telling;
pub mod ticket;
mod view;
mod waiting;
pub mod worked;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use builds::{BuildIds, Builds};
use events::Events;
use handle::Command;
pub use handle::{Downed, ManagerHandle, NoSuchVm};
use host_sleep::HostSleep;
use memory::{HostMemory, HostPressure};
use status::Status;
use supervisor::VmNews;
use system::ManagedSystem;
use ticket::{NewSession, SessionDesk, SessionReport};
use worked::WorkedDesk;

use crate::activation::Handover;
use crate::nix::System;
use crate::pool::budget::MachineBudget;
use crate::pool::policy::{Policy, Share};
use crate::pool::shape::Shape;
use crate::pool::{Down, Event, SessionId, VmId};
use crate::shutdown::Shutdown;
use crate::store::HostStore;
use crate::vm::{VmBackend, VmSpec};

/// Makes what it takes to run a VM of a system, by name, that sees this of the machine's store; an error says what is missing
/// and what to do.
pub type SpecMaker = dyn Fn(System, &str, Shape) -> anyhow::Result<VmSpec> + Send + Sync;

/// How the manager makes VMs.
pub struct VmFactory<B> {
    /// Starts them.
    pub backend: Arc<B>,
    /// The store that VMs see, where they see one.
    pub store: Option<Arc<HostStore>>,
    /// Called off the manager's task, so it may take its time.
    pub spec: Arc<SpecMaker>,
    /// Where the console log of a VM of this name is.
    pub console_log: Arc<dyn Fn(&str) -> PathBuf + Send + Sync>,
}

impl<B> Clone for VmFactory<B> {
    fn clone(&self) -> Self {
        Self {
            backend: self.backend.clone(),
            store: self.store.clone(),
            spec: self.spec.clone(),
            console_log: self.console_log.clone(),
        }
    }
}

/// Who waits for which systems to be down.
type DownWaiter = (Vec<System>, oneshot::Sender<Downed>);

/// Something that happened to a VM or a session, told by the tasks that the manager started.
#[derive(Debug)]
enum News {
    Vm(System, VmId, VmNews),
    Session(System, SessionId, SessionNews),
}

#[derive(Debug)]
enum SessionNews {
    /// This is done in it. Dropping the place lets it say more.
    Report(SessionReport, OwnedSemaphorePermit),
    /// Its front end has let go of it.
    Dropped,
}

/// The owner of all pools.
pub struct Manager<B: VmBackend> {
    systems: BTreeMap<System, ManagedSystem<B>>,
    new_sessions: mpsc::Receiver<NewSession>,
    commands: mpsc::Receiver<Command>,
    news: mpsc::UnboundedReceiver<News>,
    changes: watch::Sender<Status>,
    downs: Vec<DownWaiter>,
    /// Wishes that are noted, and whose callers are to see it in the next status.
    noted: Vec<oneshot::Sender<()>>,
    sessions: u64,
    memory: HostMemory,
    pressure: HostPressure,
    budget: MachineBudget,
    sleep: HostSleep,
    /// When this machine is looked at next, while there are VMs: its memory, and whether it has slept.
    host_look: Option<Instant>,
}

impl<B: VmBackend> Manager<B> {
    /// A manager for these pools, and the handle to it.
    pub fn new(
        policies: BTreeMap<System, Policy>,
        factory: &VmFactory<B>,
    ) -> (Self, ManagerHandle) {
        let (desk, new_sessions) = SessionDesk::channel();
        let shared = |(system, policy): (&System, &Policy)| {
            let store = factory.store.clone()?;
            (policy.share == Share::Host).then_some((*system, store))
        };
        let desk = desk.with_stores(policies.iter().filter_map(shared).collect());
        let (to_manager, commands) = mpsc::channel(64);
        // Unbounded, so that no task the manager waits for ever waits for the manager. Its senders are the tasks of VMs
        // and sessions, of which there is a bounded number. A VM says a few things per session, and a session that says much waits
        // until what it has said was heard.
        let (to_news, news) = mpsc::unbounded_channel();
        let (changes, watching) = watch::channel(Status::default());
        let (events, builds) = (Events::new(), BuildIds::default());
        let source = events.source();
        let systems = policies
            .into_iter()
            .map(|(system, policy)| {
                let builds = Builds::new(system, builds.clone(), events.clone());
                let (factory, news) = (factory.clone(), to_news.clone());
                let managed = ManagedSystem::new(system, policy, factory, news, builds);
                (system, managed)
            })
            .collect();
        let handle = ManagerHandle::new(desk, to_manager, watching, source);
        let manager = Self {
            systems,
            new_sessions,
            commands,
            news,
            changes,
            downs: Vec::new(),
            noted: Vec::new(),
            sessions: 0,
            memory: HostMemory::new("/proc/meminfo".into(), "/".into()),
            pressure: HostPressure {
                folder: "/proc/pressure".into(),
            },
            budget: MachineBudget::default(),
            sleep: HostSleep::of_machine(),
            host_look: None,
        };
        (manager, handle)
    }

    /// Reads the host's available memory from this file instead of `/proc/meminfo`.
    #[must_use]
    pub fn with_meminfo(mut self, meminfo: PathBuf) -> Self {
        self.memory = HostMemory::new(meminfo, "/nonexistent".into());
        self
    }

    /// Hears from there how long this machine has slept, instead of from the kernel.
    #[cfg(test)]
    fn with_sleep(mut self, asleep: impl Fn() -> std::time::Duration + Send + 'static) -> Self {
        self.sleep = HostSleep::by(asleep);
        self
    }

    /// Tells there what sessions have had built.
    #[must_use]
    pub fn with_record(mut self, desk: &WorkedDesk) -> Self {
        for system in self.systems.values_mut() {
            system.worked = Some(desk.clone());
        }
        self
    }

    /// Keeps to a budget of the whole machine.
    #[must_use]
    pub fn with_budget(self, budget: MachineBudget) -> Self {
        Self { budget, ..self }
    }

    /// Says nothing to those who wait where there is another manager for them.
    #[must_use]
    pub fn with_handover(mut self, handover: &Handover) -> Self {
        for system in self.systems.values_mut() {
            system.handover = handover.clone();
        }
        self
    }

    /// Runs until it was told to shut down and every VM is gone.
    pub async fn run(mut self, shutdown: Shutdown) {
        let systems: Vec<System> = self.systems.keys().copied().collect();
        for system in systems {
            // Starts the VMs that are always to be there.
            self.with_machine(system, |system| {
                system.handle(now(), Event::DeadlineReached);
            });
        }
        let (mut draining, mut killing) = (false, false);
        loop {
            self.after_each_event();
            if draining && self.systems.values().all(ManagedSystem::is_down) {
                self.keep_histories();
                return;
            }
            let deadline = self
                .systems
                .values()
                .filter_map(ManagedSystem::deadline)
                .chain(self.host_look)
                .min();
            tokio::select! {
                Some(session) = self.new_sessions.recv() => self.open(session),
                Some(command) = self.commands.recv() => self.command(command),
                Some(news) = self.news.recv() => self.take(news),
                () = until(deadline) => self.deadline_reached(),
                () = shutdown.drain.cancelled(), if !draining => {
                    draining = true;
                    self.down_all(Down::Drain);
                }
                () = shutdown.now.cancelled(), if !killing => {
                    (draining, killing) = (true, true);
                    self.down_all(Down::Now);
                }
            }
        }
    }

    fn open(&mut self, session: NewSession) {
        self.sessions += 1;
        let id = SessionId(self.sessions);
        self.with_machine(session.request.system, |system| {
            system.open(now(), id, session);
        });
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Up {
                system,
                count,
                reply,
            } => {
                self.with_machine(system, |system| system.handle(now(), Event::Up(count)));
                self.answer_downs(Downed::BroughtUp, |systems| systems.contains(&system));
                self.noted.push(reply);
            }
            Command::Down {
                systems,
                how,
                reply,
            } => {
                for system in &systems {
                    if let Some(system) = self.systems.get_mut(system) {
                        system.handle(now(), Event::Down(how));
                    }
                }
                self.downs.push((systems, reply));
            }
            Command::SeatGone { system, seat } => {
                self.with_machine(system, |system| {
                    system.handle(now(), Event::SeatGone(seat));
                });
            }
            Command::Drain { vm, reply } => {
                let _ = reply.send(self.drain(vm));
            }
            Command::Shell { vm, order } => self.open_shell(&vm, order),
            Command::Status { reply } => {
                let _ = reply.send(self.status_with_builds());
            }
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Vm(system, vm, news) => {
                self.with_machine(system, |system| system.vm_news(now(), vm, news));
            }
            News::Session(system, session, news) => {
                self.with_machine(system, |system| {
                    system.session_news(now(), session, news);
                });
            }
        }
    }

    fn deadline_reached(&mut self) {
        let now = now();
        self.look_at_host(now);
        let is_due = |system: &ManagedSystem<B>| system.deadline().is_some_and(|at| at <= now);
        let due: Vec<System> = self
            .systems
            .iter()
            .filter(|(_, system)| is_due(system))
            .map(|(name, _)| *name)
            .collect();
        for system in due {
            self.with_machine(system, |system| system.handle(now, Event::DeadlineReached));
        }
    }

    fn down_all(&mut self, how: Down) {
        for system in self.systems.values_mut() {
            system.handle(now(), Event::Down(how));
        }
    }

    fn after_each_event(&mut self) {
        self.make_room();
        self.watch_host(now());
        for system in self.systems.values_mut() {
            system.tell_waiting(now());
        }
        let down: Vec<System> = self
            .systems
            .iter()
            .filter(|(_, system)| system.is_down())
            .map(|(name, _)| *name)
            .collect();
        self.changes.send_replace(self.status());
        // Who has an answer and then looks sees nothing older.
        for reply in self.noted.drain(..) {
            // A caller that has gone does not want to know.
            let _ = reply.send(());
        }
        self.answer_downs(Downed::Down, |systems| {
            systems.iter().all(|name| down.contains(name))
        });
    }

    fn answer_downs(&mut self, answer: Downed, is_meant: impl Fn(&[System]) -> bool) {
        let waiters = std::mem::take(&mut self.downs).into_iter();
        let (meant, others): (Vec<_>, Vec<_>) = waiters.partition(|(systems, _)| is_meant(systems));
        self.downs = others;
        for (_, reply) in meant {
            // A caller that has gone does not want to know.
            let _ = reply.send(answer);
        }
    }

    fn status_with_builds(&self) -> Status {
        let builds = self.systems.values().map(ManagedSystem::builds);
        Status {
            builds: builds.flatten().collect(),
            ..self.status()
        }
    }

    fn status(&self) -> Status {
        Status {
            builds: Vec::new(),
            systems: self
                .systems
                .values()
                .map(|system| system.status(now()))
                .collect(),
        }
    }
}

/// The only place that reads the clock: tokio's, which tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
