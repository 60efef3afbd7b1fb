//! Pools of real VMs that grow with what waits, within what they may have, and go. `scripts/test` makes the images and runs it.

use std::fs;
use std::path::PathBuf;

use crate::common::nix::{Nix, Running, derivation, started, tooled};
use crate::common::tier::volume;
use crate::common::{Installation, qemu};
use serde_json::Value;

const RISCV64: &str = "riscv64-linux";
const AARCH64: &str = "aarch64-linux";

/// So many builds that may be done at the same time, and take some time each.
fn burst(system: &str, count: u32, seconds: u32) -> String {
    let script = format!("sleep {seconds}; echo number $n > $out");
    let one = tooled(system, "one-of-many", "inherit n;", &script);
    format!("builtins.genList (n: {one}) {count}")
}

/// Waits for the end of a build, looking at the machine all the time.
#[track_caller]
fn watch(installation: &Installation, running: &mut Running, mut look: impl FnMut(&Value)) {
    let mut exit = None;
    installation.until("all is built", || {
        look(&installation.status());
        exit = running.child.try_wait().unwrap();
        exit.is_some()
    });
    assert!(exit.unwrap().success(), "{}", running.log());
}

/// The VMs of a system in a status.
fn vms_of<'a>(status: &'a Value, system: &str) -> &'a Vec<Value> {
    let mut systems = status["systems"].as_array().unwrap().iter();
    let pool = systems.find(|pool| pool["system"] == system).unwrap();
    pool["vms"].as_array().unwrap()
}

fn vcpus(vms: &[Value]) -> u64 {
    vms.iter().map(|vm| vm["vcpus"].as_u64().unwrap()).sum()
}

#[test]
fn a_burst_of_builds_takes_a_pool_from_no_vm_to_six_and_back() {
    let (installation, _serving) = started("[pool]\nmax-vms = 6\nbuild-machines = 12\n");
    let nix = Nix::new(&installation);
    let builds = volume(12, 30);
    let mut running = nix.start(&burst(RISCV64, builds, 3));
    let mut most = 0;
    watch(&installation, &mut running, |status| {
        let there = vms_of(status, RISCV64).len();
        assert!(there <= 6, "{there} VMs");
        most = most.max(there);
    });
    assert_eq!(most, 6);
    installation.until("every VM is gone", || {
        installation.list(RISCV64, "vms").is_empty() && installation.qemus().is_empty()
    });
    // Each build had a VM that was started for it, and no other was started.
    let logs = installation.logs();
    assert_eq!(logs.matches("VM ready").count(), builds as usize, "{logs}");
}

#[test]
fn two_systems_share_one_budget_and_both_get_on() {
    let (installation, _serving) =
        started("[budget]\nvcpus = 2\n[pool]\nmax-vms = 4\nvcpus = 1\nbuild-machines = 6\n");
    let nix = Nix::new(&installation);
    let both = format!("({}) ++ ({})", burst(RISCV64, 6, 2), burst(AARCH64, 6, 2));
    let mut running = nix.start(&both);
    let mut mixed = false;
    watch(&installation, &mut running, |status| {
        let (riscv64, aarch64) = (vms_of(status, RISCV64), vms_of(status, AARCH64));
        assert!(vcpus(riscv64) + vcpus(aarch64) <= 2, "{status}");
        mixed |= !riscv64.is_empty() && !aarch64.is_empty();
    });
    assert!(mixed, "one system waited for all of the other's builds");
    let logs = installation.logs();
    assert_eq!(logs.matches("VM ready").count(), 12, "{logs}");
}

#[test]
fn a_budget_for_one_vm_lets_builds_wait_says_why_and_all_end_well() {
    let (installation, _serving) =
        started("[budget]\nmemory-mib = 2048\n[pool]\nmax-vms = 4\nbuild-machines = 4\n");
    let nix = Nix::new(&installation);
    let mut running = nix.start(&burst(RISCV64, 4, 3));
    let mut answers = Vec::new();
    watch(&installation, &mut running, |status| {
        assert!(vms_of(status, RISCV64).len() <= 1, "{status}");
        let sessions = installation.list(RISCV64, "sessions");
        let waiting = sessions.iter().find(|session| session["vm"].is_null());
        if let Some(id) = waiting.and_then(|session| session["id"].as_u64()) {
            answers.push(installation.run(&["why", &id.to_string()]).stdout);
        }
    });
    let says_why = |answer: &String| answer.contains("budget");
    assert!(answers.iter().any(says_why), "{answers:?}");
}

/// A QEMU that tells its version and otherwise ends at once, as long as there is the file `broken`.
fn fragile_qemu(installation: &Installation) -> PathBuf {
    let broken = installation.path().join("broken");
    let end = format!(
        "if [ -e {} ] && [ \"$*\" != --version ]; then echo it is broken >&2; exit 1; fi",
        broken.display()
    );
    qemu::put_before(installation, &end);
    fs::write(&broken, "").unwrap();
    broken
}

#[test]
fn starts_that_fail_degrade_a_pool_and_one_that_does_not_heals_it() {
    let installation = Installation::with_real_images("[pool]\ntemplate = false\n");
    let broken = fragile_qemu(&installation);
    let _serving = installation.serve();
    let nix = Nix::new(&installation);
    let expression = derivation(RISCV64, "patient", "", "echo built > $out");
    let output = nix.build(&expression).output().unwrap();
    let said = crate::common::nix::stderr(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("it is broken"), "{said}");
    let status = installation.run(&["status"]);
    assert_eq!(status.code, Some(1), "{status:?}");
    assert!(status.stdout.contains("degraded"), "{status:?}");
    // A build that comes now is told at once.
    let again = nix.build(&expression).output().unwrap();
    let said = crate::common::nix::stderr(&again);
    assert!(said.contains("the last 3 starts failed"), "{said}");

    fs::remove_file(broken).unwrap();
    installation.until("a start is tried again, and a build ends well", || {
        nix.build(&expression).output().unwrap().status.success()
    });
    assert_eq!(installation.run(&["status"]).code, Some(0));
    let logs = installation.logs();
    assert_eq!(logs.matches("starting a VM").count(), 4, "{logs}");
}

#[test]
fn a_start_that_takes_longer_than_the_boot_timeout_fails_and_says_so() {
    // Wanted for as long as it takes: on a busy machine a start waits.
    let (installation, _serving) =
        started("[pool]\ntemplate = false\nboot-timeout = \"1s\"\nmin-vms = 1\n");
    installation.until("the start has failed", || {
        let status = installation.run(&["status"]).stdout;
        status.contains("within 1s: still waiting for the guest agent")
    });
}
