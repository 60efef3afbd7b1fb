//! One system's pool with everything that belongs to it: the core's decisions made true.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::session::{ManagedSession, watch_session};
use super::supervisor::{VmCommand, VmNews, supervise};
use super::ticket::{Grant, NewSession, SessionRequest, SessionUpdate};
use super::{News, SessionNews, VmFactory, waiting};
use crate::nix::System;
use crate::pool::budget::Shortage;
use crate::pool::claim::Outputs;
use crate::pool::policy::{Policy, Share};
use crate::pool::{Action, Event, Exit, Pool, Rejection, SessionId, VmId};
use crate::store::HostStore;
use crate::vm::VmBackend;

pub(super) struct ManagedSystem<B> {
    pub(super) system: System,
    pub(super) pool: Pool,
    slots_per_vm: usize,
    pub(super) share: Share,
    factory: VmFactory<B>,
    news: mpsc::UnboundedSender<News>,
    pub(super) vms: BTreeMap<VmId, ManagedVm>,
    pub(super) sessions: BTreeMap<SessionId, ManagedSession>,
    /// Whether memory held a VM back when it was last looked at.
    is_short: bool,
}

pub(super) struct ManagedVm {
    pub(super) name: String,
    pub(super) share: Share,
    pub(super) stage: String,
    pub(super) console_log: PathBuf,
    pub(super) started: Instant,
    pub(super) ready: Option<Instant>,
    pub(super) is_paused: bool,
    pub(super) pid: Option<u32>,
    commands: mpsc::UnboundedSender<VmCommand>,
}

impl<B: VmBackend> ManagedSystem<B> {
    pub(super) fn new(
        system: System,
        policy: Policy,
        factory: VmFactory<B>,
        news: mpsc::UnboundedSender<News>,
    ) -> Self {
        let slots_per_vm = policy.slots_per_vm.get() as usize;
        let share = policy.share;
        let (vms, sessions) = (BTreeMap::new(), BTreeMap::new());
        Self {
            system,
            pool: Pool::new(policy),
            slots_per_vm,
            share,
            factory,
            news,
            vms,
            sessions,
            is_short: false,
        }
    }

    /// The store that its VMs may see.
    pub(super) fn store(&self) -> Option<&HostStore> {
        self.factory.store.as_deref()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.pool.deadline()
    }

    pub(super) fn is_down(&self) -> bool {
        self.pool.is_down()
    }

    /// Lets the core decide and does what it says.
    pub(super) fn handle(&mut self, now: Instant, event: Event) {
        for action in self.pool.handle(now, event) {
            self.perform(now, action);
        }
    }

    pub(super) fn open(&mut self, now: Instant, id: SessionId, session: NewSession) {
        let NewSession {
            request,
            updates,
            reports,
            unfetched,
            look_up,
        } = session;
        // No key sees more than the pool shows.
        let share = request.share.and(self.share);
        let mut request = SessionRequest { share, ..request };
        // They are looked for, or nobody does.
        drop(request.first.take_inputs());
        info!(
            session = id.0,
            slot = request.slot,
            client = request.client,
            "session opened"
        );
        tokio::spawn(watch_session(
            self.system,
            id,
            updates.clone(),
            reports,
            self.news.clone(),
        ));
        let session = ManagedSession {
            request,
            updates,
            unfetched,
            look_up,
            opened: now,
            vm: None,
            fetch_only: false,
            has_hop: false,
            returns: 0,
            activity: String::new(),
            inputs: None,
        };
        let claim = session.claim();
        self.sessions.insert(id, session);
        self.handle(now, Event::SessionOpened(id, claim));
    }

    fn perform(&mut self, now: Instant, action: Action) {
        match action {
            Action::Boot(vm, share) => self.boot(now, vm, share),
            Action::Assign {
                session,
                vm,
                fetch_only,
            } => {
                if let Some(managed) = self.sessions.get_mut(&session) {
                    managed.vm = Some(vm);
                    managed.fetch_only = fetch_only;
                    "connecting".clone_into(&mut managed.activity);
                }
                self.command(vm, VmCommand::Open(session));
            }
            Action::Reject { session, reason } => self.reject(session, &reason),
            Action::PowerDown(vm) => self.command(vm, VmCommand::PowerDown),
            Action::Kill(vm) => self.command(vm, VmCommand::Kill),
        }
    }

