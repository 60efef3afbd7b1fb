//! The manager with fake VMs, in stopped time: hours pass in milliseconds.

mod builds;
mod counters;
mod fake;
mod forecast;
mod memory;
mod pinned;
mod rest;
mod reuse;
mod share;
mod shell;
mod worked;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;

use super::status::Status;
use super::ticket::{First, Grant, SessionRequest, SessionTicket, SessionUpdate, Share};
use super::worked::{Worked, WorkedDesk};
use super::{Downed, Manager, ManagerHandle, VmFactory};
use crate::nix::System;
use crate::pool::Down;
use crate::pool::budget::MachineBudget;
use crate::pool::policy::{BuildLimits, Policy, Reuse};
use crate::pool::status::VmStage;
use crate::shutdown::Shutdown;
use crate::vm::Hop;
use fake::{FakeBackend, spec};

const SYSTEM: System = System::Riscv64Linux;
const BOOT: Duration = Duration::from_secs(4);

struct Fixture {
    backend: Arc<FakeBackend>,
    /// What the VMs that were started see of the machine's store, by name.
    shares: Arc<Mutex<BTreeMap<String, Share>>>,
    handle: ManagerHandle,
    shutdown: Shutdown,
    running: tokio::task::JoinHandle<()>,
    worked: mpsc::Receiver<Worked>,
}

impl Fixture {
    fn new(max_vms: u32) -> Self {
        Self::with(policy(Reuse::Never, max_vms), "/nonexistent".into())
    }

    fn with(policy: Policy, meminfo: PathBuf) -> Self {
        let policies = BTreeMap::from([(SYSTEM, policy)]);
        Self::of(policies, meminfo, MachineBudget::default())
    }

    fn of(policies: BTreeMap<System, Policy>, meminfo: PathBuf, budget: MachineBudget) -> Self {
        Self::around(policies, |manager| {
            manager.with_meminfo(meminfo).with_budget(budget)
        })
    }

    /// A manager that is made ready by the caller before it runs.
    fn around(
        policies: BTreeMap<System, Policy>,
        prepare: impl FnOnce(Manager<FakeBackend>) -> Manager<FakeBackend>,
    ) -> Self {
        let backend = Arc::new(FakeBackend::default());
        let shares: Arc<Mutex<BTreeMap<String, Share>>> = Arc::default();
        let started = shares.clone();
        let factory = VmFactory {
            backend: backend.clone(),
            store: None,
            spec: Arc::new(move |_, name, shape| {
                started.lock().unwrap().insert(name.to_owned(), shape.share);
                Ok(spec(name))
            }),
            console_log: Arc::new(|name| format!("logs/{name}.log").into()),
        };
        let (manager, handle) = Manager::new(policies, &factory);
        let (desk, worked) = WorkedDesk::channel();
        let manager = manager
            .with_record(&desk)
            .with_meminfo("/nonexistent".into());
        let shutdown = Shutdown::default();
        let running = tokio::spawn(prepare(manager).run(shutdown.clone()));
        Self {
            backend,
            shares,
            handle,
            shutdown,
            running,
            worked,
        }
    }

    async fn open(&self) -> SessionTicket {
        self.open_by(0, false).await
    }

    async fn open_by(&self, slot: u32, fetches: bool) -> SessionTicket {
        let request = request(slot, fetches);
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

fn request(slot: u32, fetches: bool) -> SessionRequest {
    SessionRequest {
        system: SYSTEM,
        slot: format!("riscv64-{slot:02}"),
        seat: format!("riscv64-{slot:02}"),
        client: "test".to_owned(),
        key: "test".to_owned(),
        share: Share::Host,
        secrets: true,
        first: if fetches {
            First::Output(None)
        } else {
            First::Other
        },
    }
}

fn policy(reuse: Reuse, max_vms: u32) -> Policy {
    let max_vms = NonZeroU32::new(max_vms).unwrap();
    Policy {
        reuse,
        max_vms,
        up_limit: max_vms,
        ..Policy::default()
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
        SessionUpdate::Granted(Grant { vm, hop, .. }) => (vm, hop),
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
            SessionUpdate::Granted(Grant { vm, .. }) => break vm,
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
    let fixture = Fixture::with(policy(Reuse::Always, 2), "/nonexistent".into());
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
async fn a_mistake_of_xpool_ends_one_vm_and_is_told() {
    let fixture = Fixture::new(1);
    fixture.backend.panics.store(true, Ordering::Relaxed);
    match verdict(&mut fixture.open().await).await {
        SessionUpdate::Rejected(text) => {
            assert!(text.starts_with("no VM could be started: task "), "{text}");
            assert!(text.contains("a mistake"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let status = fixture.handle.status().await.unwrap();
    assert!(status.systems[0].vms.is_empty());
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
