//! One system's pool with everything that belongs to it: the core's decisions made true.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::builds::Builds;
use super::counters::Counters;
use super::events::{Events, Happening};
use super::forecast::SystemForecast;
use super::report::SessionReport;
use super::session::{ManagedSession, watch_session};
use super::status::{BuildView, InputsView};
use super::supervisor::{Secrets, VmCommand, VmNews};
use super::ticket::{Grant, InputsTaker, NewSession, SessionRequest, SessionUpdate};
use super::worked::WorkedDesk;
use super::{News, SessionNews, VmFactory};
use crate::activation::Handover;
use crate::nix::{System, slot};
use crate::pool::claim::{Outputs, Purpose};
use crate::pool::policy::{BuildLimits, Policy, Share};
use crate::pool::shape::Shape;
use crate::pool::{Action, Event, Pool, SessionId, VmId};
use crate::store::HostStore;
use crate::vm::{Hop, VmBackend};

pub(super) struct ManagedSystem<B> {
    pub(super) system: System,
    pub(super) pool: Pool,
    pub(super) slots_per_vm: usize,
    pub(super) share: Share,
    limits: BuildLimits,
    /// Of each VM.
    pub(super) memory_mib: u64,
    /// How long the VM of a failed build is kept.
    keep_failed: Option<Duration>,
    pub(super) factory: VmFactory<B>,
    pub(super) news: mpsc::UnboundedSender<News>,
    pub(super) builds: Builds,
    pub(super) events: Events,
    pub(super) vms: BTreeMap<VmId, ManagedVm>,
    pub(super) sessions: BTreeMap<SessionId, ManagedSession>,
    /// What is counted here; `builds` counts its own.
    pub(super) counters: Counters,
    /// Whether memory held a VM back when it was last looked at.
    pub(super) is_short: bool,
    pub(super) handover: Handover,
    /// Where it is told what sessions have had built, if somebody wants to know.
    pub(super) worked: Option<WorkedDesk>,
    pub(super) forecast: Option<SystemForecast>,
    /// Whether starts had failed for long then.
    pub(super) is_degraded: bool,
}

pub(super) struct ManagedVm {
    pub(super) name: String,
    pub(super) shape: Shape,
    pub(super) stage: String,
    pub(super) console_log: PathBuf,
    pub(super) started: Instant,
    pub(super) ready: Option<Instant>,
    pub(super) is_paused: bool,
    pub(super) pid: Option<u32>,
    /// Why the manager has ended it, where its clients are to know.
    pub(super) ended_because: Option<String>,
    pub(super) commands: mpsc::UnboundedSender<VmCommand>,
}

impl<B: VmBackend> ManagedSystem<B> {
    pub(super) fn new(
        system: System,
        policy: Policy,
        factory: VmFactory<B>,
        news: mpsc::UnboundedSender<News>,
        builds: Builds,
    ) -> Self {
        let slots_per_vm = policy.slots_per_vm.get() as usize;
        let (share, limits) = (policy.share, policy.build_limits);
        let (memory_mib, keep_failed) = (policy.memory_mib, policy.keep_failed);
        let (vms, sessions) = (BTreeMap::new(), BTreeMap::new());
        Self {
            system,
            forecast: SystemForecast::new(&policy),
            pool: Pool::new(policy),
            slots_per_vm,
            share,
            limits,
            memory_mib,
            keep_failed,
            factory,
            news,
            events: builds.events().clone(),
            builds,
            vms,
            sessions,
            counters: Counters::default(),
            is_short: false,
            handover: Handover::default(),
            worked: None,
            is_degraded: false,
        }
    }

    /// The store that its VMs may see.
    pub(super) fn store(&self) -> Option<&HostStore> {
        self.factory.store.as_deref()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let look = self.forecast.as_ref().and_then(SystemForecast::look_at);
        self.pool.deadline().into_iter().chain(look).min()
    }

