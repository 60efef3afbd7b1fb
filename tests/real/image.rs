//! Making images for real, out of Debian packages. `scripts/test` installs what it needs and runs it.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use crate::common::nixes::Nixes;
use crate::common::{Installation, ended, namespace, signal};
use rustix::process::Signal;

/// What is in the folder of images, but for the empty files that keep two builds apart.
fn contents(installation: &Installation) -> Vec<String> {
    let entries = fs::read_dir(installation.cache().join("images")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != ".riscv64-linux.lock").collect()
}

/// Processes that have all of these texts in their arguments.
fn processes_with(texts: &[&str]) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let commands = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let has_all = |command: &Vec<u8>| {
        let command = String::from_utf8_lossy(command);
        texts.iter().all(|text| command.contains(text))
    };
    commands.filter(has_all).count()
}

fn interrupted_by(wanted: Signal) {
    let installation = Installation::new("");
    let log = installation.path().join("build.log");
    let mut build = installation
        .command(&["image", "build", "riscv64"])
        .stderr(fs::File::create(&log).unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let said = || fs::read_to_string(&log).unwrap();
    let folder = installation.path().to_str().unwrap();
    installation.until("packages are being unpacked", || {
        said().contains("fetching and unpacking") && processes_with(&["mmdebstrap", folder]) > 0
    });
    signal(build.id(), wanted);
    assert_eq!(ended(&mut build), Some(1), "{}", said());
    assert!(
        said().ends_with("interrupted; nothing was left behind\n"),
        "{}",
        said()
    );
    assert_eq!(contents(&installation), [""; 0]);
    assert_eq!(
        processes_with(&[folder]),
        0,
        "a process of the build lives on"
    );
}

#[test]
fn a_build_that_is_interrupted_leaves_nothing() {
    interrupted_by(Signal::INT);
}

#[test]
fn a_build_that_is_terminated_leaves_nothing() {
    interrupted_by(Signal::TERM);
}

#[test]
fn a_mirror_that_does_not_answer_is_named() {
    let installation = Installation::new("");
    // A port that nobody listens on: whoever had it has closed it.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    let mirror = format!("http://{}/debian", nobody.unwrap());
    let mut command = installation.command(&["image", "build", "riscv64"]);
    command.env("XPOOL_DEBIAN_MIRROR", &mirror);
    let said = installation.said(command.output().unwrap());
    assert_eq!(said.code, Some(69), "{}", said.stderr);
    let complaint = format!("; the tools said:\nE: Failed to fetch {mirror}/dists/");
    assert!(said.stderr.contains(&complaint), "{}", said.stderr);
    assert_eq!(contents(&installation), [""; 0]);
}

/// The flake's mmdebstrap, with this machine's perl and mmdebstrap in the places of nixpkgs' and of the package.
fn mmdebstrap_of_the_flake(nixes: &Nixes) {
    let place = nixes.installation.path();
    let package = &nixes.evaluate("flake")["package"];
    let made = Command::new("bash")
        .args(["-euc", package["headers"].as_str().unwrap()])
        .env("out", place.join("headers"))
        .status();
    assert!(made.unwrap().success());
    let in_store = |text: &str| format!("/nix/store/{}-{text}", "0".repeat(32));
    let usr_bin = place.join("usr-bin");
    let script = package["mmdebstrap"].as_str().unwrap();
    let script = script
        .replace(
            &in_store("mmdebstrap-headers"),
            place.join("headers").to_str().unwrap(),
        )
        .replace(
            &format!("{}/bin", in_store("perl")),
            usr_bin.to_str().unwrap(),
        )
        .replace(
            &format!("{}/usr/bin", in_store("mmdebstrap_1.3.5-7_all.deb")),
            usr_bin.to_str().unwrap(),
        );
    assert!(!script.contains("/nix/store"), "{script}");
    let program = place.join("own/mmdebstrap");
    fs::create_dir(place.join("own")).unwrap();
    fs::write(&program, format!("#!/bin/sh\n{script}")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
}

/// With programs as nixpkgs has them, among them a mmdebstrap as the flake makes it.
#[test]
fn a_build_with_programs_as_nixpkgs_has_them_tidies_up_after_a_killed_one() {
    let test = "a_build_with_programs_as_nixpkgs_has_them_tidies_up_after_a_killed_one";
    let Some(nixes) = Nixes::find(test) else {
        return;
    };
    if namespace::skipped(test) {
        return;
    }
    mmdebstrap_of_the_flake(&nixes);
    let installation = &nixes.installation;
    let images = installation.cache().join("images");
    // As a kill in the middle leaves it.
    fs::create_dir_all(images.join(".build-riscv64-linux-x1y2z3/out")).unwrap();
    fs::write(
        images.join(".build-riscv64-linux-x1y2z3/out/disk.qcow2"),
        "half",
    )
    .unwrap();
    let xpool = installation.command(&["image", "build", "riscv64"]);
    let mut build = Command::new("tests/common/as-nixpkgs.sh");
    build
        .arg(installation.path())
        .arg(xpool.get_program())
        .args(xpool.get_args());
    for (name, value) in xpool.get_envs() {
        match value {
            Some(value) => build.env(name, value),
            None => build.env_remove(name),
        };
    }
    let said = installation.said(build.output().unwrap());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let names = contents(installation);
    assert_eq!(names.len(), 2, "an image and a link to it: {names:?}");
    installation.ok(&["image", "verify", "riscv64"]);
}

#[test]
fn a_build_does_nothing_where_a_good_image_is_present() {
    let installation = Installation::with_real_images("");
    let link = installation.cache().join("images/riscv64-linux");
    let before = (
        fs::canonicalize(&link).unwrap(),
        fs::symlink_metadata(&link).unwrap().modified().unwrap(),
    );
    let said = installation.run(&["image", "build", "riscv64"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stderr
            .contains("Present image riscv64-linux, verified"),
        "{}",
        said.stderr
    );
    let after = (
        fs::canonicalize(&link).unwrap(),
        fs::symlink_metadata(&link).unwrap().modified().unwrap(),
    );
    assert_eq!(before, after);
}
