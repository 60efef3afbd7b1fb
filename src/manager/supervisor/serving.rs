//! A VM that can serve, until it has ended: sessions and shells in it, pauses in between.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{Secrets, VmCommand, VmNews};
use crate::manager::rest::{REST_AFTER, RestingVm};
use crate::manager::sharing::Sharing;
use crate::manager::shell::{AfterShell, Shells};
use crate::manager::ticket::InputsTaker;
use crate::pool::{Exit, Retry, SessionId};
use crate::vm::{Hop, RunningVm, VmExit};

/// How long a guest may take to close a session's port after its client has gone. Killing a build's processes takes an
/// emulated guest a second or two; a guest that needs this long hangs.
const RELEASE_DEADLINE: Duration = Duration::from_secs(30);

/// What a VM serves with, who is in it, and what is under way.
pub(super) struct Serving<V, N> {
    vm: Arc<V>,
    resting: Arc<RestingVm<V, N>>,
    sharing: Arc<Sharing>,
    news: N,
    slots: Slots,
    sessions: JoinSet<(SessionId, Result<(), String>)>,
    shells: Shells,
    /// Pauses and ends that are under way. They wait for the VM's monitor, and nothing waits for them.
    errands: JoinSet<()>,
    /// Hops that are opened before somebody asks for them. The VM runs meanwhile.
    aheads: JoinSet<()>,
    /// Whether all sessions so far may know secrets.
    may_know: Arc<AtomicBool>,
    /// Whether it is paused while nobody is in it.
    pauses: bool,
    /// When it is paused, if nobody comes until then.
    rest_at: Option<Instant>,
    /// Why the VM has to go, when that is not its own or the manager's doing.
    broken: Option<String>,
}

