//! One task per VM: boot it, open sessions in it, stop it, and tell the manager. Decides nothing.

mod serving;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use serving::Serving;

use super::shell::ShellOrder;
use super::status::InputsView;
use super::ticket::InputsTaker;
use crate::pool::{Exit, Retry, SessionId};
use crate::vm::{Hop, RunningVm as _, VmBackend, VmSpec};

/// Whether a session's builds may know private names of this machine's network, and passwords.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Secrets(pub(super) bool);

/// What the manager tells a VM's supervisor.
#[derive(Debug)]
pub(super) enum VmCommand {
    /// Open a session on a free slot; its builds may know secrets, or not.
    Open(SessionId, Secrets),
    /// The session is over; its slot can be freed.
    Release(SessionId),
    /// Open a shell for a person.
    Shell(ShellOrder),
    /// Set the guest's clock, which has stood still with the host's.
    SetClock,
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
    /// The guest's kernel has killed a process of this name for want of memory.
    OutOfMemory(String),
    /// Another build may not find enough room on its disk.
    Worn,
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
            Serving::new(vm, pauses, store, news).run(commands).await
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
                Some(VmCommand::SetClock | VmCommand::Open(..) | VmCommand::Release(_) | VmCommand::Shell(_)) => {}
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
