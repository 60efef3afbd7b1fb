//! What real Nix and ssh make of what is installed, without a VM.

use std::process::{Command, Stdio};

use crate::common::user::{INSTALL, User};
use crate::common::{Installation, skip};
use rustix::process::Signal;

/// `nix-build` for riscv64 by a Nix that was told nothing but what is installed; what it says.
fn build(user: &User) -> String {
    let expression = r#"derivation { name = "a"; system = "riscv64-linux"; builder = "/bin/sh"; }"#;
    let mut command = Command::new("nix-build");
    command.arg("--store").arg(user.path("client"));
    let output = command
        .args(["--no-out-link", "-E", expression])
        .env("HOME", user.installation.path())
        .env("NIX_CONF_DIR", user.path("etc"))
        .env("NIX_CONFIG", "build-users-group =\nsubstitute = false")
        // ssh finds a home by the user's name.
        .env("NIX_SSHOPTS", format!("-F {}", user.ssh_config().display()))
        .env_remove("NIX_REMOTE")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn nix_sees_the_machines_while_a_manager_runs_and_none_otherwise() {
    let test = "nix_sees_the_machines_while_a_manager_runs_and_none_otherwise";
    if Command::new("nix-build").arg("--version").output().is_err() {
        return skip(test, "there is no Nix");
    }
    let Some(user) = User::new(test) else { return };
    user.ok(&INSTALL);
    let required = "a 'riscv64-linux' with features {} is required to build";
    let is_alone = |said: &str| {
        (said.contains(required) || said.contains("Required system: 'riscv64-linux'"))
            && !said.contains("cannot build on")
    };
    assert!(is_alone(&build(&user)), "{}", build(&user));
    let mut serving = user.installation.serve();
    let said = build(&user);
    // The way leads to the manager, which has no image to start.
    assert!(
        said.contains("building '") && said.contains("on 'ssh-ng://riscv64-00@xpool-riscv64'"),
        "{said}"
    );
    assert!(said.contains("`xpool image build riscv64`"), "{said}");
    serving.signal(Signal::KILL);
    assert_eq!(serving.ended(), None);
    assert!(!is_alone(&build(&user)));
    user.run(&["status"]);
    assert!(is_alone(&build(&user)));
}

#[test]
fn ssh_knows_the_gateway_by_the_host_key_of_a_line_with_a_port() {
    let installation = Installation::new("");
    let _serving = installation.serve();
    let line = installation
        .command(&["machines", "--transport", "ssh", "--nix-version", "2.31"])
        .output();
    let line = String::from_utf8(line.unwrap().stdout).unwrap();
    let fields: Vec<&str> = line.lines().next().unwrap().split(' ').collect();
    let place = fields[0].strip_prefix("ssh-ng://").unwrap();
    let (login, port) = place.rsplit_once(':').unwrap();
    // What Nix does with the field: the host's name without the port, and the key.
    let script = r#"printf '127.0.0.1 %s\n' "$(printf %s "$1" | base64 -d)" > "$2""#;
    let known = installation.path().join("known");
    let mut decode = Command::new("sh");
    decode.args(["-c", script, "sh", fields[7]]).arg(&known);
    assert!(decode.status().unwrap().success());
    let mut ssh = Command::new("ssh");
    ssh.args([
        "-F/dev/null",
        "-oStrictHostKeyChecking=yes",
        "-oBatchMode=yes",
        "-i",
        fields[2],
    ]);
    ssh.arg(format!("-oUserKnownHostsFile={}", known.display()));
    ssh.args([&format!("-p{port}"), login, "nix-daemon --stdio"]);
    let output = ssh.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !said.contains("verification failed") && output.status.code() != Some(255),
        "{said}"
    );
}
