//! Brings a VM up, from its image or from a template: one requirement after another, and nothing left if one is not met.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::agent::Agent;
use super::boot_error::{BootError, BootFailure, CONSOLE_LINES};
use super::command::{self, Memory};
use super::console::KilledProcesses;
use super::disk::Disk;
use super::hop::Hop;
use super::machine::{Machine, Wish};
use super::names::ToldNames;
use super::port::Port;
use super::private_dir::Layout;
use super::process::Process;
use super::qemu::{Guest, QemuVm};
use super::qmp::Qmp;
use super::qmp::events::{EventSinks, channels};
use super::ready::{Requirement, Unmet};
use super::registrar::Registrar;
use super::shell::ShellPorts;
use super::template::{self, TemplateFiles};
use super::thaw::Thaw;
use super::wait::within;
use super::{BootProgress, VmSpec, clock, console, disk, private_dir, ready, timers};

/// When something about a QEMU fails, its death is the likely cause, and known within this time.
pub(super) const DEATH_LIMIT: Duration = Duration::from_secs(1);

/// How a VM comes to be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin<'a> {
    /// Booted from its image.
    Image,
    /// Booted from its image, with memory and disk in these files, to be saved.
    ToBeSaved(&'a TemplateFiles),
    /// Restored from these files, which it does not change.
    Template(&'a TemplateFiles),
}

/// A QEMU that was just started.
struct Started {
    machine: Machine,
    layout: Layout,
    sinks: EventSinks,
    port_news: PortNews,
    killed: Option<KilledProcesses>,
    disk: Disk,
}

/// What is heard of ports: those of the slots, and the shell's.
struct PortNews {
    slots: Vec<watch::Receiver<u64>>,
    shell: watch::Receiver<u64>,
}

/// Starts a VM and returns when it can serve. Cancelling `abort` ends the start.
pub(super) async fn bring_up(
    spec: &VmSpec,
    origin: Origin<'_>,
    progress: &BootProgress<'_>,
    abort: &CancellationToken,
) -> anyhow::Result<QemuVm> {
    progress(Requirement::QemuAnswers.stage());
    let Some(started) = abort.run_until_cancelled(start(spec, origin)).await else {
        return Err(boot_error(spec, BootFailure::Aborted, Vec::new()).into());
    };
    let Started {
        machine,
        layout,
        sinks,
        port_news,
        killed,
        disk,
    } = started.with_context(|| format!("starting `{}`", spec.name))?;
    let (unmet, reached) = watch::channel(Unmet::new(Requirement::QemuAnswers));
    let note = |news: Unmet| {
        if news.last_failure.is_none() {
            progress(news.requirement.stage());
        }
        unmet.send_replace(news);
    };
    let way = Way {
        spec,
        machine: &machine,
        layout: &layout,
        note: &note,
    };
    let ready = way.enter(origin, sinks, port_news);
    let failure = tokio::select! {
        biased;
        () = abort.cancelled() => BootFailure::Aborted,
        end = machine.ended() => BootFailure::Died(end.exit.in_words().to_owned()),
        ready = tokio::time::timeout(spec.boot_timeout, ready) => match ready {
            Ok(Ok(guest)) => return Ok(QemuVm::new(machine, guest, killed, disk, spec, origin)),
            Ok(Err(error)) => BootFailure::Failed(reached.borrow().requirement, error),
            Err(_) => BootFailure::TimedOut(reached.borrow().clone(), spec.boot_timeout),
        },
    };
    Err(give_up(spec, machine, failure).await.into())
}

/// Starts QEMU with a disk of its own.
async fn start(spec: &VmSpec, origin: Origin<'_>) -> anyhow::Result<Started> {
    let (dir, layout) = private_dir::create(&spec.private_parent, spec.slots)?;
    let image = spec.image.disk();
    let (layout, base, memory) = match origin {
        Origin::Image => (layout, image, None),
        Origin::ToBeSaved(files) => (layout.with_overlay(files.disk()), image, Some(files.ram())),
        Origin::Template(files) => (layout, files.disk(), Some(files.ram())),
    };
    let memory = match (&memory, origin) {
        (Some(ram), Origin::ToBeSaved(_)) => Memory::Saved(ram),
        (Some(ram), Origin::Template(_)) => Memory::Copied(ram),
        _ => Memory::Own,
    };
    let disk_gib = spec.profile.disk_gib;
    let overlay = layout.overlay().to_owned();
    let size = disk::create_overlay(&spec.qemu_img, &base, &overlay, disk_gib).await?;
    for given in &spec.given {
        given.write(&layout)?;
    }
    let arguments = command::arguments(spec, memory, &layout);
    tracing::debug!(vm = %spec.name, qemu = %spec.qemu.display(), ?arguments, "starting QEMU");
    let mut process = Process::spawn(&spec.qemu, &arguments, dir.path(), &spec.console_log)?;
    let (sinks, sources) = channels(&spec.name, &spec.private_parent, spec.slots);
    Ok(Started {
        killed: process.killed(),
        disk: Disk { overlay, size },
        machine: Machine::new(process, dir, sources.fate),
        layout,
        sinks,
        port_news: PortNews {
            slots: sources.ports,
            shell: sources.shell,
        },
    })
}

/// The way from a started QEMU to a guest that serves.
struct Way<'a, N> {
    spec: &'a VmSpec,
    machine: &'a Machine,
    layout: &'a Layout,
    /// Told before each requirement, the first one excepted, and of attempts in vain.
    note: &'a N,
}

