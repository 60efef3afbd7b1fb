//! Inputs that VMs see are not deleted from this machine's store. `scripts/test` makes the images and runs it.

use crate::common::Installation;
use crate::common::inputs::{SHARED, added, copied, inputs, on_host, said};
use crate::common::namespace;
use crate::common::nix::{Nix, started, stderr, tooled};
use crate::common::{Serving, ended};

const SYSTEM: &str = "riscv64-linux";

/// VMs that serve on, and see this machine's store.
const SERVES_ON: &str = "reuse = \"always\"\n";

fn collect_garbage(nix: &Nix<'_>) {
    said(nix, "nix-collect-garbage", &[]);
}

#[test]
fn garbage_collection_on_this_machine_takes_nothing_from_a_build_that_runs() {
    let (installation, _serving) = started(SHARED);
    let nix = Nix::new(&installation);
    let garbage = added(&nix, "garbage", "nobody uses this");
    // The guest has read none of these before they could be deleted.
    let many = r#"many = map (i: builtins.toFile "input-${toString i}" "input ${toString i}\n") (builtins.genList (i: i) 50);"#;
    let script = "echo the build runs; sleep 5; cat $many > $out";
    let reads = tooled(SYSTEM, "reads", many, script);
    let mut running = nix.start(&reads);
    installation.until("the build runs", || {
        running.log().contains("the build runs")
    });
    collect_garbage(&nix);
    assert!(!on_host(&nix, &garbage).exists());
    assert_eq!(running.child.try_wait().unwrap(), None, "{}", running.log());
    assert_eq!(ended(&mut running.child), Some(0), "{}", running.log());
    assert_eq!(copied(&running.log()), [""; 0], "{}", running.log());
    assert_eq!(inputs(&installation), [(52, 52)]);
    let expected: Vec<String> = (0..50).map(|i| format!("input {i}\n")).collect();
    assert_eq!(nix.results(&reads), [expected.concat()]);
}

/// Has a client ask for a path, and leave: it then holds the path no more.
#[track_caller]
fn asks_for(nix: &Nix<'_>, path: &str) {
    let mut copy = nix.program("nix");
    if !nix.installation.has_nix_folder() {
        copy.arg("--store").arg(&nix.store);
    }
    let to = ["copy", "--to", "ssh-ng://riscv64-00@xpool-riscv64"];
    let output = copy.args(to).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(copied(&stderr(&output)), [""; 0]);
    nix.installation.until("its session is over", || {
        nix.installation.list(SYSTEM, "sessions").is_empty()
    });
}

fn held_as_long_as_its_vm_lives(nix: &Nix<'_>, mut serving: Serving) {
    let installation = nix.installation;
    let paths = ["one", "two", "three"].map(|name| added(nix, name, &format!("this is {name}")));
    let [one, two, three] = &paths;
    let there = || paths.each_ref().map(|path| on_host(nix, path).exists());
    // A second session of the same VM takes nothing from the first one.
    asks_for(nix, one);
    asks_for(nix, two);
    assert_eq!(inputs(installation), [(1, 1), (1, 1)], "{one} {two}");
    collect_garbage(nix);
    assert_eq!(there(), [true, true, false], "{three}");
    assert_eq!(installation.logs().matches("VM ready").count(), 1);

    installation.ok(&["down"]);
    assert_eq!(serving.ended(), Some(0));
    collect_garbage(nix);
    assert_eq!(there(), [false; 3]);
}

#[test]
fn what_a_vm_was_given_stays_until_the_vm_is_gone() {
    let (installation, serving) = started(&(SHARED.to_owned() + SERVES_ON));
    held_as_long_as_its_vm_lives(&Nix::new(&installation), serving);
}

#[test]
fn what_a_vm_was_given_by_a_nix_daemon_stays_until_the_vm_is_gone() {
    if namespace::skipped("what a nix-daemon's store has stays") {
        return;
    }
    let installation = Installation::with_nix_folder(&format!("[pool]\nmax-vms = 1\n{SERVES_ON}"));
    let nix = Nix::newer(&installation);
    let daemon = nix.daemon();
    let serving = installation.serve();
    held_as_long_as_its_vm_lives(&nix.through(&daemon), serving);
}
