//! Managers beside one another, and who is heard at the control socket.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::common::{Installation, skip};

#[test]
fn nobody_else_is_heard_at_the_control_socket() {
    if !rustix::process::geteuid().is_root() {
        return skip("nobody_else_is_heard", "only root can become somebody else");
    }
    let installation = Installation::new("");
    let _serving = installation.serve();
    let socket = installation.state().join("control.sock");
    let mode = fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    // However it has come to that.
    let program = installation.path().join("xpool");
    fs::copy(env!("CARGO_BIN_EXE_xpool"), &program).unwrap();
    for (path, mode) in [
        (installation.path(), 0o711),
        (&installation.state(), 0o711),
        (&socket, 0o777),
        (&program, 0o755),
    ] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let as_user = |user: &str| {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={user}"), "--clear-groups"]);
        command
            .arg(&program)
            .arg("--state-dir")
            .arg(installation.state());
        command.args(["down", "--now"]).env("HOME", "/nonexistent");
        installation.said(command.output().unwrap())
    };
    let other = as_user("65534");
    assert_ne!(other.code, Some(0), "{}", other.stderr);
    assert_eq!(installation.run(&["status"]).code, Some(0));
    assert_eq!(as_user("0").code, Some(0));
}

/// As for root where a home folder is on NFS with `root_squash`, or `SELinux` is in the way.
#[test]
fn who_cannot_come_to_the_manager_is_told_of_the_other_transport() {
    if !rustix::process::geteuid().is_root() {
        return crate::common::skip(
            "who_cannot_come_to_the_manager",
            "only root can be another user",
        );
    }
    let installation = Installation::new("");
    let _serving = installation.serve();
    let open = tempfile::tempdir_in("/tmp").unwrap();
    let program = open.path().join("xpool");
    fs::copy(env!("CARGO_BIN_EXE_xpool"), &program).unwrap();
    for path in [open.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--clear-groups"])
        .arg(&program);
    command.arg("--state-dir").arg(installation.state());
    let output = command.args(["connect", "riscv64-00"]).output().unwrap();
    insta::assert_snapshot!(installation.said(output).stderr, @"error: the manager's socket `[DIR]/state/connect.sock`: permission denied; `[local] group` lets users in, and where something keeps root out of a folder (NFS, SELinux), `xpool machines --transport ssh` lists builders that need none of it");
}

#[test]
fn a_second_manager_on_a_machine_has_a_port_of_its_own() {
    let managers = [(); 2].map(|()| {
        let installation = Installation::new("");
        fs::write(installation.path().join("xpool.toml"), "").unwrap();
        let serving = installation.serve();
        (installation, serving)
    });
    let place = |installation: &Installation| {
        let lines = installation.ok(&[
            "machines",
            "riscv64",
            "--transport",
            "ssh",
            "--nix-version",
            "2.31",
        ]);
        lines.split(' ').next().unwrap().to_owned()
    };
    let [first, second] = [0, 1].map(|n| place(&managers[n].0));
    assert_ne!(first, second);
}
