//! `xpool run` with real guests and a real Nix client: builders for one command, and nothing left after it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::nix::{MACHINE, derivation, stderr, tooled};
use crate::common::{Installation, ended, signal, tools};
use rustix::process::Signal;

const RISCV64: &str = "riscv64-linux";
const AARCH64: &str = "aarch64-linux";

/// An installation in which nothing runs, and Nix's configuration.
fn installation() -> Installation {
    let installation = Installation::with_real_images("");
    let conf = "substitute = false\nbuild-users-group =\n";
    fs::write(installation.path().join("nix.conf"), conf).unwrap();
    installation
}

/// `xpool run` of a command, ready to run.
fn run(installation: &Installation, systems: &[&str], command: &[&str]) -> Command {
    let mut args = vec!["run"];
    for system in systems {
        args.extend(["--system", system]);
    }
    args.push("--");
    args.extend(command);
    let mut command = installation.command(&args);
    command
        .env("NIX_CONF_DIR", installation.path())
        .env_remove("NIX_REMOTE")
        .current_dir(installation.path());
    command
}

/// `nix-build` in a store of the test's own, run by `xpool run`.
fn build(installation: &Installation, systems: &[&str], expression: &str) -> Command {
    let store = installation.path().join("client");
    let store = store.to_str().unwrap();
    let nix = ["nix-build", "--no-out-link", "--store", store, "-E"];
    run(installation, systems, &[&nix[..], &[expression]].concat())
}

/// What runs with such a manager's builders: the commands, and what these have started.
fn with_builders(installation: &Installation) -> Vec<u32> {
    let told = format!("XPOOL_STATE_DIR={}/run-", installation.state().display());
    let is_told = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut told_all = environment.split(|byte| *byte == 0);
        told_all.any(|variable| variable.starts_with(told.as_bytes()))
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_told).collect()
}

/// Processes of the installation's managers, VMs and commands, and folders of managers.
fn left(installation: &Installation) -> Vec<String> {
    let qemus = installation.qemus();
    let processes = qemus.into_iter().chain(with_builders(installation));
    let mut left: Vec<String> = processes.map(|pid| pid.to_string()).collect();
    let state = fs::read_dir(installation.state()).unwrap().flatten();
    let names = state.map(|entry| entry.file_name().into_string().unwrap());
    left.extend(names.filter(|name| name.starts_with("run-")));
    left
}

#[track_caller]
fn assert_nothing_is_left(installation: &Installation) {
    let left = left(installation);
    assert!(left.is_empty(), "{left:?}\n{}", installation.logs());
}

#[test]
fn a_command_builds_for_both_systems_and_leaves_nothing() {
    let installation = installation();
    let one = |system| derivation(system, "machine", "", MACHINE);
    let both = format!("[ ({}) ({}) ]", one(RISCV64), one(AARCH64));
    let output = build(&installation, &["riscv64", "aarch64"], &both).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let paths = String::from_utf8_lossy(&output.stdout);
    let store = installation.path().join("client");
    let read = |path: &str| fs::read_to_string(format!("{}{path}", store.display())).unwrap();
    let machines: Vec<String> = paths.lines().map(read).collect();
    assert_eq!(machines, ["riscv64\n", "aarch64\n"]);
    assert_nothing_is_left(&installation);
}