impl<N: Fn(Unmet)> Way<'_, N> {
    /// Meets one requirement after another.
    async fn enter(
        &self,
        origin: Origin<'_>,
        sinks: EventSinks,
        port_news: PortNews,
    ) -> anyhow::Result<Guest> {
        let qmp = Qmp::connect(&self.layout.qmp(), sinks).await?;
        let registrar = match self.spec.store {
            Some(_) => Some(Registrar::connect(&self.layout.store()).await?),
            None => None,
        };
        if let Origin::Template(files) = origin {
            self.restore(&qmp, files).await?;
            if let Some(registrar) = &registrar {
                registrar.mount().await?;
            }
        }
        self.next(Requirement::AgentAnswers);
        let agent = Agent::new(self.layout.agent());
        agent.answers().await?;
        let ports = self.ports(&qmp, &agent, port_news.slots);
        let shell = ShellPorts::new(self.layout, &qmp, &agent, &port_news.shell);
        let first = ports.first().context("a VM needs a slot at least")?;
        let (first_hop, told) = match origin {
            Origin::Template(_) => self.thaw(first, &agent).await?,
            Origin::Image | Origin::ToBeSaved(_) => {
                (self.wait_for_daemon(first, &agent).await?, String::new())
            }
        };
        let names = self.spec.names.clone();
        // The nix-daemon has shown over it that it answers: the first session need not wait for another one.
        first.keep(first_hop).await;
        if let (Some(registrar), Origin::Image) = (&registrar, origin) {
            self.next(Requirement::StoreIsThere);
            registrar.start(&agent).await?;
            registrar.mount().await?;
        }
        Ok(Guest {
            qmp,
            agent,
            ports,
            registrar,
            shell: Arc::new(shell),
            names: names.map(|names| ToldNames::new(names, told)),
        })
    }

    async fn restore(&self, qmp: &Qmp, files: &TemplateFiles) -> anyhow::Result<()> {
        self.next(Requirement::StateIsRestored);
        template::restore(qmp, files).await?;
        if command::forgets_timers(self.spec) {
            timers::arm(&self.layout.debugger()).await?;
        }
        qmp.execute(qapi::qmp::cont {}).await.map(drop)
    }

    /// Makes a restored guest one of its own and opens the first session in it; also what it was told of names.
    async fn thaw(&self, port: &Arc<Port>, agent: &Agent) -> anyhow::Result<(Hop, String)> {
        self.next(Requirement::IsThawed);
        let names = self.spec.names.as_ref();
        let told = names.map(|names| names.told(names.are_known_to_all));
        let told = told.unwrap_or_default();
        let hop = port.open_hop_thawed(Thaw::new(&self.spec.name, &told)?);
        let (hop, ()) = tokio::try_join!(ready::daemon_still_answers(hop), clock::set(agent))?;
        Ok((hop, told))
    }

    async fn wait_for_daemon(&self, port: &Arc<Port>, agent: &Agent) -> anyhow::Result<Hop> {
        self.next(Requirement::ClockIsSet);
        clock::set(agent).await?;
        self.next(Requirement::DaemonAnswers);
        let failed = |failure| {
            (self.note)(Unmet {
                requirement: Requirement::DaemonAnswers,
                last_failure: Some(failure),
            });
        };
        ready::daemon_answers(|| port.open_hop(), failed).await
    }

    fn ports(&self, qmp: &Qmp, agent: &Agent, news: Vec<watch::Receiver<u64>>) -> Vec<Arc<Port>> {
        let port = |(slot, news)| {
            let socket = self.layout.port(slot);
            let (qmp, agent) = (qmp.clone(), agent.clone());
            let port = Port::new(slot, socket, qmp, agent, news, self.machine.end_watch());
            Arc::new(port)
        };
        (0..).zip(news).map(port).collect()
    }

    fn next(&self, requirement: Requirement) {
        (self.note)(Unmet::new(requirement));
    }
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
