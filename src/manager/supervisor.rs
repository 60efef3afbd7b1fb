//! One task per VM: boot it, open sessions in it, stop it, and tell the manager. Decides nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::rest::{REST_AFTER, RestingVm};
use super::sharing::Sharing;
use super::shell::{AfterShell, ShellOrder, Shells};
use super::status::InputsView;
use super::ticket::InputsTaker;
use crate::pool::{Exit, Retry, SessionId};
use crate::vm::{Hop, RunningVm, VmBackend, VmExit, VmSpec};

/// How long a guest may take to close a session's port after its client has gone. Killing a build's processes takes an
/// emulated guest a second or two; a guest that needs this long hangs.
const RELEASE_DEADLINE: Duration = Duration::from_secs(30);

/// What the manager tells a VM's supervisor.
#[derive(Debug)]
pub(super) enum VmCommand {
    /// Open a session on a free slot.
    Open(SessionId),
    /// The session is over; its slot can be freed.
    Release(SessionId),
    /// Open a shell for a person.
    Shell(ShellOrder),
    /// Shut down.
    PowerDown,
    /// End at once.
    Kill,
}

/// What a VM's supervisor tells the manager.
#[derive(Debug)]
pub(super) enum VmNews {
    /// The boot has come to this.
    Stage(String),
    /// It can serve; the process that runs it.
    Ready(Option<u32>),
    /// Its processors were stopped: nothing wants it now.
    Paused,
    /// They could not be stopped, and run on.
    PauseFailed(String),
    /// They go on.
    Resumed,
    /// A session's way in is open, and inputs may be handed over there.
    HopOpened(SessionId, Hop, Option<InputsTaker>),
    /// A session's inputs are in the guest, or some of them.
    InputsGiven(SessionId, InputsView),
    /// A session's way in could not be opened; the VM is being ended.
    HopFailed(SessionId, String),
    /// A session's slot can be used again.
    SlotFree(SessionId),
    /// The VM is gone. The last news of it.
    Ended(Exit),
}

/// Makes the specification of a VM with the given name; may take its time. An error cannot be helped by trying again.
pub(super) type MakeSpec = Box<dyn FnOnce() -> anyhow::Result<VmSpec> + Send>;

/// Runs one VM from its start to its end, and tells of that end whatever happens.
pub(super) async fn supervise<B: VmBackend>(
    backend: Arc<B>,
    make_spec: MakeSpec,
    commands: mpsc::UnboundedReceiver<VmCommand>,
    news: impl Fn(VmNews) + Clone + Send + Sync + 'static,
) {
    let life = tokio::spawn(live(backend, make_spec, commands, news.clone()));
    let exit = match life.await {
        Ok(exit) => exit,
        // With the task its VM is gone.
        Err(panic) => failed(&panic.into(), Retry::Later),
    };
    news(VmNews::Ended(exit));
}

async fn live<B: VmBackend>(
    backend: Arc<B>,
    make_spec: MakeSpec,
    mut commands: mpsc::UnboundedReceiver<VmCommand>,
    news: impl Fn(VmNews) + Clone + Send + Sync + 'static,
) -> Exit {
    match start(&*backend, make_spec, &mut commands, &news).await {
        Ok(Started { vm, pauses, store }) => {
            news(VmNews::Ready(vm.pid()));
            serve(Arc::new(vm), pauses, store, commands, &news).await
        }
        Err(exit) => exit,
    }
}

/// A VM that can serve.
struct Started<V> {
    vm: V,
    /// Whether it is paused while nobody is in it.
    pauses: bool,
    /// The folder of store paths that its guest sees.
    store: Option<PathBuf>,
}

