//! A pool of real VMs that grows with what waits, and goes. `scripts/test` makes the images and runs it.

#![allow(clippy::unwrap_used, reason = "tests: a panic is a failure")]

mod common;

use common::nix::{Nix, derivation, started};

const SYSTEM: &str = "riscv64-linux";

/// So many builds that may be done at the same time, and take some time each.
fn burst(count: u32, seconds: u32) -> String {
    let script = format!("sleep {seconds}; echo number $n > $out");
    let one = derivation(SYSTEM, "one-of-many", "inherit n;", &script);
    format!("builtins.genList (n: {one}) {count}")
}

#[test]
fn a_burst_of_thirty_builds_takes_a_pool_from_no_vm_to_six_and_back() {
    let (installation, _serving) = started("[pool]\nmax-vms = 6\nbuild-machines = 12\n");
    let nix = Nix::new(&installation);
    let mut running = nix.start(&burst(30, 3));
    let mut most = 0;
    let mut exit = None;
    installation.until("all is built", || {
        let there = installation.list(SYSTEM, "vms").len();
        assert!(there <= 6, "{there} VMs");
        most = most.max(there);
        exit = running.child.try_wait().unwrap();
        exit.is_some()
    });
    assert!(exit.unwrap().success(), "{}", running.log());
    assert_eq!(most, 6);
    installation.until("every VM is gone", || {
        installation.list(SYSTEM, "vms").is_empty() && installation.qemus().is_empty()
    });
    // Each build had a VM that was started for it, and no other was started.
    let logs = installation.logs();
    assert_eq!(logs.matches("VM ready").count(), 30, "{logs}");
}
