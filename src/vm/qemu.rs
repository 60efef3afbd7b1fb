//! The backend that runs VMs in QEMU on this machine, and the VM that it returns.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::agent::{Agent, GuestOutput};
use super::boot_error::{BootError, BootFailure, CONSOLE_LINES};
use super::hop::Hop;
use super::machine::{Machine, Wish};
use super::port::Port;
use super::private_dir::Layout;
use super::process::Process;
use super::qmp::Qmp;
use super::qmp::events::{EventSinks, channels};
use super::ready::{Requirement, Unmet};
use super::wait::within;
use super::{
    BootProgress, RunningVm, VmBackend, VmExit, VmSpec, command, console, disk, private_dir, ready,
    stop,
};

/// When something about a QEMU fails, its death is the likely cause, and known within this time.
const DEATH_LIMIT: Duration = Duration::from_secs(1);

/// Runs VMs in QEMU on this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Qemu;

/// A VM in QEMU that can serve sessions. Dropping it kills QEMU.
pub struct QemuVm {
    machine: Arc<Machine>,
    guest: Guest,
    stop_grace: Duration,
}

/// The ways into a guest.
struct Guest {
    qmp: Qmp,
    agent: Agent,
    ports: Vec<Arc<Port>>,
}

/// A QEMU that was just started.
struct Started {
    machine: Machine,
    layout: Layout,
    sinks: EventSinks,
    port_news: Vec<watch::Receiver<u64>>,
}

impl VmBackend for Qemu {
    type Vm = QemuVm;

    async fn boot(
        &self,
        spec: VmSpec,
        progress: &BootProgress,
        abort: CancellationToken,
    ) -> anyhow::Result<QemuVm> {
        progress(Requirement::QemuAnswers.stage());
        let Some(started) = abort.run_until_cancelled(start(&spec)).await else {
            return Err(boot_error(&spec, BootFailure::Aborted, Vec::new()).into());
        };
        let Started {
            machine,
            layout,
            sinks,
            port_news,
        } = started.with_context(|| format!("starting `{}`", spec.name))?;
        let (unmet, reached) = watch::channel(Unmet::new(Requirement::QemuAnswers));
        let note = |news: Unmet| {
            if news.last_failure.is_none() {
                progress(news.requirement.stage());
            }
            unmet.send_replace(news);
        };
        let ready = enter_guest(&machine, &layout, sinks, port_news, note);
        let failure = tokio::select! {
            biased;
            () = abort.cancelled() => BootFailure::Aborted,
            end = machine.ended() => BootFailure::Died(end.exit.in_words().to_owned()),
            ready = tokio::time::timeout(spec.boot_timeout, ready) => match ready {
                Ok(Ok(guest)) => return Ok(QemuVm {
                    machine: Arc::new(machine),
                    guest,
                    stop_grace: spec.stop_grace,
                }),
                Ok(Err(error)) => BootFailure::Failed(reached.borrow().requirement, error),
                Err(_) => BootFailure::TimedOut(reached.borrow().clone(), spec.boot_timeout),
            },
        };
        Err(give_up(&spec, machine, failure).await.into())
    }
}

/// Starts QEMU with a disk of its own.
async fn start(spec: &VmSpec) -> anyhow::Result<Started> {
    let (dir, layout) = private_dir::create(&spec.private_parent, spec.slots)?;
    disk::create_overlay(&spec.qemu_img, &spec.image.disk(), &layout.overlay()).await?;
    let arguments = command::arguments(spec, &layout);
    tracing::debug!(vm = %spec.name, qemu = %spec.qemu.display(), ?arguments, "starting QEMU");
    let process = Process::spawn(&spec.qemu, &arguments, &spec.console_log)?;
    let (sinks, sources) = channels(&spec.name, &spec.private_parent, spec.slots);
    Ok(Started {
        machine: Machine::new(process, dir, sources.fate),
        layout,
        sinks,
        port_news: sources.ports,
    })
}

