//! The backend that runs VMs in QEMU on this machine, and the VM that it returns.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::agent::{Agent, GuestOutput};
use super::console::KilledProcesses;
use super::disk::Disk;
use super::hop::Hop;
use super::machine::{Machine, Wish};
use super::names::ToldNames;
use super::port::Port;
use super::qmp::Qmp;
use super::registrar::Registrar;
use super::shell::{Shell, ShellPorts, ShellProgram};
use super::start::{DEATH_LIMIT, Origin, bring_up};
use super::template::Templates;
use super::wait::within;
use super::{BootProgress, RunningVm, VmBackend, VmExit, VmSpec, clock, stop};
use crate::nix::registrations::Registrations;

/// Runs VMs in QEMU on this machine.
#[derive(Debug, Default)]
pub struct Qemu {
    templates: Templates,
}

/// A VM in QEMU that can serve sessions. Dropping it kills QEMU.
pub struct QemuVm {
    machine: Arc<Machine>,
    guest: Guest,
    killed: Mutex<Option<KilledProcesses>>,
    disk: Disk,
    stop_grace: Duration,
    /// Whether it is one of many copies: then there is nothing in it that a shutdown would save.
    is_clone: bool,
}

/// The ways into a guest.
pub(super) struct Guest {
    pub(super) qmp: Qmp,
    pub(super) agent: Agent,
    pub(super) ports: Vec<Arc<Port>>,
    /// The way to make paths valid, in a guest that sees the host's store.
    pub(super) registrar: Option<Registrar>,
    pub(super) shell: Arc<ShellPorts>,
    /// Names of this machine's network, in a guest that has a network.
    pub(super) names: Option<ToldNames>,
}

impl VmBackend for Qemu {
    type Vm = QemuVm;

    async fn boot(
        &self,
        spec: VmSpec,
        progress: &BootProgress<'_>,
        abort: CancellationToken,
    ) -> anyhow::Result<QemuVm> {
        // Boxed, because all that happens in a start makes for a large future, and few of them run at a time.
        if let Some(dir) = &spec.templates
            && let Some(template) =
                Box::pin(self.templates.get(&spec, dir, progress, &abort)).await?
        {
            let origin = Origin::Template(&template.files);
            match Box::pin(bring_up(&spec, origin, progress, &abort)).await {
                Ok(vm) => {
                    template.is_proven();
                    return Ok(vm);
                }
                Err(error) if abort.is_cancelled() => return Err(error),
                Err(error) => template.is_doubted(&spec, &error).await,
            }
        }
        Box::pin(bring_up(&spec, Origin::Image, progress, &abort)).await
    }
}

fn gone(exit: &VmExit) -> anyhow::Error {
    anyhow::anyhow!("the VM is gone: {}", exit.in_words())
}

impl QemuVm {
    pub(super) fn new(
        machine: Machine,
        guest: Guest,
        killed: Option<KilledProcesses>,
        disk: Disk,
        spec: &VmSpec,
        origin: Origin<'_>,
    ) -> Self {
        Self {
            machine: Arc::new(machine),
            guest,
            killed: Mutex::new(killed),
            disk,
            stop_grace: spec.stop_grace,
            is_clone: matches!(origin, Origin::Template(_)),
        }
    }

    pub(super) fn qmp(&self) -> &Qmp {
        &self.guest.qmp
    }

    pub(super) fn agent(&self) -> &Agent {
        &self.guest.agent
    }

    /// Starts the registrar of a guest that is to be saved, and so that of its copies.
    pub(super) async fn start_registrar(&self) -> anyhow::Result<()> {
        match &self.guest.registrar {
            Some(registrar) => registrar.start(&self.guest.agent).await,
            None => Ok(()),
        }
    }

    /// Makes the VM's end one that was asked for, by whatever it is brought about.
    pub(super) fn expect_end(&self) {
        self.machine.wish(Wish::Stop);
    }

    /// Runs a program in the guest to its end, for `limit` at most.
    pub async fn run(
        &self,
        program: &str,
        args: &[&str],
        limit: Duration,
    ) -> anyhow::Result<GuestOutput> {
        let agent = &self.guest.agent;
        let pid = agent.start(program, args).await?;
        within("a program in the guest", limit, agent.finished(pid))
            .await
            .with_context(|| format!("running `{program}` in the guest"))?
    }

    fn port(&self, slot: u32) -> anyhow::Result<&Arc<Port>> {
        if let Some(exit) = self.machine.end_watch().so_far() {
            return Err(gone(&exit));
        }
        let index = usize::try_from(slot)?;
        self.guest
            .ports
            .get(index)
            .with_context(|| format!("the VM has no slot {slot}"))
    }
}

impl RunningVm for QemuVm {
    async fn open_hop(&self, slot: u32) -> anyhow::Result<Hop> {
        match self.port(slot)?.take_hop().await {
            Ok(hop) => Ok(hop),
            Err(error) => match within("QEMU's death", DEATH_LIMIT, self.machine.ended()).await {
                Ok(end) => Err(gone(&end.exit)),
                Err(_) => Err(error),
            },
        }
    }

    async fn tell_names(&self, may_know: &AtomicBool) -> anyhow::Result<()> {
        match &self.guest.names {
            Some(names) => names.tell(&self.guest.agent, may_know).await,
            None => Ok(()),
        }
    }

    async fn register(&self, registrations: &Registrations) -> anyhow::Result<()> {
        let registrar = self.guest.registrar.as_ref();
        let registrar = registrar.context("the VM does not have the host's store")?;
        registrar.register(registrations).await
    }

    async fn slot_released(&self, slot: u32) -> anyhow::Result<()> {
        let port = self.port(slot)?;
        port.drop_kept().await;
        port.released().await
    }

    async fn open_ahead(&self, slot: u32) -> anyhow::Result<()> {
        self.port(slot)?.open_ahead().await
    }

    async fn open_shell(&self, program: ShellProgram) -> anyhow::Result<Shell> {
        if let Some(exit) = self.machine.end_watch().so_far() {
            return Err(gone(&exit));
        }
        self.guest.shell.open(program).await
    }

    async fn ended(&self) -> VmExit {
        self.machine.ended().await.exit
    }

    async fn killed_for_memory(&self) -> String {
        let mut killed = self.killed.lock().await;
        match &mut *killed {
            Some(killed) => match killed.recv().await {
                Some(process) => process,
                // The console has ended, as the VM has.
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    async fn pause(&self) -> anyhow::Result<()> {
        self.guest.qmp.execute(qapi::qmp::stop {}).await.map(drop)
    }

    async fn resume(&self) -> anyhow::Result<()> {
        self.guest.qmp.execute(qapi::qmp::cont {}).await?;
        clock::set(&self.guest.agent).await
    }

    async fn set_clock(&self) -> anyhow::Result<()> {
        clock::set(&self.guest.agent).await
    }

    fn pid(&self) -> Option<u32> {
        self.machine.pid()
    }

    fn is_disposable(&self) -> bool {
        self.is_clone
    }

    fn is_worn(&self) -> bool {
        self.disk.is_worn()
    }

    fn power_down(&self) {
        if self.machine.wish(Wish::Stop) {
            let (agent, qmp) = (self.guest.agent.clone(), self.guest.qmp.clone());
            let machine = Arc::clone(&self.machine);
            if self.is_clone {
                tokio::spawn(async move { stop::quit(&machine, &qmp).await });
            } else {
                tokio::spawn(stop::power_down(machine, agent, qmp, self.stop_grace));
            }
        }
    }

    fn kill(&self) {
        self.machine.wish(Wish::Kill);
    }
}
