//! A QEMU that does something else first.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::Installation;

/// Has an installation run riscv64's VMs by a script of its own that reads these lines of shell before it becomes the real QEMU.
pub fn put_before(installation: &Installation, lines: &str) {
    let program = installation.path().join("qemu-system-riscv64");
    let script = format!("#!/bin/sh\n{lines}\nexec qemu-system-riscv64 \"$@\"\n");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();

    let profile = include_str!("../../vm-configs/riscv64-linux.toml");
    let old = "qemu = \"qemu-system-riscv64\"";
    assert!(profile.contains(old));
    let new = format!("qemu = \"{}\"", program.display());
    let profiles = installation.path().join("vm-configs");
    fs::create_dir_all(&profiles).unwrap();
    fs::write(
        profiles.join("riscv64-linux.toml"),
        profile.replace(old, &new),
    )
    .unwrap();
}
