//! Real Nix clients that name the machine they want, and machines that go when everything is fetched. `scripts/test` makes the
//! images and runs it.

use std::fs;
use std::process::Command;

use crate::common::nix::{Nix, Running, derivation, sleeper, started, stderr};
use crate::common::{ended, namespace};

const SYSTEM: &str = "riscv64-linux";
const VM: &str = "ssh-ng://vm-riscv64-1@xpool-riscv64";

/// Runs it; what it wrote to its standard output.
#[track_caller]
fn ok(nix: &Nix, command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        stderr(&output),
        nix.installation.logs()
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// `nix …` as a person types it, in the client's own store.
fn nix_in(nix: &Nix, store: &str, args: &[&str]) -> Command {
    let mut command = nix.program("nix");
    command.args(args).args(["--store", store]);
    command
}

/// A path in the client's store.
fn added(nix: &Nix, name: &str) -> String {
    let file = nix.installation.path().join(name);
    fs::write(&file, name).unwrap();
    let mut command = nix.program("nix-store");
    command.arg("--store").arg(&nix.store).arg("--add");
    ok(nix, command.arg(file))
}

#[test]
fn what_one_command_puts_into_a_machine_the_next_one_finds_there() {
    let (installation, _serving) = started("[pool]\nmax-vms = 2\n");
    installation.ok(&["up", "riscv64"]);
    let nix = Nix::new(&installation);
    let own = nix.store.to_str().unwrap().to_owned();

    ok(&nix, &mut nix_in(&nix, VM, &["store", "ping"]));
    let paths = [added(&nix, "one"), added(&nix, "two")];
    for path in &paths {
        ok(&nix, &mut nix_in(&nix, &own, &["copy", "--to", VM, path]));
    }
    let info = ["path-info", &paths[0], &paths[1]];
    let known = ok(&nix, &mut nix_in(&nix, VM, &info));
    assert_eq!(known.lines().count(), 2, "{known}");

    // A build for anybody gets another machine, and the store of this one stays as it is.
    let mut build = nix.start(&sleeper(1));
    installation.until("the build has a machine of its own", || {
        let sessions = installation.list(SYSTEM, "sessions");
        sessions.iter().any(|session| {
            let slot = session["slot"].as_str().unwrap();
            slot.starts_with("riscv64-") && session["vm"] == "riscv64-2"
        })
    });
    assert_eq!(ended(&mut build.child), Some(0), "{}", build.log());

    // More than the one build that a machine has otherwise.
    let mut results = Vec::new();
    for name in ["three", "four"] {
        let script = format!("read -r one < {}; echo $one {name} > $out", paths[0]);
        let one = format!("one = builtins.storePath {};", paths[0]);
        let expression = derivation(SYSTEM, name, &one, &script);
        let mut command = nix.program("nix-build");
        command.args(["--store", VM, "--no-out-link", "-E", &expression]);
        results.push(ok(&nix, &mut command));
    }
    let second = installation.path().join("second");
    for (path, text) in results.iter().zip(["one three\n", "one four\n"]) {
        let to = second.to_str().unwrap();
        let copy = [
            "copy",
            "--no-check-sigs",
            "--from",
            VM,
            "--to",
            to,
            path.as_str(),
        ];
        ok(&nix, nix.program("nix").args(copy));
        let copied = fs::read_to_string(format!("{to}{path}")).unwrap();
        assert_eq!(copied, text);
    }
    let vms = installation.list(SYSTEM, "vms");
    assert_eq!(
        (&vms[0]["name"], &vms[0]["state"]),
        (&"riscv64-1".into(), &"pinned".into())
    );

    let nowhere = VM.replace("riscv64-1", "riscv64-77");
    let asked = nix_in(&nix, &nowhere, &["path-info", &paths[0]]).output();
    let said = stderr(&asked.unwrap());
    let expected = "xpool: there is no VM riscv64-77: there is riscv64-1";
    assert!(said.contains(expected), "{said}");
}

/// A client that connects anew for each output (2.26 does, 2.8 does not). The machine would be kept for longer than a test
/// waits if nobody knew which output is the last.
#[test]
fn a_machine_goes_when_the_last_of_its_outputs_is_fetched() {
    if namespace::skipped("outputs that are fetched by connections of their own") {
        return;
    }
    let (installation, _serving) = started("[pool]\nmax-vms = 1\nlease = \"1h\"\n");
    let nix = Nix::newer(&installation);
    let three = derivation(
        SYSTEM,
        "three",
        r#"outputs = [ "out" "dev" "man" ];"#,
        "echo out > $out; echo dev > $dev; echo man > $man",
    );
    let results = nix.results(&format!("let d = {three}; in [ d.out d.dev d.man ]"));
    assert_eq!(results, ["out\n", "dev\n", "man\n"]);
    installation.until("the machine is gone", || installation.qemus().is_empty());
    let logs = installation.logs();
    let count = |text: &str| logs.lines().filter(|line| line.contains(text)).count();
    assert_eq!(
        (count("VM ready"), count("session opened")),
        (1, 3),
        "{logs}"
    );
}

/// With the client's store shared, so that what is deleted is not the machine's own.
#[test]
fn a_machine_with_a_name_is_a_store_like_another() {
    let config = "[pool]\nmax-vms = 1\n[store]\nroot = \"[DIR]/client\"\n";
    let (installation, _serving) = started(config);
    let nix = Nix::newer(&installation);
    let own = nix.store.to_str().unwrap().to_owned();
    let path = added(&nix, "one");
    installation.ok(&["up", "riscv64"]);
    let copy = || ok(&nix, &mut nix_in(&nix, &own, &["copy", "--to", VM, &path]));
    let new = |args: &[&str]| ok(&nix, &mut nix_in(&nix, VM, args));
    let old = |program: &str, args: &[&str]| {
        ok(&nix, nix.program(program).args(["--store", VM]).args(args))
    };
    copy();
    assert!(new(&["store", "ls", &path]).contains("one"));
    assert_eq!(new(&["store", "cat", &path]), "one");
    assert_eq!(old("nix-store", &["-q", "--referrers", &path]), "");
    old("nix-store", &["--verify", "--check-contents"]);

    let fifty = format!(
        "builtins.genList (n: {}) 50",
        derivation(SYSTEM, "of-50", "inherit n;", "")
    );
    assert_eq!(old("nix-instantiate", &["-E", &fifty]).lines().count(), 50);

    // More at once than it has slots.
    let builds: Vec<_> = (0..4)
        .map(|n| {
            let name = format!("at-once-{n}");
            let expression = derivation(SYSTEM, &name, "", "echo $name; echo $name > $out");
            let mut command = nix.program("nix-build");
            command.args(["--store", VM, "--no-out-link", "-E", &expression]);
            Running::start(command, installation.path().join(name))
        })
        .collect();
    for mut build in builds {
        assert_eq!(ended(&mut build.child), Some(0), "{}", build.log());
    }

    // What is gone comes again, by way of the shared store or not.
    new(&["store", "delete", &path]);
    copy();
    assert_eq!(new(&["store", "cat", &path]), "one");
    old("nix-store", &["--gc"]);
    copy();
    assert_eq!(new(&["store", "cat", &path]), "one");
}