    fn boot(&mut self, now: Instant, id: VmId, share: Share) {
        let name = self.vm_name(id);
        info!(
            vm = name,
            share = share.as_str(),
            demand = self.pool.status(now).demand,
            live = self.vms.len() + 1,
            "starting a VM"
        );
        let (commands, receiver) = mpsc::unbounded_channel();
        let (news, system) = (self.news.clone(), self.system);
        let tell = move |told| {
            // The manager outlives its VMs; without it there is nobody to tell.
            let _ = news.send(News::Vm(system, id, told));
        };
        let (spec, spec_name) = (self.factory.spec.clone(), name.clone());
        let make_spec = Box::new(move || spec(system, &spec_name, share));
        tokio::spawn(supervise(
            self.factory.backend.clone(),
            make_spec,
            receiver,
            tell,
        ));
        let console_log = (self.factory.console_log)(&name);
        let stage = "checking the image".to_owned();
        self.vms.insert(
            id,
            ManagedVm {
                name,
                share,
                stage,
                console_log,
                started: now,
                ready: None,
                is_paused: false,
                pid: None,
                commands,
            },
        );
    }

    pub(super) fn vm_name(&self, id: VmId) -> String {
        format!("{}-{}", self.system.cpu(), id.0)
    }

    pub(super) fn command(&self, vm: VmId, command: VmCommand) {
        if let Some(vm) = self.vms.get(&vm) {
            // A supervisor that has ended has said so, or is about to.
            let _ = vm.commands.send(command);
        }
    }

    fn reject(&mut self, id: SessionId, reason: &Rejection) {
        let Some(session) = self.sessions.remove(&id) else {
            return;
        };
        warn!(session = id.0, %reason, "session rejected");
        let cpu = self.system.cpu();
        let text = match reason {
            Rejection::Down => format!(
                "the {} pool is down or going down: start it with `xpool up {cpu}`",
                self.system
            ),
            _ => reason.to_string(),
        };
        session.tell(SessionUpdate::Rejected(text));
    }

