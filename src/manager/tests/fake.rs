//! VMs that do nothing but remember what was done to them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::bail;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{BOOT, SYSTEM};
use crate::config::vm::{Accel, Network};
use crate::image::Image;
use crate::image::manifest::{ImageFile, ImageKind, Manifest};
use crate::nix::registrations::Registrations;
use crate::vm::{
    BootProgress, Hop, RunningVm, SHELL_STREAMS, Shell, ShellProgram, VmBackend, VmExit, VmSpec,
};

/// How long a VM's monitor takes to answer.
const MONITOR: Duration = Duration::from_millis(100);

/// How long a guest takes to close a session's port.
const CLOSING: Duration = Duration::from_millis(50);

/// Boots VMs that do nothing, or fails to.
#[derive(Default)]
pub(super) struct FakeBackend {
    /// Why boots fail, if they do.
    pub(super) failure: Mutex<Option<String>>,
    /// Whether boots panic.
    pub(super) panics: AtomicBool,
    pub(super) boots: AtomicUsize,
    /// How many of the next hops cannot be opened.
    pub(super) bad_hops: Arc<AtomicUsize>,
    /// Whether VMs cannot be paused, or resumed.
    pub(super) bad_pauses: Arc<AtomicBool>,
    pub(super) bad_resumes: Arc<AtomicBool>,
    /// Whether VMs are copies that are thrown away.
    pub(super) are_disposable: AtomicBool,
    /// What was done to each VM, in the order of their starts.
    vms: Mutex<Vec<Traces>>,
}

/// How a VM ended, and what was done to it before.
#[derive(Clone)]
struct Traces {
    exit: watch::Sender<Option<VmExit>>,
    calls: Arc<Mutex<Vec<&'static str>>>,
    killed: Arc<Notify>,
    is_worn: Arc<AtomicBool>,
}

impl FakeBackend {
    /// Ends the n-th VM that was started, as if by somebody else's hand.
    pub(super) fn break_vm(&self, n: usize) {
        let died = VmExit::Died("QEMU was killed by signal 9".to_owned());
        self.vms.lock().unwrap()[n].exit.send_replace(Some(died));
    }

    /// Has memory run out in the n-th VM that was started.
    pub(super) fn run_out_of_memory(&self, n: usize) {
        self.vms.lock().unwrap()[n].killed.notify_one();
    }

    /// Has the disk of the n-th VM that was started be nearly full.
    pub(super) fn wear_out(&self, n: usize) {
        self.vms.lock().unwrap()[n]
            .is_worn
            .store(true, Ordering::Relaxed);
    }

    /// What was done to the n-th VM that was started.
    pub(super) fn calls(&self, n: usize) -> Vec<&'static str> {
        self.vms.lock().unwrap()[n].calls.lock().unwrap().clone()
    }
}

pub(super) struct FakeVm {
    bad_hops: Arc<AtomicUsize>,
    bad_pauses: Arc<AtomicBool>,
    bad_resumes: Arc<AtomicBool>,
    is_disposable: bool,
    traces: Traces,
    guest_ends: Mutex<Vec<UnixStream>>,
}

impl VmBackend for FakeBackend {
    type Vm = FakeVm;

    async fn boot(
        &self,
        _: VmSpec,
        progress: &BootProgress<'_>,
        abort: CancellationToken,
    ) -> anyhow::Result<FakeVm> {
        self.boots.fetch_add(1, Ordering::Relaxed);
        progress("waiting for the guest agent");
        tokio::select! {
            () = tokio::time::sleep(BOOT) => {}
            () = abort.cancelled() => bail!("aborted"),
        }
        assert!(!self.panics.load(Ordering::Relaxed), "a mistake");
        if let Some(failure) = self.failure.lock().unwrap().clone() {
            bail!(failure);
        }
        let traces = Traces {
            exit: watch::Sender::new(None),
            calls: Arc::default(),
            killed: Arc::default(),
            is_worn: Arc::default(),
        };
        self.vms.lock().unwrap().push(traces.clone());
        Ok(FakeVm {
            traces,
            bad_hops: self.bad_hops.clone(),
            bad_pauses: self.bad_pauses.clone(),
            bad_resumes: self.bad_resumes.clone(),
            is_disposable: self.are_disposable.load(Ordering::Relaxed),
            guest_ends: Mutex::default(),
        })
    }
}

impl FakeVm {
    fn note(&self, call: &'static str) {
        self.traces.calls.lock().unwrap().push(call);
    }
}

