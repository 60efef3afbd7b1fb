//! Shells for people in VMs. A shell is no session: the pool knows nothing of it, it takes no slot, and no VM is kept for it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::rest::RestingVm;
use super::supervisor::{VmCommand, VmNews};
use super::system::ManagedSystem;
use super::{Manager, NoSuchVm};
use crate::nix::System;
use crate::pool::{Event, VmId};
use crate::vm::{RunningVm, SHELL_STREAMS, Shell, ShellProgram, VmBackend, VmExit};

/// How long those whose shell's VM has ended may take to be told why.
const TELL_LIMIT: Duration = Duration::from_secs(1);

/// How long the VM of a shell that broke off may take to end: the guest's agent goes first.
const VM_END_LIMIT: Duration = Duration::from_secs(5);

/// What becomes of a VM after a shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterShell {
    /// It goes on with whatever it does.
    VmStays,
    /// It ends: it was there for the shell.
    VmEnds,
}

/// There is no shell, for this reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoShell(pub(super) String);

/// A shell that runs. Dropping its streams ends it.
#[derive(Debug)]
pub struct OpenShell {
    /// See [`Shell::streams`].
    pub streams: [UnixStream; SHELL_STREAMS],
    /// How it ended.
    pub ended: oneshot::Receiver<ShellEnd>,
}

/// How a shell ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShellEnd {
    /// By itself, with this exit status as a shell has it.
    Exited(i64),
    /// With its VM, of which this is to be said: `has had its build and is gone`.
    VmGone(String),
    /// Nobody knows.
    Lost,
}

/// A person's wish for a shell.
#[derive(Debug)]
pub(super) struct ShellOrder {
    pub(super) program: ShellProgram,
    pub(super) after: AfterShell,
    pub(super) reply: oneshot::Sender<Result<OpenShell, NoShell>>,
}

impl ShellOrder {
    fn refuse(self, why: String) {
        // Whoever asked may have gone.
        let _ = self.reply.send(Err(NoShell(why)));
    }
}

impl<B: VmBackend> Manager<B> {
    pub(super) fn open_shell(&self, name: &str, order: ShellOrder) {
        let found = |system: &ManagedSystem<B>| system.vm_of_name(name);
        match self
            .systems
            .values()
            .find_map(|system| Some((system, found(system)?)))
        {
            Some((system, vm)) => system.open_shell(vm, order),
            None => order.refuse(no_vm(&self.vm_names())),
        }
    }

    /// Takes the VM of this name out of service.
    pub(super) fn drain(&mut self, name: String) -> Result<(), NoSuchVm> {
        let found = |(system, managed): (&System, &ManagedSystem<B>)| {
            Some((*system, managed.vm_of_name(&name)?))
        };
        let Some((system, vm)) = self.systems.iter().find_map(found) else {
            let there = self.vm_names().into_iter().map(str::to_owned).collect();
            return Err(NoSuchVm { name, there });
        };
        self.with_machine(system, |system| {
            system.handle(super::now(), Event::DrainVm(vm));
        });
        Ok(())
    }

    fn vm_names(&self) -> Vec<&str> {
        let vms = self.systems.values().flat_map(|system| system.vms.values());
        vms.map(|vm| vm.name.as_str()).collect()
    }
}

fn no_vm(others: &[&str]) -> String {
    if others.is_empty() {
        return "there is no such VM, and none is running".to_owned();
    }
    format!("there is no such VM; running: {}", others.join(", "))
}

impl<B: VmBackend> ManagedSystem<B> {
    fn vm_of_name(&self, name: &str) -> Option<VmId> {
        let found = self.vms.iter().find(|(_, vm)| vm.name == name);
        found.map(|(id, _)| *id)
    }

    fn open_shell(&self, id: VmId, order: ShellOrder) {
        match self.vms.get(&id) {
            Some(vm) if vm.ready.is_none() => {
                order.refuse(format!("it is not ready yet: {}", vm.stage));
            }
            _ => self.command(id, VmCommand::Shell(order)),
        }
    }
}

