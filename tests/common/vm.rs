//! What tests of single VMs share.

#![allow(clippy::print_stdout, reason = "stages go to the test's output")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use xpool::config::vm::{Network, VmProfile};
use xpool::image::Image;
use xpool::nix::System;
use xpool::vm::host::{accel_for, find_program};
use xpool::vm::{Hop, Qemu, QemuVm, VmBackend as _, VmSpec};

/// Boots take 5 s on a quiet machine.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(180);

/// Longer than anything that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(60);

const HELP: &str = "run `scripts/test`, which makes the images and sets XPOOL_TEST_IMAGES";

/// The image that is in use for a system.
pub fn image(system: System) -> Image {
    let images = std::env::var_os("XPOOL_TEST_IMAGES");
    let images = images.unwrap_or_else(|| panic!("no XPOOL_TEST_IMAGES: {HELP}"));
    image_in(PathBuf::from(images).join(system.name()))
}

/// The image in a folder.
pub fn image_in(dir: PathBuf) -> Image {
    let manifest = std::fs::read(dir.join("manifest.json"))
        .unwrap_or_else(|error| panic!("no image in {}: {error}; {HELP}", dir.display()));
    Image {
        manifest: serde_json::from_slice(&manifest).unwrap(),
        dir,
    }
}

pub fn spec(system: System, dir: &Path) -> VmSpec {
    spec_of(image(system), dir)
}

/// A VM of an image.
pub fn spec_of(image: Image, dir: &Path) -> VmSpec {
    let system = image.manifest.system;
    let file = format!("{}/vm-configs/{system}.toml", env!("CARGO_MANIFEST_DIR"));
    let profile: VmProfile = toml::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let search_path = std::env::var_os("PATH").unwrap();
    VmSpec {
        name: format!("{}-1", system.cpu()),
        vcpus: 2,
        memory_mib: 2048,
        accel: accel_for(system),
        qemu: find_program(&profile.qemu, &search_path).unwrap(),
        qemu_identity: "this one".to_owned(),
        qemu_img: find_program("qemu-img", &search_path).unwrap(),
        profile,
        image,
        slots: 2,
        network: Network::Nat,
        given: Vec::new(),
        names: None,
        store: None,
        templates: None,
        pauses: true,
        private_parent: private_parent(dir),
        console_log: dir.join("console.log"),
        boot_timeout: BOOT_TIMEOUT,
        stop_grace: Duration::from_secs(20),
    }
}

/// Templates are kept from one run to the next, as images are; a change makes new ones.
pub fn templates() -> PathBuf {
    match std::env::var_os("XPOOL_TEST_IMAGES") {
        Some(images) => Path::new(&images).with_file_name("templates"),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).join("templates"),
    }
}

pub fn private_parent(dir: &Path) -> PathBuf {
    let parent = dir.join("private");
    std::fs::create_dir_all(&parent).unwrap();
    parent
}

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// QEMU's process, found by the private folder on its command line.
pub fn qemu_pid(dir: &Path) -> Option<i32> {
    let needle = private_parent(dir).into_os_string().into_string().unwrap();
    let is_ours = |pid: &i32| {
        let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let cmdline = String::from_utf8_lossy(&cmdline);
        cmdline.contains("qemu-system") && cmdline.contains(&needle)
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .find(is_ours)
}

pub fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// The greeting of the worker protocol, as a client.
pub async fn handshake(hop: &mut Hop) {
    if !hop.greeted.is_empty() {
        assert_eq!(hop.greeted[..8], 0x6478_696f_u64.to_le_bytes());
        return;
    }
    hop.stream
        .write_all(&0x6e69_7863_u64.to_le_bytes())
        .await
        .unwrap();
    let magic = soon("the daemon's magic", hop.stream.read_u64_le())
        .await
        .unwrap();
    assert_eq!(magic, 0x6478_696f);
    let version = hop.stream.read_u64_le().await.unwrap();
    assert!(version >= 0x10a, "{version:#x}");
}

pub async fn in_guest(vm: &QemuVm, script: &str) -> String {
    let output = vm.run("/bin/sh", &["-c", script], PATIENCE).await.unwrap();
    assert_eq!(
        output.status,
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Boots or clones a VM, and says what it does meanwhile.
pub async fn boot_of(spec: VmSpec) -> QemuVm {
    boot_with(&Qemu::default(), spec).await
}

/// The same, with a backend that knows its templates already.
pub async fn boot_with(qemu: &Qemu, spec: VmSpec) -> QemuVm {
    // What is warned of is shown when the test fails. Another test may have begun with it.
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
    let progress = |stage: &str| println!("{stage}");
    match qemu.boot(spec, &progress, CancellationToken::new()).await {
        Ok(vm) => vm,
        Err(error) => panic!("{error:#}"),
    }
}
