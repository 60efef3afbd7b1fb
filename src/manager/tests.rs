//! The manager with fake VMs, in stopped time: hours pass in milliseconds.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::bail;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::status::Status;
use super::ticket::{SessionRequest, SessionTicket, SessionUpdate};
use super::{Downed, Manager, ManagerHandle, VmFactory};
use crate::config::vm::{Accel, Network};
use crate::image::Image;
use crate::image::manifest::{ImageFile, ImageKind, Manifest};
use crate::nix::System;
use crate::pool::Down;
use crate::pool::policy::Policy;
use crate::pool::status::VmStage;
use crate::shutdown::Shutdown;
use crate::vm::{BootProgress, Hop, RunningVm, VmBackend, VmExit, VmSpec};

const SYSTEM: System = System::Riscv64Linux;
const BOOT: Duration = Duration::from_secs(4);

/// Boots VMs that do nothing, or fails to.
#[derive(Default)]
struct FakeBackend {
    /// Why boots fail, if they do.
    failure: Mutex<Option<String>>,
    boots: AtomicUsize,
    /// How many of the next hops cannot be opened.
    bad_hops: Arc<AtomicUsize>,
    vms: Mutex<Vec<watch::Sender<Option<VmExit>>>>,
}

impl FakeBackend {
    /// Ends the n-th VM that was started, as if by somebody else's hand.
    fn break_vm(&self, n: usize) {
        let died = VmExit::Died("QEMU was killed by signal 9".to_owned());
        self.vms.lock().unwrap()[n].send_replace(Some(died));
    }
}

struct FakeVm {
    bad_hops: Arc<AtomicUsize>,
    exit: watch::Sender<Option<VmExit>>,
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
        if let Some(failure) = self.failure.lock().unwrap().clone() {
            bail!(failure);
        }
        let exit = watch::Sender::new(None);
        self.vms.lock().unwrap().push(exit.clone());
        Ok(FakeVm {
            exit,
            bad_hops: self.bad_hops.clone(),
            guest_ends: Mutex::default(),
        })
    }
}

impl RunningVm for FakeVm {
    async fn open_hop(&self, _slot: u32) -> anyhow::Result<Hop> {
        if self.bad_hops.load(Ordering::Relaxed) > 0 {
            self.bad_hops.fetch_sub(1, Ordering::Relaxed);
            bail!("the agent does not answer");
        }
        let (stream, guest) = UnixStream::pair()?;
        self.guest_ends.lock().unwrap().push(guest);
        Ok(Hop { stream })
    }

    async fn slot_released(&self, _slot: u32) -> anyhow::Result<()> {
        Ok(())
    }

    async fn ended(&self) -> VmExit {
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.unwrap().clone();
        ended.unwrap()
    }

    async fn pause(&self) -> anyhow::Result<()> {
        Ok(())
    }

    async fn resume(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn pid(&self) -> Option<u32> {
        None
    }

    fn power_down(&self) {
        self.exit.send_replace(Some(VmExit::Stopped));
    }

    fn kill(&self) {
        self.exit.send_replace(Some(VmExit::Stopped));
    }
}

fn spec(name: &str) -> VmSpec {
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
        profile: toml::from_str(include_str!("../../vm-configs/riscv64-linux.toml")).unwrap(),
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
        templates: None,
        private_parent: PathBuf::new(),
        console_log: PathBuf::new(),
        boot_timeout: Duration::MAX,
        stop_grace: Duration::ZERO,
    }
}

struct Fixture {
    backend: Arc<FakeBackend>,
    handle: ManagerHandle,
    shutdown: Shutdown,
    running: tokio::task::JoinHandle<()>,
}

impl Fixture {
    fn new(max_vms: u32) -> Self {
        let backend = Arc::new(FakeBackend::default());
        let factory = VmFactory {
            backend: backend.clone(),
            spec: Arc::new(|_, name| Ok(spec(name))),
            console_log: Arc::new(|name| format!("logs/{name}.log").into()),
        };
        let policy = Policy {
            max_vms: NonZeroU32::new(max_vms).unwrap(),
            ..Policy::default()
        };
        let (manager, handle) = Manager::new(BTreeMap::from([(SYSTEM, policy)]), &factory);
        let shutdown = Shutdown::default();
        let running = tokio::spawn(manager.run(shutdown.clone()));
        Self {
            backend,
            handle,
            shutdown,
            running,
        }
    }

    async fn open(&self) -> SessionTicket {
        let request = SessionRequest {
            system: SYSTEM,
            slot: "riscv64-00".to_owned(),
            client: "test".to_owned(),
            key: "test".to_owned(),
            fetches: false,
        };
        self.handle.desk().open(request).await.unwrap()
    }

    /// Waits, for as long as it takes in stopped time, until the status is as wanted.
    #[track_caller]
    fn until(&self, wanted: impl Fn(&Status) -> bool) -> impl Future<Output = Status> {
        let mut changes = self.handle.changes();
        async move {
            let hour = Duration::from_secs(3600);
            let reached = tokio::time::timeout(hour, changes.wait_for(wanted)).await;
            reached
                .expect("within an hour")
                .expect("the manager runs")
                .clone()
        }
    }
}

/// The next update that is not about waiting.
async fn verdict(ticket: &mut SessionTicket) -> SessionUpdate {
    loop {
        match ticket.next().await.expect("the manager runs") {
            SessionUpdate::Waiting(_) => {}
            update => return update,
        }
    }
}