    /// The builds that run and the last that ended.
    pub(super) fn builds(&self) -> Vec<BuildView> {
        self.builds.views()
    }

    pub(super) fn tell_closed(&self, id: SessionId) {
        self.events
            .tell(|| Happening::SessionClosed { session: id.0 });
    }

    pub(super) fn is_down(&self) -> bool {
        self.pool.is_down()
    }

    /// Lets the core decide and does what it says.
    pub(super) fn handle(&mut self, now: Instant, event: Event) {
        let actions = self.pool.handle(now, event);
        self.tell_decisions();
        for action in actions {
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
        self.events.tell(|| Happening::SessionOpened {
            session: id.0,
            system: self.system,
            slot: request.slot.clone(),
            client: request.client.clone(),
        });
        let session = ManagedSession {
            request,
            updates,
            unfetched,
            look_up,
            opened: now,
            vm: None,
            fetch_only: false,
            granted: None,
            has_built: false,
            is_over: false,
            returns: 0,
            activity: String::new(),
            building: Vec::new(),
            inputs: None,
        };
        self.counters.sessions += 1;
        let claim = session.claim();
        if claim.purpose == Purpose::Build && claim.share == self.share {
            // VMs that are kept ready are of this kind.
            self.forecast.iter_mut().for_each(SystemForecast::arrived);
        }
        self.sessions.insert(id, session);
        self.handle(now, Event::SessionOpened(id, claim));
    }

    fn perform(&mut self, now: Instant, action: Action) {
        match action {
            Action::Boot(vm, shape) => self.boot(now, vm, shape),
            Action::Assign {
                session,
                vm,
                fetch_only,
            } => {
                let mut secrets = Secrets(false);
                if let Some(managed) = self.sessions.get_mut(&session) {
                    managed.vm = Some(vm);
                    managed.fetch_only = fetch_only;
                    "connecting".clone_into(&mut managed.activity);
                    secrets = Secrets(managed.request.secrets);
                }
                self.command(vm, VmCommand::Open(session, secrets));
            }
            Action::Reject { session, reason } => self.reject(session, &reason),
            Action::PowerDown(vm) => self.command(vm, VmCommand::PowerDown),
            Action::Kill(vm) => self.command(vm, VmCommand::Kill),
        }
    }

    pub(super) fn vm_name(&self, id: VmId) -> String {
        slot::vm_name(self.system, id.0)
    }

    pub(super) fn command(&self, vm: VmId, command: VmCommand) {
        if let Some(vm) = self.vms.get(&vm) {
            // A supervisor that has ended has said so, or is about to.
            let _ = vm.commands.send(command);
        }
    }

    pub(super) fn vm_news(&mut self, now: Instant, id: VmId, news: VmNews) {
        match news {
            VmNews::Stage(stage) => {
                if let Some(vm) = self.vms.get_mut(&id) {
                    vm.stage = stage;
                }
            }
            VmNews::Ready(pid) => self.vm_ready(now, id, pid),
            VmNews::Paused => self.set_paused(id, true),
            VmNews::Resumed => self.set_paused(id, false),
            VmNews::PauseFailed(error) => {
                warn!(
                    vm = self.vm_name(id),
                    error, "the VM cannot be paused and runs on"
                );
            }
            VmNews::HopOpened(session, hop, inputs) => {
                self.hop_opened(now, id, session, hop, inputs);
            }
            VmNews::InputsGiven(session, view) => self.inputs_given(session, view),
            VmNews::HopFailed(session, error) => {
                // The VM is about to end, and what becomes of the session is decided then.
                warn!(
                    vm = self.vm_name(id),
                    session = session.0,
                    error,
                    "no way into the VM"
                );
            }
            // What somebody has put into a VM that was named stays, as long as it is that client's.
            VmNews::Worn if self.pool.is_pinned(id) => {}
            VmNews::Worn => {
                let vm = self.vm_name(id);
                info!(
                    vm,
                    "the disk of the VM is nearly full: it takes no further build"
                );
                self.handle(now, Event::Worn(id));
            }
            VmNews::OutOfMemory(process) => self.out_of_memory(id, &process),
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

    /// A session that has gone meanwhile leaves the hop to be dropped here, which closes it.
    fn hop_opened(
        &mut self,
        now: Instant,
        id: VmId,
        session: SessionId,
        hop: Hop,
        inputs: Option<InputsTaker>,
    ) {
        let (Some(session), Some(vm)) = (self.sessions.get_mut(&session), self.vms.get(&id)) else {
            return;
        };
        session.granted = Some(now);
        if !session.is_over {
            let waited = now.saturating_duration_since(session.opened);
            self.counters.waits.add(waited);
        }
        let taker = inputs.filter(|_| !session.fetch_only);
        let inputs = session.look_up.take().zip(taker);
        session.tell(SessionUpdate::Granted(Grant {
            vm: vm.name.clone(),
            hop,
            fetch_only: session.fetch_only,
            inputs: inputs
                .map(|(look_up, taker)| look_up.hand_over(taker))
                .unwrap_or_default(),
            limits: self.limits,
        }));
    }

    fn inputs_given(&mut self, session: SessionId, view: InputsView) {
        info!(
            session = session.0,
            asked = view.asked,
            shared = view.shared,
            "inputs"
        );
        self.counters.inputs_asked += view.asked as u64;
        self.counters.inputs_shared += view.shared as u64;
        if let Some(session) = self.sessions.get_mut(&session) {
            session.inputs = Some(view);
        }
    }

    fn vm_ready(&mut self, now: Instant, id: VmId, pid: Option<u32>) {
        if let Some(vm) = self.vms.get_mut(&id) {
            let boot = now.saturating_duration_since(vm.started);
            self.counters.starts.add(boot);
            let boot = boot.as_millis();
            info!(vm = vm.name, boot_ms = boot, "VM ready");
            self.events.tell(|| Happening::VmReady {
                vm: vm.name.clone(),
                boot_ms: u64::try_from(boot).unwrap_or(u64::MAX),
            });
            vm.ready = Some(now);
            vm.pid = pid;
            vm.stage.clear();
        }
        self.handle(now, Event::VmReady(id));
    }

    fn set_paused(&mut self, id: VmId, is_paused: bool) {
        if let Some(vm) = self.vms.get_mut(&id) {
            debug!(vm = vm.name, is_paused, "VM");
            vm.is_paused = is_paused;
        }
    }

    pub(super) fn session_news(&mut self, now: Instant, id: SessionId, news: SessionNews) {
        let name = |vm| self.vm_name(vm);
        let vm = self.sessions.get(&id).and_then(|session| session.vm);
        let vm_name = vm.map(name).unwrap_or_default();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        match news {
            SessionNews::Report(report, _place) => {
                debug!(session = id.0, ?report, "session");
                self.builds.note(id, session, &vm_name, &report);
                if let (SessionReport::BuildBegan(_), Some(time)) = (&report, self.keep_failed) {
                    let time = humantime::format_duration(time);
                    session.tell(SessionUpdate::Note(format!(
                        "if this build fails, its VM is kept for {time}: `xpool ssh {vm_name}`; its directory is in /tmp or /nix/var/nix/builds"
                    )));
                }
                let outputs = session.outputs_event(id, &report);
                session.note(report);
                if let Some(event) = outputs {
                    self.handle(now, event);
                }
            }
            SessionNews::Dropped => {
                info!(session = id.0, "session closed");
                session.is_over = true;
                if let Some(desk) = &self.worked {
                    desk.note(now, self.system, session);
                }
                self.builds.session_ended(id, "the client left");
                self.events
                    .tell(|| Happening::SessionClosed { session: id.0 });
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
}