impl RunningVm for FakeVm {
    async fn open_hop(&self, _slot: u32) -> anyhow::Result<Hop> {
        if self.bad_hops.load(Ordering::Relaxed) > 0 {
            self.bad_hops.fetch_sub(1, Ordering::Relaxed);
            bail!("the agent does not answer");
        }
        self.note("open hop");
        let (stream, guest) = UnixStream::pair()?;
        self.guest_ends.lock().unwrap().push(guest);
        Ok(Hop::new(stream))
    }

    async fn killed_for_memory(&self) -> String {
        self.traces.killed.notified().await;
        "cc1plus".to_owned()
    }

    async fn tell_names(&self, may_know: &AtomicBool) -> anyhow::Result<()> {
        if !may_know.load(Ordering::Relaxed) {
            self.note("no secrets");
        }
        Ok(())
    }

    async fn set_clock(&self) -> anyhow::Result<()> {
        self.note("clock");
        Ok(())
    }

    async fn register(&self, _: &Registrations) -> anyhow::Result<()> {
        self.note("register");
        Ok(())
    }

    async fn slot_released(&self, _slot: u32) -> anyhow::Result<()> {
        tokio::time::sleep(CLOSING).await;
        self.note("slot released");
        Ok(())
    }

    async fn open_ahead(&self, _slot: u32) -> anyhow::Result<()> {
        self.note("open ahead");
        Ok(())
    }

    async fn open_shell(&self, _program: ShellProgram) -> anyhow::Result<Shell> {
        self.note("open shell");
        let (near, guest): (Vec<_>, Vec<_>) = (0..SHELL_STREAMS)
            .map(|_| UnixStream::pair().unwrap())
            .unzip();
        let (exit, ended) = oneshot::channel();
        let mut guest = guest.into_iter();
        let (input, output) = (guest.next().unwrap(), guest.next().unwrap());
        tokio::spawn(async move {
            // A program that ends when its person has gone.
            let _ = output.ready(Interest::READABLE).await;
            drop((input, output, guest));
            let _ = exit.send(3);
        });
        Ok(Shell {
            streams: near.try_into().unwrap(),
            ended,
        })
    }

    async fn ended(&self) -> VmExit {
        let mut exit = self.traces.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.unwrap().clone();
        ended.unwrap()
    }

    async fn pause(&self) -> anyhow::Result<()> {
        self.note("pause");
        tokio::time::sleep(MONITOR).await;
        if self.bad_pauses.load(Ordering::Relaxed) {
            bail!("the monitor does not answer");
        }
        self.note("paused");
        Ok(())
    }

    async fn resume(&self) -> anyhow::Result<()> {
        self.note("resume");
        tokio::time::sleep(MONITOR).await;
        if self.bad_resumes.load(Ordering::Relaxed) {
            bail!("the monitor does not answer");
        }
        self.note("resumed");
        Ok(())
    }

    fn pid(&self) -> Option<u32> {
        Some(std::process::id())
    }

    fn is_disposable(&self) -> bool {
        self.is_disposable
    }

    fn is_worn(&self) -> bool {
        self.traces.is_worn.load(Ordering::Relaxed)
    }

    fn power_down(&self) {
        self.note("power down");
        self.traces.exit.send_replace(Some(VmExit::Stopped));
    }

    fn kill(&self) {
        self.note("kill");
        self.traces.exit.send_replace(Some(VmExit::Stopped));
    }
}

pub(super) fn spec(name: &str) -> VmSpec {
    let file = || ImageFile {
        name: "x".to_owned(),
        size: 0,
        sha256: String::new(),
    };
    let manifest = Manifest {
        contract: 1,
        system: SYSTEM,
        kind: ImageKind::Portable,
        recipe: String::new(),
        nix_version: "2.26.3".to_owned(),
        kernel_version: "6.12".to_owned(),
        cmdline: String::new(),
        kernel: file(),
        initrd: file(),
        disk: file(),
    };
    VmSpec {
        name: name.to_owned(),
        profile: toml::from_str(include_str!("../../../vm-configs/riscv64-linux.toml")).unwrap(),
        vcpus: 2,
        memory_mib: 2048,
        accel: Accel::Tcg,
        qemu: PathBuf::new(),
        qemu_identity: "10".to_owned(),
        qemu_img: PathBuf::new(),
        image: Image {
            dir: PathBuf::new(),
            manifest,
        },
        slots: 1,
        network: Network::None,
        given: Vec::new(),
        names: None,
        store: None,
        templates: None,
        pauses: true,
        private_parent: PathBuf::new(),
        console_log: PathBuf::new(),
        boot_timeout: Duration::MAX,
        stop_grace: Duration::ZERO,
    }
}
