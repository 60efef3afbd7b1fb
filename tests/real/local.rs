//! The local transport: Nix starts `xpool connect`, and what happens to a build when the manager, the client, or QEMU goes away.
//! `scripts/test` makes the images and runs it.

use std::time::Duration;

use crate::common::nix::{Nix, Running, Transport, Version, derivation, sleeper, started};
use crate::common::{ended, now, pid_of, signal};
use rustix::process::{Signal, kill_process_group};

const SYSTEM: &str = "riscv64-linux";

fn nix(installation: &crate::common::Installation) -> Nix<'_> {
    Nix::by(Transport::Local, Version::Own, installation)
}

#[track_caller]
fn until_it_runs(nix: &Nix<'_>, running: &Running) {
    nix.installation.until("the build runs", || {
        running.log().contains("the build runs")
    });
}

#[test]
fn a_build_goes_on_when_the_manager_is_killed_and_another_one_comes() {
    let (installation, mut serving) = started("[pool]\nmax-vms = 1\n");
    let nix = nix(&installation);
    let mut running = nix.start(&sleeper(8));
    until_it_runs(&nix, &running);
    serving.signal(Signal::KILL);
    serving.ended();
    let qemus = installation.qemus();
    assert_eq!(qemus.len(), 1);
    let _serving = installation.serve();
    assert_eq!(installation.qemus(), qemus, "the build's VM was ended");
    assert!(running.child.try_wait().unwrap().is_none());
    // The new manager serves meanwhile.
    let hello = derivation(SYSTEM, "hello", "", "echo hello > $out");
    assert_eq!(nix.results(&hello), ["hello\n"]);
    assert_eq!(ended(&mut running.child), Some(0), "{}", running.log());
    installation.until("the VM of the killed manager is gone", || {
        installation.qemus().is_empty() && installation.leftovers().is_empty()
    });
    // It is there, and is not built again.
    assert_eq!(nix.results(&sleeper(8)), ["done\n"]);
}

#[test]
fn down_without_a_manager_waits_for_a_build_that_goes_on() {
    let (installation, mut serving) = started("[pool]\nmax-vms = 1\n");
    let nix = nix(&installation);
    let mut running = nix.start(&sleeper(5));
    until_it_runs(&nix, &running);
    serving.signal(Signal::KILL);
    serving.ended();
    let said = installation.run(&["down"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stderr.contains("waiting for a build"),
        "{}",
        said.stderr
    );
    assert_eq!(ended(&mut running.child), Some(0), "{}", running.log());
    assert!(installation.qemus().is_empty() && installation.leftovers().is_empty());
}

#[test]
fn a_session_that_waits_is_served_by_the_manager_that_comes_next() {
    let (installation, mut serving) = started("[pool]\nmax-vms = 1\n");
    let nix = nix(&installation);
    let mut first = nix.start(&sleeper(600));
    until_it_runs(&nix, &first);
    let hello = derivation(SYSTEM, "hello", "", "echo hello > $out");
    let mut waiting = Running::start(nix.build(&hello), installation.path().join("waiting.log"));
    installation.until("the second build waits", || {
        installation.list(SYSTEM, "sessions").len() == 2
    });
    serving.signal(Signal::KILL);
    serving.ended();
    kill_process_group(pid_of(first.child.id()), Signal::KILL).unwrap();
    first.child.wait().unwrap();
    let _serving = installation.serve();
    assert_eq!(ended(&mut waiting.child), Some(0), "{}", waiting.log());
}

#[test]
fn a_client_that_is_killed_ends_its_vm() {
    let (installation, _serving) = started("[pool]\nmax-vms = 1\n");
    let nix = nix(&installation);
    let mut running = nix.start(&sleeper(600));
    until_it_runs(&nix, &running);
    kill_process_group(pid_of(running.child.id()), Signal::KILL).unwrap();
    running.child.wait().unwrap();
    installation.until("session and VM are gone", || {
        installation.list(SYSTEM, "sessions").is_empty() && installation.qemus().is_empty()
    });
}

#[test]
fn a_qemu_that_is_killed_is_named_to_the_client() {
    let (installation, _serving) = started("[pool]\nmax-vms = 1\n");
    let nix = nix(&installation);
    let mut running = nix.start(&sleeper(600));
    until_it_runs(&nix, &running);
    let killed = now();
    signal(installation.qemus()[0], Signal::KILL);
    assert_ne!(ended(&mut running.child), Some(0), "{}", running.log());
    assert!(killed.elapsed() < Duration::from_secs(2));
    let log = running.log();
    assert!(
        log.contains("riscv64-1 ended") && log.contains("killed by signal 9"),
        "{log}"
    );
}
