//! Making images for real, out of Debian packages. `scripts/test` installs what it needs and runs it.

use std::fs;
use std::net::TcpListener;
use std::process::Stdio;

use crate::common::{Installation, ended, signal};
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

#[test]
fn a_build_that_was_killed_is_tidied_up_by_the_next_one() {
    let installation = Installation::new("");
    let images = installation.cache().join("images");
    // As a kill in the middle leaves it.
    fs::create_dir_all(images.join(".build-riscv64-linux-x1y2z3/out")).unwrap();
    fs::write(
        images.join(".build-riscv64-linux-x1y2z3/out/disk.qcow2"),
        "half",
    )
    .unwrap();
    let said = installation.run(&["image", "build", "riscv64"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let names = contents(&installation);
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
