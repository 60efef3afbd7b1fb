//! Nix that takes a port in a URI: what is installed leads it to a machine, and ssh needs no configuration. `scripts/test`
//! makes the images and runs it.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::common::nix::{MACHINE, derivation, started};
use crate::common::{namespace, skip};

#[test]
fn newest_nix_builds_by_address_and_port_without_an_ssh_configuration() {
    let test = "newest_nix_builds_by_address_and_port_without_an_ssh_configuration";
    let clients = std::env::var_os("XPOOL_TEST_CLIENTS")
        .expect("run `scripts/test`, which makes the other clients");
    let system = Path::new(&clients).join("sid");
    if !system.exists() {
        return skip(test, "there is no root with the Nix of Debian sid");
    }
    if namespace::skipped(test) {
        return;
    }
    let (installation, _serving) =
        started("[store]\nroot = \"[DIR]/client\"\n[pool]\nmax-vms = 1\n");
    let dir = installation.path();
    // In its namespace the client is root, whoever runs the test: this is what its configuration would be.
    let mut conf = installation.command(&[
        "machines",
        "--format",
        "nix-conf",
        "--transport",
        "ssh",
        "--nix-version",
        "2.31",
    ]);
    let conf = String::from_utf8(conf.output().unwrap().stdout).unwrap()
        + "build-users-group =\nsubstitute = false\n";
    fs::write(dir.join("nix.conf"), conf).unwrap();
    let expression = derivation("riscv64-linux", "port", "", MACHINE);
    let mut build = installation.program(&system, "nix-build");
    let output = build
        .arg("--store")
        .arg(dir.join("client"))
        .args(["--no-out-link", "-E", &expression])
        .env("NIX_CONF_DIR", dir)
        .env("HOME", dir)
        .env_remove("NIX_REMOTE")
        .env_remove("NIX_SSHOPTS")
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let output = installation.said(output);
    assert_eq!(
        output.code,
        Some(0),
        "{}\n{}",
        output.stderr,
        installation.logs()
    );
    assert!(
        output.stderr.contains("on 'ssh-ng://riscv64-00@127.0.0.1:"),
        "{}",
        output.stderr
    );
    let result = output.stdout.trim();
    let result = fs::read_to_string(format!("{}{result}", dir.join("client").display()));
    assert_eq!(result.unwrap(), "riscv64\n");
}