#[test]
fn the_exit_code_is_the_commands() {
    let installation = installation();
    let failing = derivation(RISCV64, "failing", "", "echo no; exit 4");
    let output = build(&installation, &["riscv64"], &failing)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    for (script, code) in [
        ("exit 0", 0),
        ("kill -INT $$", 130),
        ("\"$0\"/nowhere", 127),
    ] {
        let mut command = run(&installation, &["riscv64"], &["sh", "-c", script]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
    }
    assert_nothing_is_left(&installation);
}

/// A command whose build runs in a VM.
fn building(installation: &Installation) -> Child {
    let expression = tooled(RISCV64, "sleeper", "", "echo it runs; sleep 1000");
    let mut command = build(installation, &["riscv64"], &expression);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let runs = lines.any(|line| line.unwrap() == "it runs");
    assert!(runs, "the build never ran");
    // What follows has to go somewhere.
    std::thread::spawn(move || lines.count());
    child
}

#[test]
fn a_command_that_is_cancelled_leaves_nothing() {
    let installation = installation();
    let mut interrupted = building(&installation);
    signal(interrupted.id(), Signal::INT);
    // Nix says itself that it was interrupted, and how: by an exit code or by the signal.
    let code = ended(&mut interrupted);
    assert!(matches!(code, Some(1 | 130)), "{code:?}");
    assert_nothing_is_left(&installation);

    let mut killed = building(&installation);
    assert_ne!(with_builders(&installation), [0; 0]);
    signal(killed.id(), Signal::KILL);
    ended(&mut killed);
    installation.until("manager and command have seen it and are gone", || {
        left(&installation).is_empty()
    });
}

/// Whether a process has ended, be it that nobody has asked for its exit code yet.
fn is_dead(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    state.is_empty() || state.starts_with(['Z', 'X'])
}

#[test]
fn what_was_killed_with_its_manager_is_tidied_up_by_the_next_one() {
    let installation = installation();
    let mut killed = building(&installation);
    let manager = fs::read_dir(installation.state()).unwrap().flatten();
    let locks = manager.map(|entry| entry.path().join("manager.lock"));
    let pid = locks
        .into_iter()
        .find_map(|lock| fs::read_to_string(lock).ok());
    let manager = pid.unwrap().trim().parse().unwrap();
    signal(manager, Signal::KILL);
    signal(killed.id(), Signal::KILL);
    ended(&mut killed);
    // Until then the folder is its own, and the next one lets it be.
    installation.until("manager and command are dead", || {
        is_dead(manager) && with_builders(&installation).is_empty()
    });
    assert_ne!(left(&installation), [""; 0]);
    let next = run(&installation, &["riscv64"], &["true"])
        .output()
        .unwrap();
    assert!(next.status.success(), "{}", stderr(&next));
    assert_nothing_is_left(&installation);
}

/// A flake whose image is a copy of a portable one that says that it is another kind, made in a guest. Its input is locked nowhere.
fn flake_of_an_image(installation: &Installation, image: &Path) -> PathBuf {
    let dir = installation.path().join("flake");
    fs::create_dir(&dir).unwrap();
    for file in ["kernel", "initrd", "disk.qcow2"] {
        fs::copy(image.join(file), dir.join(file)).unwrap();
    }
    let manifest = fs::read(image.join("manifest.json")).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    manifest["kind"] = "nixos".into();
    manifest["recipe"] = "@machine@".into();
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    let other = installation.path().join("other");
    fs::create_dir(&other).unwrap();
    let flake = r#"{ inputs.other = { url = "path:[OTHER]"; flake = false; };
        outputs = { self, other }: { packages.x86_64-linux.image-riscv64-linux-native = derivation {
        name = "image"; system = "riscv64-linux"; builder = "/bin/sh"; files = self.outPath;
        PATH = "${./tools/riscv64-linux}/bin";
        args = [ "-c" "mkdir $out && cp $files/kernel $files/initrd $files/disk.qcow2 $out && \
            read -r machine < /proc/sys/kernel/arch && \
            sed s/@machine@/$machine/ $files/manifest.json > $out/manifest.json" ]; }; }; }"#;
    tools::put_into(&dir);
    let flake = flake.replace("[OTHER]", other.to_str().unwrap());
    fs::write(dir.join("flake.nix"), flake).unwrap();
    dir
}

#[test]
fn an_image_of_another_kind_is_built_in_a_guest_of_the_portable_one_and_boots() {
    let installation = Installation::with_nix_folder("");
    let conf = "substitute = false\nbuild-users-group =\n";
    fs::write(installation.path().join("nix.conf"), conf).unwrap();
    // Images of its own: the one in use changes.
    let shared = installation.cache().join("images").join(RISCV64);
    let image = fs::canonicalize(shared).unwrap();
    let cache = installation.path().join("cache");
    fs::create_dir_all(cache.join("images")).unwrap();
    let own = cache.join("images").join(image.file_name().unwrap());
    let copied = Command::new("cp").arg("-r").args([&image, &own]).status();
    assert!(copied.unwrap().success());
    symlink(
        image.file_name().unwrap(),
        cache.join("images").join(RISCV64),
    )
    .unwrap();

    let flake = flake_of_an_image(&installation, &image);
    let xpool = |args: &[&str]| {
        let mut command = installation.command(args);
        command
            .env("NIX_CONF_DIR", installation.path())
            .env_remove("NIX_REMOTE")
            .env("XPOOL_CACHE_DIR", &cache);
        installation.said(command.output().unwrap())
    };
    let flake = format!("path:{}", flake.display());
    let build = [
        "image", "build", "riscv64", "--kind", "nixos", "--flake", &flake,
    ];
    let said = xpool(&build);
    assert_eq!(said.code, Some(0), "{said:?}");
    let listed = xpool(&["image", "list", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    let manifest = &listed[0]["manifest"];
    assert_eq!(manifest["kind"], "nixos");
    assert_eq!(manifest["recipe"], "riscv64", "{listed}");
    // A flake in the store would be changed otherwise, or not be built on NixOS.
    assert!(!installation.path().join("flake/flake.lock").exists());
    assert_nothing_is_left(&installation);
    let again = xpool(&build);
    assert!(again.stderr.contains("Present"), "{again:?}");
    let booted = xpool(&["ssh", "riscv64", "--", "uname -m"]);
    assert_eq!(booted.stdout, "riscv64\n", "{booted:?}");
    xpool(&["down", "--now"]);
}