/// Meets one requirement after another; `note` is told before each, the first one excepted, and of attempts in vain.
async fn enter_guest(
    machine: &Machine,
    layout: &Layout,
    sinks: EventSinks,
    port_news: Vec<watch::Receiver<u64>>,
    note: impl Fn(Unmet),
) -> anyhow::Result<Guest> {
    let qmp = Qmp::connect(&layout.qmp(), sinks).await?;
    note(Unmet::new(Requirement::AgentAnswers));
    let agent = Agent::new(layout.agent());
    agent.answers().await?;
    note(Unmet::new(Requirement::ClockIsSet));
    ready::set_clock(&agent).await?;
    let port = |(slot, news)| {
        let socket = layout.port(slot);
        let port = Port::new(
            slot,
            socket,
            qmp.clone(),
            agent.clone(),
            news,
            machine.end_watch(),
        );
        Arc::new(port)
    };
    let ports: Vec<_> = (0..).zip(port_news).map(port).collect();
    note(Unmet::new(Requirement::DaemonAnswers));
    let first = ports.first().context("a VM needs a slot at least")?;
    let failed = |failure| {
        note(Unmet {
            requirement: Requirement::DaemonAnswers,
            last_failure: Some(failure),
        });
    };
    ready::daemon_answers(|| first.open_hop(), failed).await?;
    Ok(Guest { qmp, agent, ports })
}

/// Makes sure that nothing is left of a VM that did not come up, and says why it did not.
async fn give_up(spec: &VmSpec, machine: Machine, failure: BootFailure) -> BootError {
    let failure = match failure {
        BootFailure::Failed(requirement, error) => {
            match within("QEMU's death", DEATH_LIMIT, machine.ended()).await {
                Ok(end) => BootFailure::Died(end.exit.in_words().to_owned()),
                Err(_) => BootFailure::Failed(requirement, error),
            }
        }
        other => other,
    };
    machine.wish(Wish::Kill);
    let end = machine.ended().await;
    boot_error(spec, failure, end.stderr)
}

fn boot_error(spec: &VmSpec, failure: BootFailure, stderr: Vec<String>) -> BootError {
    BootError {
        vm: spec.name.clone(),
        failure,
        stderr,
        console: console::last_lines(&spec.console_log, CONSOLE_LINES),
        console_log: spec.console_log.clone(),
    }
}

fn gone(exit: &VmExit) -> anyhow::Error {
    anyhow::anyhow!("the VM is gone: {}", exit.in_words())
}

impl QemuVm {
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
        match self.port(slot)?.open_hop().await {
            Ok(hop) => Ok(hop),
            Err(error) => match within("QEMU's death", DEATH_LIMIT, self.machine.ended()).await {
                Ok(end) => Err(gone(&end.exit)),
                Err(_) => Err(error),
            },
        }
    }

    async fn slot_released(&self, slot: u32) -> anyhow::Result<()> {
        self.port(slot)?.released().await
    }

    async fn ended(&self) -> VmExit {
        self.machine.ended().await.exit
    }

    async fn pause(&self) -> anyhow::Result<()> {
        self.guest.qmp.execute(qapi::qmp::stop {}).await.map(drop)
    }

    async fn resume(&self) -> anyhow::Result<()> {
        self.guest.qmp.execute(qapi::qmp::cont {}).await?;
        ready::set_clock(&self.guest.agent).await
    }

    fn pid(&self) -> Option<u32> {
        self.machine.pid()
    }

    fn power_down(&self) {
        if self.machine.wish(Wish::Stop) {
            let (agent, qmp) = (self.guest.agent.clone(), self.guest.qmp.clone());
            let machine = Arc::clone(&self.machine);
            tokio::spawn(stop::power_down(machine, agent, qmp, self.stop_grace));
        }
    }

    fn kill(&self) {
        self.machine.wish(Wish::Kill);
    }
}