impl<V, N> Serving<V, N>
where
    V: RunningVm,
    N: Fn(VmNews) + Clone + Send + Sync + 'static,
{
    pub(super) fn new(vm: V, pauses: bool, store: Option<PathBuf>, news: N) -> Self {
        let vm = Arc::new(vm);
        let mut serving = Self {
            resting: Arc::new(RestingVm::new(vm.clone(), news.clone())),
            vm,
            sharing: Arc::new(Sharing::new(store)),
            news,
            slots: Slots::default(),
            sessions: JoinSet::new(),
            shells: Shells::default(),
            errands: JoinSet::new(),
            aheads: JoinSet::new(),
            may_know: Arc::new(AtomicBool::new(true)),
            pauses,
            rest_at: None,
            broken: None,
        };
        serving.rest_if_idle();
        serving
    }

    /// Does what it is told until the VM has ended.
    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<VmCommand>) -> Exit {
        let vm = self.vm.clone();
        let exit = loop {
            tokio::select! {
                exit = vm.ended() => break exit,
                command = commands.recv() => self.obey(command),
                process = vm.killed_for_memory() => (self.news)(VmNews::OutOfMemory(process)),
                Some(Ok((session, ended))) = self.sessions.join_next() => {
                    if let Err(exit) = self.session_ended(session, ended) {
                        break exit;
                    }
                }
                after = self.shells.next_end() => self.shell_ended(after),
                () = at(self.rest_at) => {
                    self.rest_at = None;
                    self.errands.spawn(rest(self.resting.clone()));
                }
                Some(_) = self.errands.join_next() => {}
                Some(_) = self.aheads.join_next() => self.rest_if_idle(),
            }
        };
        self.end(exit, commands).await
    }

    fn obey(&mut self, command: Option<VmCommand>) {
        match command {
            Some(VmCommand::Open(session, secrets)) => self.open_session(session, secrets),
            Some(VmCommand::Release(session)) => {
                self.shells.session_ends();
                self.slots.release(session);
            }
            Some(VmCommand::Shell(order)) => {
                self.rest_at = None;
                self.shells.open(self.resting.clone(), order);
            }
            Some(VmCommand::SetClock) => {
                self.errands.spawn(set_clock(self.resting.clone()));
            }
            Some(VmCommand::PowerDown) => {
                self.rest_at = None;
                self.errands.spawn(power_down(self.resting.clone()));
            }
            Some(VmCommand::Kill) | None => self.vm.kill(),
        }
    }

    fn open_session(&mut self, session: SessionId, secrets: Secrets) {
        self.rest_at = None;
        // What was in it for one that may not know them is not for the next one either.
        self.may_know.fetch_and(secrets.0, Ordering::AcqRel);
        self.shells.session_begins();
        let (slot, release) = self.slots.take(session);
        self.sessions.spawn(serve_session(
            self.resting.clone(),
            self.sharing.clone(),
            slot,
            session,
            self.may_know.clone(),
            release,
            self.news.clone(),
        ));
    }

    /// Frees a session's slot, or ends the VM that did not let it go; an error is the end of one that had ended before.
    fn session_ended(
        &mut self,
        session: SessionId,
        ended: Result<(), String>,
    ) -> Result<(), VmExit> {
        let slot = self.slots.free(session);
        match ended {
            Ok(()) => {
                if self.vm.is_worn() {
                    (self.news)(VmNews::Worn);
                }
                (self.news)(VmNews::SlotFree(session));
                if let Some(slot) = slot {
                    self.aheads.spawn(open_ahead(self.resting.clone(), slot));
                }
            }
            Err(error) => {
                // A VM that has ended closes no port, and its end says why.
                if let Some(exit) = self.vm.ended().now_or_never() {
                    return Err(exit);
                }
                warn!(
                    session = session.0,
                    error, "the VM does not do what it should and is ended"
                );
                self.broken.get_or_insert(error);
                self.vm.kill();
            }
        }
        self.rest_if_idle();
        Ok(())
    }

    fn shell_ended(&mut self, after: AfterShell) {
        // Its own session is one of them.
        if after == AfterShell::VmEnds && self.sessions.len() <= 1 {
            self.vm.kill();
        }
        self.rest_if_idle();
    }

    /// Has the VM paused in a moment, where nobody is in it.
    fn rest_if_idle(&mut self) {
        if self.sessions.is_empty() && self.shells.is_empty() {
            self.rest_at = self.pauses.then(|| Instant::now() + REST_AFTER);
        }
    }

    /// Ends what was still under way when the VM ended, with those told who were in it.
    async fn end(mut self, exit: VmExit, mut commands: mpsc::UnboundedReceiver<VmCommand>) -> Exit {
        // A spent VM is killed before its last session is released.
        while let Ok(command) = commands.try_recv() {
            if let VmCommand::Release(_) = command {
                self.shells.session_ends();
            }
        }
        self.shells.vm_ended(&exit).await;
        self.sessions.shutdown().await;
        self.errands.shutdown().await;
        self.aheads.shutdown().await;
        exit_of(exit, self.broken)
    }
}

