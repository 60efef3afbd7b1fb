//! What `xpool machines` prints, and what the manager writes for Nix to read.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::common::{Installation, skip};
use insta::assert_snapshot;
use rustix::process::Signal;

/// The first URI of riscv64, with the gateway's port as `[PORT]`, for a client with these programs in its PATH.
#[track_caller]
fn uri(installation: &Installation, search_path: &str, args: &[&str]) -> String {
    let mut command = installation.command(&["machines", "riscv64", "--transport", "ssh"]);
    let output = command.args(args).env("PATH", search_path).output();
    let said = installation.said(output.unwrap());
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    let config = fs::read_to_string(installation.path().join("xpool.toml")).unwrap();
    let port = config.split(['\n', ':', '"']).nth(3).unwrap();
    said.stdout
        .split(' ')
        .next()
        .unwrap()
        .replace(port, "[PORT]")
}

/// A folder with a program `nix` that prints this.
fn nix_that_prints(installation: &Installation, text: &str) -> String {
    let folder = installation.path().join("bin");
    fs::create_dir_all(&folder).unwrap();
    let nix = folder.join("nix");
    fs::write(&nix, format!("#!/bin/sh\necho '{text}'\n")).unwrap();
    fs::set_permissions(&nix, fs::Permissions::from_mode(0o755)).unwrap();
    folder.to_str().unwrap().to_owned()
}

