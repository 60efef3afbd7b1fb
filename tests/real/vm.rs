//! Real guests in a real QEMU: boot, hops, and every way for them to end. `scripts/test` makes the images and runs it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests: a panic is a failure, and stages go to its output"
)]

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;
use xpool::nix::System;
use xpool::vm::{Qemu, QemuVm, RunningVm as _, VmBackend as _, VmExit, VmSpec};

use crate::common::vm::{
    PATIENCE, boot_of, handshake, in_guest, private_parent, qemu_pid, signal, soon, spec, templates,
};

/// A clone, where it makes no difference how a VM came about.
async fn clone_vm(dir: &Path) -> QemuVm {
    boot_of(clone_spec(dir)).await
}

fn clone_spec(dir: &Path) -> VmSpec {
    VmSpec {
        templates: Some(templates()),
        ..spec(System::Riscv64Linux, dir)
    }
}

#[track_caller]
fn assert_nothing_is_left(dir: &Path) {
    assert_eq!(qemu_pid(dir), None);
    let left: Vec<_> = std::fs::read_dir(private_parent(dir)).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(dir.join("console.log").exists());
}

/// Boots once and looks at everything that leaves the VM running, then powers it down.
async fn a_vm_serves_hops_until_it_is_powered_down(system: System) {
    let dir = TempDir::new().unwrap();
    let vm = boot_of(spec(system, dir.path())).await;

    assert_eq!(in_guest(&vm, "uname -m").await.trim(), system.cpu());
    let clock: u64 = in_guest(&vm, "date +%s").await.trim().parse().unwrap();
    let host_clock = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs();
    assert!(
        clock.abs_diff(host_clock) < 10,
        "{clock} is not {host_clock}"
    );

    // One after another over one slot, and two at once over two.
    for _ in 0..3 {
        let mut hop = soon("a hop", vm.open_hop(0)).await.unwrap();
        handshake(&mut hop).await;
        drop(hop);
        soon("the slot", vm.slot_released(0)).await.unwrap();
    }
    let mut first = soon("the first hop", vm.open_hop(0)).await.unwrap();
    let mut second = soon("the second hop", vm.open_hop(1)).await.unwrap();
    handshake(&mut second).await;
    handshake(&mut first).await;
    drop(first);

    // The daemon's process of a session ends (they block SIGTERM): the hop delivers it, and the slot serves again.
    let all_but_the_oldest = "pidof nix-daemon | tr ' ' '\\n' | sort -n | tail -n +2";
    // The first hop's may be ending by itself at this very moment, for which `kill` fails.
    let kill = format!("kill -KILL $({all_but_the_oldest}) || true");
    in_guest(&vm, &kill).await;
    let mut rest = Vec::new();
    soon("the hop's end", second.stream.read_to_end(&mut rest))
        .await
        .unwrap();
    drop(second);
    for slot in [0, 1] {
        soon("the slot", vm.slot_released(slot)).await.unwrap();
        handshake(&mut soon("a hop", vm.open_hop(slot)).await.unwrap()).await;
    }
    assert!(vm.open_hop(2).await.is_err());

    vm.power_down();
    vm.power_down();
    assert_eq!(soon("the VM's end", vm.ended()).await, VmExit::Stopped);
    assert_nothing_is_left(dir.path());
    assert!(vm.open_hop(0).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_riscv64_vm_serves_hops_until_it_is_powered_down() {
    a_vm_serves_hops_until_it_is_powered_down(System::Riscv64Linux).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aarch64_vm_serves_hops_until_it_is_powered_down() {
    a_vm_serves_hops_until_it_is_powered_down(System::Aarch64Linux).await;
}

#[tokio::test]
async fn a_killed_qemu_ends_its_hops_and_names_the_signal() {
    let dir = TempDir::new().unwrap();
    let vm = clone_vm(dir.path()).await;
    let mut hop = soon("a hop", vm.open_hop(0)).await.unwrap();
    handshake(&mut hop).await;
    signal(qemu_pid(dir.path()).unwrap(), Signal::KILL);
    let ends = async {
        assert_eq!(hop.stream.read(&mut [0]).await.unwrap(), 0);
        vm.ended().await
    };
    let end = tokio::time::timeout(Duration::from_secs(2), ends)
        .await
        .unwrap();
    assert_eq!(
        end,
        VmExit::Died("QEMU was killed by signal 9 (SIGKILL)".to_owned())
    );
    assert!(vm.slot_released(0).await.is_err());
    assert_nothing_is_left(dir.path());
}

#[tokio::test]
async fn a_guest_that_panics_is_reported_as_such() {
    let dir = TempDir::new().unwrap();
    let vm = clone_vm(dir.path()).await;
    // The agent goes down with its guest, so there is no answer.
    let _ = vm
        .run("/bin/sh", &["-c", "echo c > /proc/sysrq-trigger"], PATIENCE)
        .await;
    let end = soon("the VM's end", vm.ended()).await;
    let VmExit::Died(cause) = end else {
        panic!("{end:?}")
    };
    assert!(cause.contains("panic"), "{cause}");
    assert_nothing_is_left(dir.path());
}

/// A file system of 64 MiB, unmounted with the test's end.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"])
            .arg(dir.path())
            .output();
        mount
            .is_ok_and(|output| output.status.success())
            .then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let umount = std::process::Command::new("umount")
            .arg(self.0.path())
            .status();
        assert!(umount.unwrap().success() || std::thread::panicking());
    }
}

#[tokio::test]
async fn a_full_disk_ends_the_vm_and_is_named() {
    let Some(disk) = SmallDisk::mount() else {
        return crate::common::skip(
            "a_full_disk_ends_the_vm_and_is_named",
            "making a small disk takes root",
        );
    };
    let dir = TempDir::new().unwrap();
    let mut spec = clone_spec(dir.path());
    spec.private_parent = disk.0.path().to_owned();
    let vm = Qemu::default()
        .boot(spec, &|_| {}, CancellationToken::new())
        .await
        .unwrap();
    let script = "dd if=/dev/urandom of=/var/tmp/big bs=1M count=100; sync";
    let fill = ["-c", script];
    // The agent of a guest that is paused does not answer.
    let filling = vm.run("/bin/sh", &fill, PATIENCE);
    let (_, end) = tokio::join!(filling, soon("the VM's end", vm.ended()));
    let folder = disk.0.path().display();
    let cause = format!("this machine's disk is full: no room for the VM's disk in `{folder}`");
    assert_eq!(end, VmExit::Died(cause));
    assert_eq!(std::fs::read_dir(disk.0.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_kill_ends_a_shutdown_that_takes_its_time() {
    let dir = TempDir::new().unwrap();
    let vm = clone_vm(dir.path()).await;
    vm.power_down();
    vm.kill();
    let end = tokio::time::timeout(Duration::from_secs(2), vm.ended())
        .await
        .unwrap();
    assert_eq!(end, VmExit::Stopped);
    assert_nothing_is_left(dir.path());
}

#[tokio::test]
async fn a_guest_without_an_agent_is_stopped_all_the_same() {
    let dir = TempDir::new().unwrap();
    let mut spec = clone_spec(dir.path());
    spec.stop_grace = Duration::from_secs(3);
    let vm = Qemu::default()
        .boot(spec, &|_| {}, CancellationToken::new())
        .await
        .unwrap();
    let _ = vm
        .run(
            "/bin/sh",
            &["-c", "kill -STOP $(pidof qemu-ga)"],
            Duration::from_secs(1),
        )
        .await;
    vm.power_down();
    assert_eq!(soon("the VM's end", vm.ended()).await, VmExit::Stopped);
    assert_nothing_is_left(dir.path());
}

#[tokio::test]
async fn a_qemu_that_hangs_is_killed_in_the_end() {
    let dir = TempDir::new().unwrap();
    let mut spec = clone_spec(dir.path());
    spec.stop_grace = Duration::from_secs(2);
    let vm = Qemu::default()
        .boot(spec, &|_| {}, CancellationToken::new())
        .await
        .unwrap();
    signal(qemu_pid(dir.path()).unwrap(), Signal::STOP);
    vm.power_down();
    assert_eq!(soon("the VM's end", vm.ended()).await, VmExit::Stopped);
    assert_nothing_is_left(dir.path());
}

#[tokio::test]
async fn a_guest_that_floods_its_console_fills_nothing_and_goes_on() {
    let dir = TempDir::new().unwrap();
    let vm = clone_vm(dir.path()).await;
    in_guest(
        &vm,
        "head -c 1200000 /dev/zero | tr '\\0' 'x' > /dev/console",
    )
    .await;
    handshake(&mut soon("a hop", vm.open_hop(0)).await.unwrap()).await;
    let sizes = ["console.log", "console.log.old"]
        .map(|log| std::fs::metadata(dir.path().join(log)).unwrap().len());
    assert!(sizes.iter().all(|size| *size <= 1024 * 1024), "{sizes:?}");
    vm.kill();
    vm.ended().await;
}

/// A daemon that says much and hangs up: nothing of it may be lost between the guest, QEMU and the hop.
#[tokio::test(flavor = "multi_thread")]
async fn all_that_a_guest_sent_arrives_before_the_end() {
    // Less than fits into the port, so that the guest has hung up before anybody reads.
    const SENT: usize = 600_000;
    let dir = TempDir::new().unwrap();
    let vm = clone_vm(dir.path()).await;
    let talker = format!(
        "cd /nix/var/nix/daemon-socket && mv socket silent || exit
         setsid socat UNIX-LISTEN:socket,fork 'SYSTEM:head -c {SENT} /dev/zero' >/dev/null 2>&1 &
         until [ -S socket ]; do sleep 0.1; done"
    );
    in_guest(&vm, &talker).await;
    // The hop that showed that the VM serves leads to the daemon.
    soon("the slot", vm.slot_released(0)).await.unwrap();
    for _ in 0..5 {
        let mut hop = soon("a hop", vm.open_hop(0)).await.unwrap();
        // Nobody reads meanwhile, so QEMU has to hold back.
        let hung_up = "while pidof xpool-guest dd > /dev/null; do sleep 0.1; done";
        in_guest(&vm, hung_up).await;
        let mut received = Vec::new();
        soon("the hop's end", hop.stream.read_to_end(&mut received))
            .await
            .unwrap();
        assert_eq!(received.len(), SENT);
        drop(hop);
        soon("the slot", vm.slot_released(0)).await.unwrap();
    }
    vm.kill();
    vm.ended().await;
}

#[tokio::test]
async fn a_dropped_vm_is_killed() {
    let dir = TempDir::new().unwrap();
    let vm = clone_vm(dir.path()).await;
    drop(vm);
    let gone = async {
        while std::fs::read_dir(private_parent(dir.path()))
            .unwrap()
            .next()
            .is_some()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("the VM to be gone", gone).await;
    assert_nothing_is_left(dir.path());
}

/// Boots until the guest agent is waited for, does `disturb`, and returns what the boot failed with.
async fn disturbed_boot(dir: &Path, disturb: impl Fn(&CancellationToken)) -> String {
    let abort = CancellationToken::new();
    let (waiting, waited) = tokio::sync::oneshot::channel();
    let waiting = Mutex::new(Some(waiting));
    let progress = move |stage: &str| {
        println!("{stage}");
        if stage == "waiting for the guest agent"
            && let Some(waiting) = waiting.lock().unwrap().take()
        {
            waiting.send(()).unwrap();
        }
    };
    let qemu = Qemu::default();
    let boot = qemu.boot(spec(System::Riscv64Linux, dir), &progress, abort.clone());
    let disturbance = async {
        waited.await.unwrap();
        disturb(&abort);
    };
    let (outcome, ()) = tokio::join!(
        tokio::time::timeout(Duration::from_secs(10), boot),
        disturbance
    );
    let Err(error) = outcome.expect("the boot fails at once") else {
        panic!("the boot succeeded")
    };
    format!("{error:#}")
}

#[tokio::test]
async fn an_aborted_boot_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let error = disturbed_boot(dir.path(), CancellationToken::cancel).await;
    assert_eq!(error, "the start of `riscv64-1` was aborted");
    assert_nothing_is_left(dir.path());
}

#[tokio::test]
async fn a_qemu_killed_during_boot_is_an_error_at_once() {
    let dir = TempDir::new().unwrap();
    let error = disturbed_boot(dir.path(), |_| {
        signal(qemu_pid(dir.path()).unwrap(), Signal::KILL);
    })
    .await;
    assert!(error.contains("killed by signal 9 (SIGKILL)"), "{error}");
    assert!(error.contains("console.log"), "{error}");
    assert_nothing_is_left(dir.path());
}

#[tokio::test]
async fn a_qemu_that_refuses_its_arguments_is_quoted() {
    let dir = TempDir::new().unwrap();
    let mut spec = spec(System::Riscv64Linux, dir.path());
    spec.profile.cpu = "abacus".to_owned();
    let outcome = Qemu::default()
        .boot(spec, &|_| {}, CancellationToken::new())
        .await;
    let error = format!("{:#}", outcome.err().unwrap());
    assert!(
        error.contains("QEMU exited with status 1") && error.contains("abacus"),
        "{error}"
    );
    assert_nothing_is_left(dir.path());
}

#[tokio::test]
async fn a_boot_that_takes_too_long_says_what_it_was_waiting_for() {
    let dir = TempDir::new().unwrap();
    let mut spec = spec(System::Riscv64Linux, dir.path());
    spec.boot_timeout = Duration::from_secs(1);
    let outcome = Qemu::default()
        .boot(spec, &|_| {}, CancellationToken::new())
        .await;
    let error = format!("{:#}", outcome.err().unwrap());
    assert!(
        error.contains("within 1s: still waiting for the guest agent"),
        "{error}"
    );
    assert_nothing_is_left(dir.path());
}