/// A VM's end, as the pool is told of it.
fn exit_of(exit: VmExit, broken: Option<String>) -> Exit {
    let reason = match (exit, broken) {
        (_, Some(error)) => error,
        (VmExit::Died(cause), None) => cause,
        (VmExit::Stopped, None) => return Exit::Stopped,
    };
    Exit::Failed {
        reason,
        retry: Retry::Later,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn rest<V: RunningVm, N: Fn(VmNews)>(vm: Arc<RestingVm<V, N>>) {
    vm.rest().await;
}

/// Opens the next session's hop. Where that fails, the session tries again, and is told.
async fn open_ahead<V: RunningVm, N: Fn(VmNews)>(vm: Arc<RestingVm<V, N>>, slot: u32) {
    let opened = match vm.enter().await {
        Ok(()) => vm.vm().open_ahead(slot).await,
        Err(error) => Err(error),
    };
    if let Err(error) = opened {
        debug!(
            slot,
            error = format!("{error:#}"),
            "no hop was opened ahead"
        );
    }
    vm.leave().await;
}

async fn set_clock<V: RunningVm, N: Fn(VmNews)>(vm: Arc<RestingVm<V, N>>) {
    vm.set_clock().await;
}

async fn power_down<V: RunningVm, N: Fn(VmNews)>(vm: Arc<RestingVm<V, N>>) {
    vm.power_down().await;
}

async fn enter<V: RunningVm>(vm: &V, slot: u32, may_know: &AtomicBool) -> anyhow::Result<Hop> {
    vm.tell_names(may_know).await?;
    vm.open_hop(slot).await
}

async fn serve_session<V: RunningVm, N: Fn(VmNews)>(
    vm: Arc<RestingVm<V, N>>,
    sharing: Arc<Sharing>,
    slot: u32,
    session: SessionId,
    may_know: Arc<AtomicBool>,
    mut release: oneshot::Receiver<()>,
    news: impl Fn(VmNews) + Send + Sync,
) -> (SessionId, Result<(), String>) {
    let hop = match vm.enter().await {
        Ok(()) => enter(vm.vm(), slot, &may_know).await,
        Err(error) => Err(error),
    };
    let (taker, mut inputs) = InputsTaker::channel();
    match hop {
        Ok(hop) => {
            let taker = sharing.is_possible().then_some(taker);
            news(VmNews::HopOpened(session, hop, taker));
        }
        Err(error) => {
            let error = format!("no session could be opened in the guest: {error:#}");
            news(VmNews::HopFailed(session, error.clone()));
            return (session, Err(error));
        }
    }
    loop {
        tokio::select! {
            // An error means that the supervisor is gone, which ends this task as well.
            _ = &mut release => break,
            // What was begun is ended: nobody knows what a guest says next that was asked halfway.
            Some((inputs, given)) = inputs.recv() => {
                let view = sharing.give(vm.vm(), inputs).await;
                news(VmNews::InputsGiven(session, view));
                // A session that has gone does not want to know.
                let _ = given.send(());
            }
        }
    }
    debug!(
        session = session.0,
        slot, "waiting for the guest to close the session"
    );
    let released = tokio::time::timeout(RELEASE_DEADLINE, vm.vm().slot_released(slot)).await;
    let freed = match released {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!(
            "the guest did not close session port {slot}: {error:#}"
        )),
        Err(_) => {
            let seconds = RELEASE_DEADLINE.as_secs();
            Err(format!(
                "the guest did not close session port {slot} within {seconds} s"
            ))
        }
    };
    vm.leave().await;
    (session, freed)
}

/// Which session has which slot, and how to tell its task that it is over.
#[derive(Default)]
struct Slots(Vec<Option<(SessionId, Option<oneshot::Sender<()>>)>>);

impl Slots {
    /// The first free slot. The pool never gives a VM more sessions than it has slots.
    fn take(&mut self, session: SessionId) -> (u32, oneshot::Receiver<()>) {
        let (release, released) = oneshot::channel();
        let entry = Some((session, Some(release)));
        let index = self
            .0
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.0.len());
        if let Some(free) = self.0.get_mut(index) {
            *free = entry;
        } else {
            self.0.push(entry);
        }
        (u32::try_from(index).unwrap_or(u32::MAX), released)
    }

    fn release(&mut self, session: SessionId) {
        let entry = self
            .0
            .iter_mut()
            .flatten()
            .find(|(holder, _)| *holder == session);
        if let Some(release) = entry.and_then(|(_, release)| release.take()) {
            // The task may have ended already, with an error that is on its way.
            let _ = release.send(());
        }
    }

    /// Takes the slot back from a session; which one it is.
    fn free(&mut self, session: SessionId) -> Option<u32> {
        let has_it = |slot: &Option<(SessionId, _)>| {
            slot.as_ref().is_some_and(|(holder, _)| *holder == session)
        };
        let index = self.0.iter().position(has_it)?;
        self.0[index] = None;
        u32::try_from(index).ok()
    }
}
