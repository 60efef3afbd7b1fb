//! What commands whose Nix builds on machines of their own say before they start anything.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::cli::{all, put_image};
use crate::common::Installation;
use insta::assert_snapshot;

#[test]
fn who_the_daemon_does_not_trust_is_told_so_before_anything_starts() {
    let installation = Installation::new("");
    let bin = installation.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let nix = bin.join("nix");
    fs::write(
        &nix,
        "#!/bin/sh\necho '{\"trusted\":0,\"url\":\"daemon\",\"version\":\"2.26.3\"}'\n",
    )
    .unwrap();
    fs::set_permissions(&nix, fs::Permissions::from_mode(0o755)).unwrap();
    put_image(&installation, 6);
    let image = "image build riscv64 --kind nixos --flake path:/none";
    let [run, image] = ["run --system riscv64 -- true", image].map(|line| {
        let args: Vec<&str> = line.split(' ').collect();
        let said = installation.command(&args).env("PATH", &bin).output();
        all(&installation.said(said.unwrap()))
    });
    // They go on, and there is no QEMU.
    assert_eq!(run, image);
    assert_snapshot!(run, @r"
    exit code: 69
    warning: the nix-daemon of this machine does not trust you, and would not use the builders of this command

    hint: add your user to `trusted-users` in /etc/nix/nix.conf (`nix.settings.trusted-users` on NixOS) and restart nix-daemon; or `xpool up`, and `sudo xpool machines --install` with your `--state-dir`
    error: `qemu-system-riscv64` is not in PATH; install it with `apt-get install qemu-system-misc`
    ");
}
