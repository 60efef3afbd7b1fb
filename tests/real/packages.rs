//! Real packages that run their own test suites: tests/packages. The tool chains and sources that they are built with are of
//! `scripts/packages`, in a store in the cache, which the VMs see.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::common::Installation;
use crate::common::inputs::{copied, inputs, on_host};
use crate::common::nix::{Nix, started, stderr};

/// Where `scripts/packages` has put everything.
fn place() -> PathBuf {
    let place = std::env::var_os("XPOOL_TEST_PACKAGES");
    PathBuf::from(place.expect("run `scripts/test`, which makes the tool chains"))
}

/// The tool chain of a package.
fn tools_of(system: &str, name: &str) -> String {
    match name {
        "strsim" | "uuid" | "xxhash" => format!("{system}-languages"),
        _ => system.to_owned(),
    }
}

/// One of tests/packages/packages.nix, for a system; another derivation for each installation.
fn package(installation: &Installation, system: &str, name: &str, optimize: &str) -> String {
    let place = place();
    let source = if name == "linux" { "linux" } else { "sources" };
    let tools = tools_of(system, name);
    format!(
        r#"(import {root}/tests/packages/packages.nix (import {place}/{tools}.nix // import {place}/{source}.nix // {{
            optimize = "{optimize}"; salt = "{salt}"; }})).{name}"#,
        root = env!("CARGO_MANIFEST_DIR"),
        place = place.display(),
        salt = installation.path().display(),
    )
}

/// What packages are compiled with where there is time.
const OPTIMIZE: &str = "-O2";

/// A client of the store that has the tool chains.
fn client(installation: &Installation) -> Nix<'_> {
    let mut nix = Nix::new(installation);
    nix.store = place().join("store");
    nix
}

/// What a package says of its tests, after a build; its output goes.
#[track_caller]
fn tests_of(nix: &Nix<'_>, mut build: Command) -> String {
    let output = build.output().unwrap();
    let log = stderr(&output);
    let logs = nix.installation.logs();
    assert!(output.status.success(), "{log}\n{logs}");
    assert_eq!(copied(&log), [""; 0], "{log}");
    let path = String::from_utf8(output.stdout).unwrap();
    let path = path.trim();
    let tests = fs::read_to_string(on_host(nix, path).join("tests")).unwrap();
    let mut delete = nix.program("nix-store");
    delete.arg("--store").arg(&nix.store);
    let deleted = delete.args(["--delete", path]).output().unwrap();
    assert!(deleted.status.success(), "{}", stderr(&deleted));
    tests
}

/// Builds a package in a fresh VM, and runs its tests.
#[track_caller]
fn in_a_vm(system: &str, name: &str, optimize: &str) -> String {
    let store = place().join("store");
    let config = format!(
        "[store]\nroot = \"{}\"\n[pool]\nmax-vms = 1\n",
        store.display()
    );
    let (installation, _serving) = started(&config);
    let nix = client(&installation);
    let tests = tests_of(
        &nix,
        nix.build(&package(&installation, system, name, optimize)),
    );
    let [(asked, shared)] = inputs(&installation)[..] else {
        panic!("{}", installation.logs());
    };
    assert!(asked == shared && asked > 5, "{asked} {shared}");
    tests
}

/// The same on this machine, in Nix's sandbox, for what other systems are compared with.
#[track_caller]
fn on_this_machine(name: &str) -> String {
    const SYSTEM: &str = "x86_64-linux";
    let installation = Installation::with_real_images("");
    let _serving = installation.serve();
    let nix = client(&installation);
    let arguments =
        fs::read_to_string(place().join(format!("{}.nix", tools_of(SYSTEM, name)))).unwrap();
    let (_, tools) = arguments
        .split_once("tools = builtins.storePath \"")
        .unwrap();
    let (tools, _) = tools.split_once('"').unwrap();
    let shell = on_host(&nix, &format!("{tools}/bin/bash-static"));
    let mut build = nix.build_on("", &package(&installation, SYSTEM, name, OPTIMIZE));
    let sandbox = format!("/bin/sh={}", shell.display());
    build.args(["--option", "sandbox-paths", &sandbox]);
    tests_of(&nix, build)
}

/// Keeps what a test suite has said, for the report of the full tier.
fn note(name: &str, system: &str, tests: &str) {
    let folder = place().join("tests");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(format!("{name} {system}")), tests).unwrap();
}

/// Where a test suite says something else than on this machine, and why.
const DIFFERENCES: [(&str, &str, &str); 0] = [];

#[track_caller]
fn as_on_this_machine(system: &str, name: &str) {
    let here = on_this_machine(name);
    let there = in_a_vm(system, name, OPTIMIZE);
    note(name, "x86_64-linux", &here);
    note(name, system, &there);
    let different = DIFFERENCES
        .iter()
        .find(|(of, package, _)| (*of, *package) == (system, name));
    let expected = different.map_or(&*here, |(_, _, tests)| tests);
    assert_eq!(there, expected, "{name} on {system}");
}

#[test]
fn a_package_in_c_passes_its_tests_in_a_vm() {
    insta::assert_snapshot!(in_a_vm("riscv64-linux", "bzip2", "-O0"), @"passed 6, failed 0, skipped 0");
}

#[test]
fn a_package_in_cxx_passes_its_tests_in_a_vm() {
    insta::assert_snapshot!(in_a_vm("riscv64-linux", "tinyxml2", "-O0"), @"passed 517, failed 0, skipped 0");
}

/// Of the full tier: each takes up to half an hour.
mod full {
    use super::as_on_this_machine;

    macro_rules! packages {
        ($($test:ident = $name:literal,)*) => {$(
            mod $test {
                #[test]
                fn riscv64() {
                    super::as_on_this_machine("riscv64-linux", $name);
                }

                #[test]
                fn aarch64() {
                    super::as_on_this_machine("aarch64-linux", $name);
                }
            }
        )*};
    }

    packages! {
        popt = "popt",
        bzip2 = "bzip2",
        json_c = "json-c",
        jsoncpp = "jsoncpp",
        tinyxml2 = "tinyxml2",
        libuv = "libuv",
        linux = "linux",
        xxhash = "xxhash",
        strsim = "strsim",
        uuid = "uuid",
    }
}