async fn granted(ticket: &mut SessionTicket) -> (String, Hop) {
    match verdict(ticket).await {
        SessionUpdate::Granted { vm, hop } => (vm, hop),
        other => panic!("not granted: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_hears_how_its_vm_starts_and_gets_it() {
    let fixture = Fixture::new(1);
    let mut ticket = fixture.open().await;
    let mut told = Vec::new();
    let vm = loop {
        match ticket.next().await.unwrap() {
            SessionUpdate::Waiting(text) => told.push(text),
            SessionUpdate::Granted { vm, .. } => break vm,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(vm, "riscv64-1");
    assert_eq!(
        told.last().unwrap(),
        "starting riscv64-1: waiting for the guest agent"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pool_grows_with_what_waits_and_shrinks_to_nothing() {
    let fixture = Fixture::new(2);
    let (mut first, mut second, mut third) = (
        fixture.open().await,
        fixture.open().await,
        fixture.open().await,
    );
    let (one, _) = granted(&mut first).await;
    let (two, _) = granted(&mut second).await;
    // Both boot at once, and either may be ready first.
    assert_eq!(
        BTreeSet::from([one.as_str(), &two]),
        BTreeSet::from(["riscv64-1", "riscv64-2"])
    );
    drop(first);
    assert_eq!(granted(&mut third).await.0, one);
    drop((second, third));
    fixture
        .until(|status| status.systems[0].vms.is_empty())
        .await;
    assert_eq!(fixture.backend.boots.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_dropped_while_it_waits_leaves_nothing() {
    let fixture = Fixture::new(1);
    let mut first = fixture.open().await;
    let waiting = fixture.open().await;
    let hop = granted(&mut first).await;
    drop(waiting);
    let status = fixture
        .until(|status| status.systems[0].sessions.len() == 1)
        .await;
    assert_eq!(
        status.systems[0].sessions[0].vm.as_deref(),
        Some("riscv64-1")
    );
    drop(hop);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_told_when_its_vm_dies() {
    let fixture = Fixture::new(1);
    let mut ticket = fixture.open().await;
    let _hop = granted(&mut ticket).await;
    fixture.backend.break_vm(0);
    match verdict(&mut ticket).await {
        SessionUpdate::VmGone { vm, cause, log } => {
            assert_eq!(
                (vm.as_str(), cause.as_str()),
                ("riscv64-1", "QEMU was killed by signal 9")
            );
            assert_eq!(log, PathBuf::from("logs/riscv64-1.log"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_vm_fails_before_it_is_used_gets_another_one() {
    let fixture = Fixture::new(1);
    fixture.backend.bad_hops.store(2, Ordering::Relaxed);
    let mut ticket = fixture.open().await;
    assert_eq!(granted(&mut ticket).await.0, "riscv64-3");
}

#[tokio::test(start_paused = true)]
async fn a_session_does_not_try_vms_for_ever() {
    let fixture = Fixture::new(1);
    fixture.backend.bad_hops.store(100, Ordering::Relaxed);
    let mut ticket = fixture.open().await;
    match verdict(&mut ticket).await {
        SessionUpdate::VmGone { cause, .. } => {
            assert!(cause.contains("the agent does not answer"), "{cause}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fixture.backend.boots.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn failed_starts_reach_the_session_with_their_reason() {
    let fixture = Fixture::new(1);
    *fixture.backend.failure.lock().unwrap() = Some("the agent does not answer".to_owned());
    let mut ticket = fixture.open().await;
    match verdict(&mut ticket).await {
        SessionUpdate::Rejected(text) => {
            assert_eq!(text, "no VM could be started: the agent does not answer");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fixture.backend.boots.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn down_waits_for_sessions_and_a_pool_that_is_down_says_how_to_start_it() {
    let fixture = Fixture::new(2);
    let mut ticket = fixture.open().await;
    let hop = granted(&mut ticket).await;
    let handle = fixture.handle.clone();
    let down = tokio::spawn(async move { handle.down(vec![SYSTEM], Down::Drain).await });
    let status = fixture
        .until(|status| status.systems[0].vms[0].state == VmStage::Draining)
        .await;
    assert_eq!(status.systems[0].vms[0].sessions, 1);
    assert!(!down.is_finished());
    drop((ticket, hop));
    assert_eq!(down.await.unwrap(), Ok(Downed::Down));
    match verdict(&mut fixture.open().await).await {
        SessionUpdate::Rejected(text) => {
            assert_eq!(
                text,
                "the riscv64-linux pool is down or going down: start it with `xpool up riscv64`"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn down_ends_with_an_answer_when_somebody_says_up() {
    let fixture = Fixture::new(2);
    let mut ticket = fixture.open().await;
    let _hop = granted(&mut ticket).await;
    let handle = fixture.handle.clone();
    let down = tokio::spawn(async move { handle.down(vec![SYSTEM], Down::Drain).await });
    fixture
        .until(|status| status.systems[0].vms[0].state == VmStage::Draining)
        .await;
    fixture.handle.up(SYSTEM, 1).await.unwrap();
    assert_eq!(down.await.unwrap(), Ok(Downed::BroughtUp));
}

#[tokio::test(start_paused = true)]
async fn a_first_signal_drains_and_a_second_does_not_wait() {
    let fixture = Fixture::new(1);
    let mut ticket = fixture.open().await;
    let _hop = granted(&mut ticket).await;
    fixture.shutdown.drain.cancel();
    fixture
        .until(|status| status.systems[0].vms[0].state == VmStage::Draining)
        .await;
    assert!(!fixture.running.is_finished());
    fixture.shutdown.now.cancel();
    fixture.running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_while_a_vm_boots_aborts_the_boot() {
    let fixture = Fixture::new(1);
    fixture.handle.up(SYSTEM, 1).await.unwrap();
    fixture
        .until(|status| status.systems[0].vms.len() == 1)
        .await;
    fixture.shutdown.drain.cancel();
    tokio::time::timeout(BOOT / 2, fixture.running)
        .await
        .expect("the boot was aborted")
        .unwrap();
}