async fn start<B: VmBackend>(
    backend: &B,
    make_spec: MakeSpec,
    commands: &mut mpsc::UnboundedReceiver<VmCommand>,
    news: &(impl Fn(VmNews) + Clone + Send + Sync + 'static),
) -> Result<Started<B::Vm>, Exit> {
    let spec = match tokio::task::spawn_blocking(make_spec).await {
        Ok(Ok(spec)) => spec,
        Ok(Err(error)) => return Err(failed(&error, Retry::Pointless)),
        Err(panic) => return Err(failed(&panic.into(), Retry::Pointless)),
    };
    let (pauses, store) = (spec.pauses, spec.store.clone());
    let abort = CancellationToken::new();
    let tell = news.clone();
    let progress = move |stage: &str| tell(VmNews::Stage(stage.to_owned()));
    let mut boot = std::pin::pin!(backend.boot(spec, &progress, abort.clone()));
    loop {
        tokio::select! {
            booted = &mut boot => {
                return match booted {
                    Ok(vm) => Ok(Started { vm, pauses, store }),
                    Err(_) if abort.is_cancelled() => Err(Exit::Stopped),
                    Err(error) => Err(failed(&error, Retry::Later)),
                };
            }
            command = commands.recv(), if !abort.is_cancelled() => match command {
                Some(VmCommand::PowerDown | VmCommand::Kill) | None => abort.cancel(),
                // The manager opens sessions and shells only in VMs that are ready.
                Some(VmCommand::Open(_) | VmCommand::Release(_) | VmCommand::Shell(_)) => {}
            },
        }
    }
}

fn failed(error: &anyhow::Error, retry: Retry) -> Exit {
    Exit::Failed {
        reason: format!("{error:#}"),
        retry,
    }
}

async fn serve<V: RunningVm>(
    vm: Arc<V>,
    pauses: bool,
    store: Option<PathBuf>,
    mut commands: mpsc::UnboundedReceiver<VmCommand>,
    news: &(impl Fn(VmNews) + Clone + Send + Sync + 'static),
) -> Exit {
    let resting = Arc::new(RestingVm::new(vm.clone(), news.clone()));
    let sharing = Arc::new(Sharing::new(store));
    let mut slots = Slots::default();
    let mut sessions = JoinSet::new();
    let mut shells = Shells::default();
    // Pauses and ends that are under way. They wait for the VM's monitor, and nothing waits for them.
    let mut errands = JoinSet::new();
    // Hops that are opened before somebody asks for them. The VM runs meanwhile.
    let mut aheads = JoinSet::new();
    let idle_now = || pauses.then(|| Instant::now() + REST_AFTER);
    let mut rest_at = idle_now();
    // Why the VM has to go, when that is not its own or the manager's doing.
    let mut broken: Option<String> = None;
    let exit = loop {
        tokio::select! {
            exit = vm.ended() => break exit,
            command = commands.recv() => match command {
                Some(VmCommand::Open(session)) => {
                    rest_at = None;
                    shells.session_begins();
                    let (slot, release) = slots.take(session);
                    sessions.spawn(serve_session(resting.clone(), sharing.clone(), slot, session, release, news.clone()));
                }
                Some(VmCommand::Release(session)) => {
                    shells.session_ends();
                    slots.release(session);
                }
                Some(VmCommand::Shell(order)) => {
                    rest_at = None;
                    shells.open(resting.clone(), order);
                }
                Some(VmCommand::PowerDown) => {
                    rest_at = None;
                    errands.spawn(power_down(resting.clone()));
                }
                Some(VmCommand::Kill) | None => vm.kill(),
            },
            Some(Ok((session, ended))) = sessions.join_next() => {
                let slot = slots.free(session);
                match ended {
                    Ok(()) => {
                        news(VmNews::SlotFree(session));
                        if let Some(slot) = slot {
                            aheads.spawn(open_ahead(resting.clone(), slot));
                        }
                    }
                    Err(error) => {
                        // A VM that has ended closes no port, and its end says why.
                        if let Some(exit) = vm.ended().now_or_never() {
                            break exit;
                        }
                        warn!(session = session.0, error, "the VM does not do what it should and is ended");
                        broken.get_or_insert(error);
                        vm.kill();
                    }
                }
                if sessions.is_empty() && shells.is_empty() {
                    rest_at = idle_now();
                }
            }
            after = shells.next_end() => {
                // Its own session is one of them.
                if after == AfterShell::VmEnds && sessions.len() <= 1 {
                    vm.kill();
                }
                if sessions.is_empty() && shells.is_empty() {
                    rest_at = idle_now();
                }
            }
            () = at(rest_at) => {
                rest_at = None;
                errands.spawn(rest(resting.clone()));
            }
            Some(_) = errands.join_next() => {}
            Some(_) = aheads.join_next() => {
                if sessions.is_empty() && shells.is_empty() {
                    rest_at = idle_now();
                }
            }
        }
    };
    // A spent VM is killed before its last session is released.
    while let Ok(command) = commands.try_recv() {
        if let VmCommand::Release(_) = command {
            shells.session_ends();
        }
    }
    shells.vm_ended(&exit).await;
    sessions.shutdown().await;
    errands.shutdown().await;
    aheads.shutdown().await;
    exit_of(exit, broken)
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

async fn power_down<V: RunningVm, N: Fn(VmNews)>(vm: Arc<RestingVm<V, N>>) {
    vm.power_down().await;
}

async fn serve_session<V: RunningVm, N: Fn(VmNews)>(
    vm: Arc<RestingVm<V, N>>,
    sharing: Arc<Sharing>,
    slot: u32,
    session: SessionId,
    mut release: oneshot::Receiver<()>,
    news: impl Fn(VmNews) + Send + Sync,
) -> (SessionId, Result<(), String>) {
    let hop = match vm.enter().await {
        Ok(()) => vm.vm().open_hop(slot).await,
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
