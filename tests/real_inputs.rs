//! Inputs that need not be copied: this machine's store inside the guests. `scripts/test` makes the images and runs it.

#![allow(clippy::unwrap_used, reason = "tests: a panic is a failure")]

mod common;

use common::Installation;
use common::nix::{Nix, derivation, started};

/// The client's store is the one that VMs see.
const SHARED: &str = "[store]\nroot = \"[DIR]/client\"\n[pool]\nmax-vms = 2\nbuild-machines = 1\n";

/// The lines of the manager's log that tell how many inputs a session asked for, and how many it did not have to copy.
fn inputs(installation: &Installation) -> Vec<(usize, usize)> {
    let logs = installation.logs();
    let number = |line: &str, key: &str| {
        let rest = line.split_once(&format!("{key}="))?.1;
        rest.split_whitespace().next()?.parse().ok()
    };
    let lines = logs.lines().filter(|line| line.contains(" inputs "));
    lines
        .filter_map(|line| Some((number(line, "asked")?, number(line, "shared")?)))
        .collect()
}

#[test]
fn a_small_input_is_not_copied() {
    let (installation, _serving) = started(SHARED);
    let nix = Nix::new(&installation);
    let one = derivation(
        "riscv64-linux",
        "reads",
        r#"input = builtins.toFile "input" "hello";"#,
        "read -r text < $input || true; echo $text > $out",
    );

    assert_eq!(nix.results(&one), ["hello\n"]);
    assert_eq!(inputs(&installation), [(2, 2)]);
}
