//! Clones of a real guest: what they share, and what they must not. `scripts/test` makes the images and runs it.

#![allow(clippy::unwrap_used, reason = "tests: a panic is a failure")]

mod common;

use std::path::Path;
use std::time::SystemTime;

use tempfile::TempDir;
use xpool::nix::System;
use xpool::vm::{Qemu, QemuVm, RunningVm as _, VmSpec};

use common::vm::{boot_with, handshake, in_guest, private_parent, soon, spec, templates};

fn clone_spec(system: System, name: &str, dir: &Path) -> VmSpec {
    VmSpec {
        name: name.to_owned(),
        templates: Some(templates()),
        console_log: dir.join(format!("{name}.log")),
        ..spec(system, dir)
    }
}

async fn two_clones(system: System, dir: &Path) -> [QemuVm; 2] {
    let qemu = Qemu::default();
    let (first, second) = tokio::join!(
        boot_with(&qemu, clone_spec(system, "one", dir)),
        boot_with(&qemu, clone_spec(system, "two", dir)),
    );
    [first, second]
}

async fn end(vms: [QemuVm; 2], dir: &Path) {
    for vm in vms {
        vm.power_down();
        soon("the VM's end", vm.ended()).await;
    }
    assert_eq!(std::fs::read_dir(private_parent(dir)).unwrap().count(), 0);
}

/// Seconds between the guest's clock and the host's.
async fn clock_error(vm: &QemuVm) -> f64 {
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let before = now();
    let guest: f64 = in_guest(vm, "/usr/bin/date +%s.%N")
        .await
        .trim()
        .parse()
        .unwrap();
    (before - guest).max(guest - now()).max(0.0)
}

async fn clones_share_nothing_that_tells_them_apart(system: System) {
    let dir = TempDir::new().unwrap();
    let vms = two_clones(system, dir.path()).await;
    let secrets = [
        "head -c 32 /dev/urandom | base64",
        "head -c 32 /dev/random | base64",
        "cat /proc/sys/kernel/random/uuid",
        "cat /etc/machine-id",
        "cat /proc/sys/kernel/hostname",
        "cat /etc/hosts",
    ];
    for secret in secrets {
        let [first, second] = &vms;
        let (first, second) = tokio::join!(in_guest(first, secret), in_guest(second, secret));
        assert_ne!(first, second, "{secret}");
    }
    for (vm, name) in vms.iter().zip(["one", "two"]) {
        assert_eq!(
            in_guest(vm, "cat /proc/sys/kernel/hostname").await.trim(),
            name
        );
        assert_eq!(in_guest(vm, "cat /etc/machine-id").await.trim().len(), 32);
        let keys = in_guest(
            vm,
            "find / -xdev -name 'ssh_host_*' -o -xdev -path '/etc/nix/*key*'",
        )
        .await;
        assert_eq!(keys, "");
        let error = clock_error(vm).await;
        assert!(error < 1.0, "the clock is {error} s off");
        assert_eq!(in_guest(vm, "xpool-guest timers").await.trim(), "2");
        handshake(&mut vm.open_hop(1).await.unwrap()).await;
    }
    end(vms, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_riscv64_clones_share_nothing_that_tells_them_apart() {
    clones_share_nothing_that_tells_them_apart(System::Riscv64Linux).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_aarch64_clones_share_nothing_that_tells_them_apart() {
    clones_share_nothing_that_tells_them_apart(System::Aarch64Linux).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_root_writes_in_a_clone_is_in_no_other_one() {
    let dir = TempDir::new().unwrap();
    let qemu = Qemu::default();
    let before = two_clones(System::Riscv64Linux, dir.path()).await;
    let places = "/nix/store/left /etc/left /root/left /var/left /bin/left";
    in_guest(
        &before[0],
        &format!("for file in {places}; do echo left > $file; done; sync"),
    )
    .await;
    in_guest(
        &before[0],
        "echo left > /etc/passwd; rm -rf /nix/var/nix/db; sync",
    )
    .await;
    let after = boot_with(&qemu, clone_spec(System::Riscv64Linux, "after", dir.path())).await;
    for vm in [&before[1], &after] {
        let found = in_guest(
            vm,
            "find / -xdev -name left; grep -c root: /etc/passwd; ls -d /nix/var/nix/db",
        )
        .await;
        assert_eq!(found, "1\n/nix/var/nix/db\n");
    }
    after.kill();
    soon("the VM's end", after.ended()).await;
    end(before, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_clone_goes_on_with_the_right_time() {
    let dir = TempDir::new().unwrap();
    let qemu = Qemu::default();
    let vm = boot_with(
        &qemu,
        clone_spec(System::Riscv64Linux, "paused", dir.path()),
    )
    .await;
    for _ in 0..2 {
        vm.pause().await.unwrap();
        vm.pause().await.unwrap();
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        vm.resume().await.unwrap();
        let error = clock_error(&vm).await;
        assert!(error < 1.0, "the clock is {error} s off");
        handshake(&mut vm.open_hop(0).await.unwrap()).await;
        soon("the slot", vm.slot_released(0)).await.unwrap();
    }
    vm.pause().await.unwrap();
    vm.power_down();
    soon("the end of a paused VM", vm.ended()).await;
}