    pub(super) fn vm_news(&mut self, now: Instant, id: VmId, news: VmNews) {
        match news {
            VmNews::Stage(stage) => {
                if let Some(vm) = self.vms.get_mut(&id) {
                    vm.stage = stage;
                }
            }
            VmNews::Ready(pid) => {
                if let Some(vm) = self.vms.get_mut(&id) {
                    let boot = now.saturating_duration_since(vm.started);
                    info!(vm = vm.name, boot_ms = boot.as_millis(), "VM ready");
                    vm.ready = Some(now);
                    vm.pid = pid;
                    vm.stage.clear();
                }
                self.handle(now, Event::VmReady(id));
            }
            VmNews::Paused => self.set_paused(id, true),
            VmNews::Resumed => self.set_paused(id, false),
            VmNews::PauseFailed(error) => {
                warn!(
                    vm = self.vm_name(id),
                    error, "the VM cannot be paused and runs on"
                );
            }
            VmNews::HopOpened(session, hop, inputs) => {
                // A session that has gone meanwhile leaves the hop to be dropped here, which closes it.
                if let (Some(session), Some(vm)) =
                    (self.sessions.get_mut(&session), self.vms.get(&id))
                {
                    session.has_hop = true;
                    let taker = inputs.filter(|_| !session.fetch_only);
                    let inputs = session.look_up.take().zip(taker);
                    session.tell(SessionUpdate::Granted(Grant {
                        vm: vm.name.clone(),
                        hop,
                        fetch_only: session.fetch_only,
                        inputs: inputs
                            .map(|(look_up, taker)| look_up.hand_over(taker))
                            .unwrap_or_default(),
                    }));
                }
            }
            VmNews::InputsGiven(session, view) => {
                info!(
                    session = session.0,
                    asked = view.asked,
                    shared = view.shared,
                    "inputs"
                );
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.inputs = Some(view);
                }
            }
            VmNews::HopFailed(session, error) => {
                // The VM is about to end, and what becomes of the session is decided then.
                warn!(
                    vm = self.vm_name(id),
                    session = session.0,
                    error,
                    "no way into the VM"
                );
            }
            VmNews::SlotFree(session) => {
                let outputs = self
                    .sessions
                    .remove(&session)
                    .map_or(Outputs::Fetched, |session| session.outputs());
                self.handle(now, Event::SessionClosed(session, outputs));
            }
            VmNews::Ended(exit) => self.vm_ended(now, id, exit),
        }
    }

    fn set_paused(&mut self, id: VmId, is_paused: bool) {
        if let Some(vm) = self.vms.get_mut(&id) {
            debug!(vm = vm.name, is_paused, "VM");
            vm.is_paused = is_paused;
        }
    }

    fn vm_ended(&mut self, now: Instant, id: VmId, exit: Exit) {
        let Some(vm) = self.vms.remove(&id) else {
            return;
        };
        let cause = match &exit {
            Exit::Stopped => "it was stopped".to_owned(),
            Exit::Failed { reason, .. } => reason.clone(),
        };
        match exit {
            Exit::Stopped => info!(vm = vm.name, "VM stopped"),
            Exit::Failed { .. } => warn!(vm = vm.name, cause, "VM ended by itself"),
        }
        let (served, others): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.sessions)
            .into_iter()
            .partition(|(_, session)| session.vm == Some(id));
        self.sessions = others;
        self.handle(now, Event::VmExited(id, exit));
        for (session_id, session) in served {
            if session.can_be_returned() {
                self.return_session(now, session_id, session);
            } else {
                let (vm, log) = (vm.name.clone(), vm.console_log.clone());
                session.tell(SessionUpdate::VmGone {
                    vm,
                    cause: cause.clone(),
                    log,
                });
            }
        }
    }

    /// Lets a session that has not used its VM wait for another one.
    fn return_session(&mut self, now: Instant, id: SessionId, mut session: ManagedSession) {
        session.vm = None;
        session.returns += 1;
        let claim = session.claim();
        self.sessions.insert(id, session);
        self.handle(now, Event::SessionReturned(id, claim));
    }

    pub(super) fn session_news(&mut self, now: Instant, id: SessionId, news: SessionNews) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        match news {
            SessionNews::Report(report) => {
                debug!(session = id.0, ?report, "session");
                session.note(report);
            }
            SessionNews::Dropped => {
                info!(session = id.0, "session closed");
                if let Some(vm) = session.vm {
                    "ending".clone_into(&mut session.activity);
                    let outputs = session.outputs();
                    self.handle(now, Event::SessionLeft(id, outputs));
                    self.command(vm, VmCommand::Release(id));
                } else {
                    self.sessions.remove(&id);
                    self.handle(now, Event::SessionClosed(id, Outputs::Fetched));
                }
            }
        }
    }

    /// Says once when memory begins to hold VMs back, and when it no longer does.
    fn log_shortage(&mut self, shortage: Option<Shortage>) {
        let was_short = std::mem::replace(&mut self.is_short, shortage.is_some());
        match shortage {
            Some(shortage) if !was_short => warn!(
                system = %self.system,
                available_mib = shortage.available_mib,
                needed_mib = shortage.needed_mib,
                "not enough memory for another VM"
            ),
            None if was_short => info!(system = %self.system, "memory holds no VM back any more"),
            _ => {}
        }
    }

    /// Tells the sessions that wait what they wait for, where that has changed.
    pub(super) fn tell_waiting(&mut self, now: Instant) {
        let pool = self.pool.status(now);
        let vms = self.vm_views(&pool, now);
        self.log_shortage(pool.shortage);
        let mut ahead: Vec<Share> = Vec::new();
        for queued in &pool.queued {
            let text = if let Some(home) = queued.home {
                waiting::for_home(&self.vm_name(home))
            } else {
                let text = waiting::text(&pool, &vms, queued.share, &ahead, self.slots_per_vm);
                ahead.push(queued.share);
                text
            };
            let Some(session) = self.sessions.get_mut(&queued.session) else {
                continue;
            };
            if session.activity != text {
                session.activity.clone_from(&text);
                session.tell(SessionUpdate::Waiting(text));
            }
        }
    }
}
