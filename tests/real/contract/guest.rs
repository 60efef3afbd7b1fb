//! A guest as it has booted: what is in it, what must not be, and how it ends.

use std::time::Duration;

use xpool::config::vm::Network;
use xpool::image::store::ImageStore;
use xpool::vm::{QemuVm, RunningVm as _, VmExit, VmSpec};

use super::{booted, for_each_image};
use crate::common::vm::{PATIENCE, boot_of, handshake, in_guest, soon};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_what_its_manifest_says() {
    for_each_image(async |image, dir| {
        let store = ImageStore::new(image.dir.parent().unwrap().to_owned());
        store.verify(image).unwrap();
        let vm = boot_of(booted(image, dir)).await;
        let manifest = &image.manifest;
        let [machine, kernel] = ["-m", "-r"].map(|flag| format!("uname {flag}"));
        assert_eq!(in_guest(&vm, &machine).await.trim(), manifest.system.cpu());
        assert_eq!(in_guest(&vm, &kernel).await.trim(), manifest.kernel_version);
        let version = in_guest(&vm, "nix-daemon --version").await;
        assert_eq!(
            version.split_whitespace().last(),
            Some(manifest.nix_version.as_str())
        );
        in_guest(&vm, "xpool-guest ready").await;
        assert_network(&vm).await;
        assert_no_secrets(&vm).await;
        vm.power_down();
        assert_eq!(soon("the end", vm.ended()).await, VmExit::Stopped);
    })
    .await;
}

async fn assert_network(vm: &QemuVm) {
    let address =
        "grep -q '10[.]0[.]2[.]15' /proc/net/fib_trie && cat /sys/class/net/eth0/operstate";
    assert_ne!(in_guest(vm, address).await.trim(), "down");
    in_guest(vm, "grep -q '10[.]0[.]2[.]3' /etc/resolv.conf").await;
}

/// No key that all guests would have, no password, nobody who listens for logins, and names of its own.
async fn assert_no_secrets(vm: &QemuVm) {
    let keys = "find / -xdev -name 'ssh_host_*_key' -o -xdev -path '/etc/nix/*key*' -o -xdev -name authorized_keys";
    assert_eq!(in_guest(vm, keys).await, "");
    let passwords = "[ ! -e /etc/shadow ] || while IFS=: read -r name password _; do
        case $password in '' | [!*!]*) echo \"$name $password\" ;; esac; done </etc/shadow";
    assert_eq!(in_guest(vm, passwords).await, "");
    // State 0A listens; 0016 is port 22.
    let listening = "grep -i ':0016 .* 0A ' /proc/net/tcp /proc/net/tcp6 || true";
    assert_eq!(in_guest(vm, listening).await, "");
    assert_eq!(in_guest(vm, "cat /etc/machine-id").await.trim().len(), 32);
    let name = in_guest(vm, "cat /proc/sys/kernel/hostname").await;
    assert!(
        !["", "localhost", "(none)"].contains(&name.trim()),
        "{name}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_without_a_network_serves_and_ends_by_a_panic() {
    for_each_image(async |image, dir| {
        let spec = VmSpec {
            network: Network::None,
            ..booted(image, dir)
        };
        let vm = boot_of(spec).await;
        // A kernel may have tunnels of its own accord, which lead nowhere.
        let cards = "for net in /sys/class/net/*; do [ ! -e $net/device ] || echo $net; done";
        assert_eq!(in_guest(&vm, cards).await, "");
        handshake(&mut vm.open_hop(0).await.unwrap()).await;
        // The agent goes down with its guest, so there is no answer.
        let panic = "echo c > /proc/sysrq-trigger";
        let _ = vm.run("/bin/sh", &["-c", panic], PATIENCE).await;
        let end = soon("the VM's end", vm.ended()).await;
        assert!(matches!(end, VmExit::Died(_)), "{end:?}");
    })
    .await;
}

/// Process numbers of a program, for who has no tools for that.
fn processes_of(program: &str) -> String {
    format!(
        "for comm in /proc/[0-9]*/comm; do read -r name 2>/dev/null <$comm && [ \"$name\" = {program} ] &&
            pid=${{comm%/comm}} && echo ${{pid##*/}}; done; true"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_and_the_daemon_are_started_again_and_off_is_off() {
    for_each_image(async |image, dir| {
        let vm = boot_of(booted(image, dir)).await;
        kill_and_see_it_again(&vm, "nix-daemon").await;
        handshake(&mut vm.open_hop(0).await.unwrap()).await;
        kill_and_see_it_again(&vm, "qemu-ga").await;
        // Its answer goes down with it.
        let off = vm.run("/usr/bin/xpool-guest", &["shutdown"], PATIENCE);
        let (_, end) = tokio::join!(off, soon("the end", vm.ended()));
        assert_eq!(end, VmExit::Died("the guest powered itself off".to_owned()));
    })
    .await;
}

/// How long an answer is waited for that may never come.
const NO_ANSWER: Duration = Duration::from_secs(2);

async fn kill_and_see_it_again(vm: &QemuVm, program: &str) {
    let find = processes_of(program);
    let before = in_guest(vm, &find).await;
    let kill = format!("kill -KILL {}", before.split_whitespace().next().unwrap());
    // The agent cannot tell of its own end, and is not waited for; what follows looks whether it came.
    let _ = vm.run("/bin/sh", &["-c", &kill], NO_ANSWER).await;
    let again = async {
        loop {
            let shell = vm.run("/bin/sh", &["-c", &find], PATIENCE).await;
            let found = shell.map(|output| output.stdout).unwrap_or_default();
            if !found.is_empty() && found != before.as_bytes() {
                return;
            }
        }
    };
    soon(program, again).await;
}