#[test]
fn machines_are_data_that_nix_can_read() {
    let installation = Installation::new("[pool]\nbuild-machines = 2\n");
    let said = installation.run(&[
        "machines",
        "riscv64",
        "--transport",
        "ssh",
        "--nix-version",
        "2.8",
    ]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    let lines = said.stdout.lines();
    let fields: Vec<Vec<&str>> = lines.map(|line| line.split(' ').collect()).collect();
    assert_eq!(fields.len(), 2);
    let expected = [
        "ssh-ng://riscv64-01@xpool-riscv64",
        "riscv64-linux",
        "[DIR]/state/keys/client_ed25519",
    ];
    assert_eq!(fields[1][..3], expected);
    assert_eq!(fields[1].len(), 8);
    let conf = [
        "machines",
        "--format",
        "nix-conf",
        "--transport",
        "ssh",
        "--nix-version",
        "2.8",
    ];
    assert_snapshot!(installation.ok(&conf), @r"
    # Build machines of xpool; a file that is missing is no error. Its lines are commands: who can write it can do what this Nix can.
    builders = @[DIR]/state/machines-ssh
    # This machine fetches faster than an emulated one: it fetches and hands over.
    builders-use-substitutes = false
    ");
}

#[test]
fn the_form_of_the_uri_suits_the_clients_nix() {
    let installation = Installation::new("");
    let (alias, port) = (
        "ssh-ng://riscv64-00@xpool-riscv64",
        "ssh-ng://riscv64-00@127.0.0.1:[PORT]",
    );
    let none = "/nonexistent";
    assert_eq!(uri(&installation, none, &[]), alias);
    assert_eq!(
        uri(&installation, none, &["--nix-version", "2.30.1"]),
        alias
    );
    assert_eq!(uri(&installation, none, &["--nix-version", "2.31"]), port);
    let newer = nix_that_prints(&installation, "nix (Nix) 2.34.8");
    assert_eq!(uri(&installation, &newer, &[]), port);
    assert_eq!(uri(&installation, &newer, &["--nix-version", "2.8"]), alias);
    let lix = nix_that_prints(&installation, "nix (Lix, like Nix) 2.93.0");
    assert_eq!(uri(&installation, &lix, &[]), alias);
    assert_snapshot!(installation.run(&["machines", "--nix-version", "new"]).stderr, @r"
    error: invalid value 'new' for '--nix-version <X.Y>': `new` is not a version of Nix, such as `2.31`

    For more information, try '--help'.
    ");
}

#[test]
fn local_lines_refuse_what_nix_or_a_shell_would_take_apart() {
    let installation = Installation::new("[pool]\nbuild-machines = 1\n");
    let line = installation.ok(&["machines", "riscv64", "--transport", "local"]);
    assert_snapshot!(line, @"ssh-ng://localhost?remote-program=[DIR]/state/slots/00@xpool-riscv64 riscv64-linux - 1 1 benchmark,big-parallel - -");
    let program = installation.state().join("slots/00@xpool-riscv64");
    let said = Command::new(&program).arg("--stdio").output().unwrap();
    let said = installation.said(said);
    assert_snapshot!(said.stderr, @"error: no manager is running (nobody answers at `[DIR]/state/connect.sock`); the user that it is for starts one by `xpool --state-dir [DIR]/state up riscv64`");
    let odd = installation.path().join("a(b");
    let odd = [
        "machines",
        "--transport",
        "local",
        "--state-dir",
        odd.to_str().unwrap(),
    ];
    assert_snapshot!(installation.run(&odd).stderr, @r"
    error: `[DIR]/a(b/slots` has `(` in its name, which a machines line of the local transport cannot carry

    hint: use letters, digits and any of `/._-+,:=@`, or `--transport ssh`
    ");
    let odd = installation.path().join("a;b");
    let said = installation.run(&["machines", "--state-dir", odd.to_str().unwrap()]);
    assert_snapshot!(said.stderr, @"error: the state folder `[DIR]/a;b` has `;` in its name, which Nix cannot read; name another one with `--state-dir`");
}

/// Renders a module's machines as NixOS does.
const AS_NIXOS_DOES: &str = r#"let
  config = import ./module.nix;
  list = words: if words == [ ] then "-" else builtins.concatStringsSep "," words;
  field = name: machine: machine.${name} or "-";
  line = machine: builtins.concatStringsSep " " [
    "${machine.protocol}://${if machine ? sshUser then "${machine.sshUser}@" else ""}${machine.hostName}"
    (list machine.systems) (field "sshKey" machine) (toString machine.maxJobs) (toString machine.speedFactor)
    (list machine.supportedFeatures) (list machine.mandatoryFeatures) (field "publicHostKey" machine)
  ];
in {
  lines = builtins.concatStringsSep "\n" (map line config.nix.buildMachines) + "\n";
  distributed = config.nix.distributedBuilds;
  ssh = config.programs.ssh.extraConfig or "";
}"#;

/// A module as Nix evaluates it: lines, whether builds are distributed, ssh configuration. `None` where there is no Nix.
fn evaluated(installation: &Installation, module: &str) -> Option<serde_json::Value> {
    let dir = installation.path();
    fs::write(dir.join("module.nix"), module).unwrap();
    fs::write(dir.join("test.nix"), AS_NIXOS_DOES).unwrap();
    let mut command = Command::new("nix-instantiate");
    command.args([
        "--store", "dummy://", "--eval", "--strict", "--json", "test.nix",
    ]);
    let output = command
        .env("HOME", dir)
        .env("NIX_CONF_DIR", dir)
        .env_remove("NIX_REMOTE")
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn a_nixos_module_says_the_same_as_the_lines() {
    let installation = Installation::new("[pool]\nbuild-machines = 2\n");
    let alias = ["--transport=ssh", "--nix-version=2.8"];
    let port = ["--transport=ssh", "--nix-version=2.31"];
    let local = ["--transport", "local"];
    for form in [alias, port, local] {
        let print = |format: &str| {
            let mut command = installation.command(&["machines", "--format", format]);
            let output = command.args(form).output().unwrap();
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap()
        };
        let Some(config) = evaluated(&installation, &print("nixos")) else {
            return skip(
                "a_nixos_module_says_the_same_as_the_lines",
                "there is no Nix",
            );
        };
        assert_eq!(config["lines"], print("machines"));
        assert_eq!(config["distributed"], true);
        let ssh = if form == alias {
            print("ssh-config")
        } else {
            String::new()
        };
        assert_eq!(config["ssh"], ssh);
    }
}

#[test]
fn a_manager_that_ends_leaves_no_socket_and_no_machines() {
    let installation = Installation::new("");
    let mut serving = installation.serve();
    let state = installation.state();
    assert!(state.join("machines").exists() && state.join("ssh_config").exists());
    serving.signal(Signal::TERM);
    assert_eq!(serving.ended(), Some(0));
    assert!(!state.join("machines").exists(), "Nix still sees machines");
    assert!(!state.join("control.sock").exists());
    assert_eq!(installation.run(&["status"]).code, Some(69));
}

#[test]
fn what_a_killed_manager_told_nix_is_taken_away_by_the_next_command() {
    let installation = Installation::new("");
    let mut serving = installation.serve();
    let machines = installation.state().join("machines");
    serving.signal(Signal::KILL);
    assert_eq!(serving.ended(), None);
    assert!(machines.exists(), "somebody has taken it away already");
    assert_eq!(installation.run(&["status"]).code, Some(69));
    assert!(!machines.exists(), "Nix still sees machines");
    let _serving = installation.serve();
    assert!(machines.exists());
}

#[test]
fn nix_is_not_told_of_a_system_that_is_down() {
    let installation = Installation::new("");
    let _serving = installation.serve();
    let told = || {
        let text = fs::read_to_string(installation.state().join("machines")).unwrap();
        let is_of = |system| text.contains(&format!(" {system}-linux "));
        (is_of("riscv64"), is_of("aarch64"))
    };
    assert_eq!(told(), (true, true));
    installation.ok(&["down", "riscv64"]);
    installation.until("Nix is told", || told() == (false, true));
}
