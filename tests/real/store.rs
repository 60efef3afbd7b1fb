//! Real Nix clients whose store is /nix/store, as most have it: a folder of the test's that it, xpool and QEMU see there.

use std::fs;

use crate::common::Installation;
use crate::common::namespace;
use crate::common::nix::{Nix, derivation, stderr};

/// Has a derivation with a source built, and looks for its output in the folder that is /nix.
fn builds_from_a_source(nix: &Nix<'_>) {
    let dir = nix.installation.path();
    fs::write(dir.join("source"), "from a source").unwrap();
    let source = format!("source = {}/source;", dir.display());
    let script = r#"read -r text < $source; read -r machine < /proc/sys/kernel/arch
        echo "$text, on $machine" > $out"#;
    let derivation = derivation("riscv64-linux", "from-source", &source, script);
    assert_eq!(nix.results(&derivation), ["from a source, on riscv64\n"]);
    let output = nix.build(&derivation).output().unwrap();
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(
        path.starts_with("/nix/store/"),
        "{path}: {}",
        stderr(&output)
    );
    assert!(dir.join(&path[1..]).is_file());
    assert!(!fs::exists(&path).unwrap(), "it is in this machine's /nix");
}

#[test]
fn a_client_builds_into_a_real_nix_store() {
    if namespace::skipped("a real /nix/store") {
        return;
    }
    let installation = Installation::with_nix_folder("[pool]\nmax-vms = 1\n");
    let _serving = installation.serve();
    builds_from_a_source(&Nix::new(&installation));
}

#[test]
fn a_nix_daemon_builds_into_a_real_nix_store() {
    if namespace::skipped("a real /nix/store with a nix-daemon") {
        return;
    }
    let installation = Installation::with_nix_folder("[pool]\nmax-vms = 1\n");
    let _serving = installation.serve();
    let nix = Nix::new(&installation);
    let daemon = nix.daemon();
    builds_from_a_source(&nix.through(&daemon));
}

#[test]
fn a_newer_client_builds_into_a_real_nix_store() {
    if namespace::skipped("a real /nix/store with a newer Nix") {
        return;
    }
    let installation = Installation::with_nix_folder("[pool]\nmax-vms = 1\n");
    let _serving = installation.serve();
    builds_from_a_source(&Nix::newer(&installation));
}