/// The shells in one VM.
pub(super) struct Shells {
    tasks: JoinSet<AfterShell>,
    /// What is to be said of the VM when it has ended.
    vm_end: watch::Sender<Option<String>>,
    /// How many sessions have begun in the VM, and how many of them are over.
    begun: usize,
    over: usize,
}

impl Default for Shells {
    fn default() -> Self {
        Self {
            tasks: JoinSet::new(),
            vm_end: watch::Sender::new(None),
            begun: 0,
            over: 0,
        }
    }
}

impl Shells {
    /// Takes note that the VM is used.
    pub(super) fn session_begins(&mut self) {
        self.begun += 1;
    }

    /// Takes note that a session has left the VM.
    pub(super) fn session_ends(&mut self) {
        self.over += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    pub(super) fn open<V, N>(&mut self, vm: Arc<RestingVm<V, N>>, order: ShellOrder)
    where
        V: RunningVm,
        N: Fn(VmNews) + Send + Sync + 'static,
    {
        self.tasks.spawn(serve(vm, order, self.vm_end.subscribe()));
    }

    /// Resolves when a shell has ended, with what is to become of the VM. Cancel safe.
    pub(super) async fn next_end(&mut self) -> AfterShell {
        match self.tasks.join_next().await {
            Some(after) => after.unwrap_or(AfterShell::VmStays),
            None => std::future::pending().await,
        }
    }

    /// Tells those whose shells have ended with the VM why it did.
    pub(super) async fn vm_ended(&mut self, exit: &VmExit) {
        let text = match exit {
            VmExit::Died(cause) => format!("has ended: {cause}"),
            VmExit::Stopped if self.begun > 0 && self.begun == self.over => {
                "has had its build and is gone".to_owned()
            }
            VmExit::Stopped => "was stopped".to_owned(),
        };
        self.vm_end.send_replace(Some(text));
        let told = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(TELL_LIMIT, told).await.is_err() {
            tracing::debug!("a shell did not end with its VM");
        }
        self.tasks.shutdown().await;
    }
}

/// Opens a shell and sees to its end. Meanwhile the VM does not rest.
async fn serve<V: RunningVm, N: Fn(VmNews)>(
    vm: Arc<RestingVm<V, N>>,
    order: ShellOrder,
    vm_end: watch::Receiver<Option<String>>,
) -> AfterShell {
    let ShellOrder {
        program,
        after,
        reply,
    } = order;
    let opened = match vm.enter().await {
        Ok(()) => vm.vm().open_shell(program).await,
        Err(error) => Err(error),
    };
    match opened {
        Ok(Shell { streams, ended }) => {
            let (end, end_told) = oneshot::channel();
            let open = OpenShell {
                streams,
                ended: end_told,
            };
            // Whoever asked may have gone, which ends the shell, and so may those who are told of its end.
            let _ = reply.send(Ok(open));
            let _ = end.send(end_of(ended, vm_end).await);
        }
        Err(error) => {
            let _ = reply.send(Err(NoShell(format!("{error:#}"))));
        }
    }
    vm.leave().await;
    after
}

async fn end_of(
    ended: oneshot::Receiver<i64>,
    mut vm_end: watch::Receiver<Option<String>>,
) -> ShellEnd {
    let vm_gone = async {
        match vm_end.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(text)) => ShellEnd::VmGone(text.clone()),
            _ => ShellEnd::Lost,
        }
    };
    let mut vm_gone = std::pin::pin!(vm_gone);
    tokio::select! {
        biased;
        ended = ended => if let Ok(status) = ended {
            return ShellEnd::Exited(status);
        },
        gone = &mut vm_gone => return gone,
    }
    // Most likely the VM is ending.
    tokio::time::timeout(VM_END_LIMIT, vm_gone)
        .await
        .unwrap_or(ShellEnd::Lost)
}
