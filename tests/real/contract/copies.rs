//! Copies of a guest that was saved: what they share, and what they must not.

use std::path::Path;
use std::time::{Duration, SystemTime};

use xpool::image::Image;
use xpool::vm::{Qemu, QemuVm, RunningVm as _};

use super::{copy, for_each_image};
use crate::common::vm::{boot_with, handshake, in_guest, private_parent, soon};

async fn two_copies(image: &Image, dir: &Path) -> [QemuVm; 2] {
    let qemu = Qemu::default();
    let (first, second) = tokio::join!(
        boot_with(&qemu, copy(image, "one", dir)),
        boot_with(&qemu, copy(image, "two", dir)),
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
    // A shell's own date may know no fractions.
    let date = "IFS=:; for dir in $PATH; do [ ! -x $dir/date ] || exec $dir/date +%s.%N; done";
    let guest: f64 = in_guest(vm, date).await.trim().parse().unwrap();
    (before - guest).max(guest - now()).max(0.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_copies_share_nothing_that_tells_them_apart() {
    for_each_image(async |image, dir| {
        let vms = two_copies(image, dir).await;
        tell_apart(&vms).await;
        end(vms, dir).await;
    })
    .await;
}

async fn tell_apart(vms: &[QemuVm; 2]) {
    let secrets = [
        "head -c 32 /dev/urandom | base64",
        "head -c 32 /dev/random | base64",
        "cat /proc/sys/kernel/random/uuid",
        "cat /etc/machine-id",
        "cat /proc/sys/kernel/hostname",
        "cat /etc/hosts",
    ];
    for secret in secrets {
        let [first, second] = vms;
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
}

#[tokio::test(flavor = "multi_thread")]
async fn what_root_writes_in_a_copy_is_in_no_other_one() {
    for_each_image(async |image, dir| {
        let before = two_copies(image, dir).await;
        let places = "/nix/store/left /etc/left /root/left /var/left /bin/left";
        let write = format!("for file in {places}; do echo left > $file; done; sync");
        in_guest(&before[0], &write).await;
        let break_it = "echo left > /etc/passwd; rm -rf /nix/var/nix/db; sync";
        in_guest(&before[0], break_it).await;
        let after = boot_with(&Qemu::default(), copy(image, "after", dir)).await;
        for vm in [&before[1], &after] {
            let find = "find / -xdev -name left; grep -c root: /etc/passwd; ls -d /nix/var/nix/db";
            assert_eq!(in_guest(vm, find).await, "1\n/nix/var/nix/db\n");
        }
        after.kill();
        soon("the VM's end", after.ended()).await;
        end(before, dir).await;
    })
    .await;
}

/// What was written between the boot and the save is in the guest's memory, on the template's disk, and not on the image's.
#[tokio::test(flavor = "multi_thread")]
async fn the_disk_of_a_copy_has_what_its_memory_knows() {
    for_each_image(async |image, dir| {
        let vm = boot_with(&Qemu::default(), copy(image, "disk", dir)).await;
        let content = "find /etc /nix/var /var -xdev -path /var/log -prune -o -xdev -type f -print0 | sort -z | xargs -0 cat | sha256sum";
        let known = in_guest(&vm, content).await;
        in_guest(&vm, "sync && echo 3 > /proc/sys/vm/drop_caches").await;
        assert_eq!(in_guest(&vm, content).await, known);
        vm.kill();
        soon("the VM's end", vm.ended()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_copy_goes_on_with_the_right_time() {
    for_each_image(async |image, dir| {
        let vm = boot_with(&Qemu::default(), copy(image, "paused", dir)).await;
        for _ in 0..2 {
            vm.pause().await.unwrap();
            vm.pause().await.unwrap();
            tokio::time::sleep(Duration::from_secs(2)).await;
            vm.resume().await.unwrap();
            let error = clock_error(&vm).await;
            assert!(error < 1.0, "the clock is {error} s off");
            handshake(&mut vm.open_hop(0).await.unwrap()).await;
            soon("the slot", vm.slot_released(0)).await.unwrap();
        }
        vm.pause().await.unwrap();
        vm.power_down();
        soon("the end of a paused VM", vm.ended()).await;
    })
    .await;
}
