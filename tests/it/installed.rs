//! What real Nix and ssh make of what is installed, without a VM.

use std::fs;
use std::process::{Command, Stdio};

use crate::common::rooted::{LOCAL, Rooted, SAFE};
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
fn a_nix_that_knows_the_machines_goes_on_to_others_without_a_manager() {
    let test = "a_nix_that_knows_the_machines_goes_on_to_others_without_a_manager";
    if Command::new("nix-build").arg("--version").output().is_err() {
        return skip(test, "there is no Nix");
    }
    let Some(rooted) = Rooted::of_a_users_manager(test) else {
        return;
    };
    rooted.ok(&[&[SAFE], &LOCAL[..]].concat());
    // This machine itself says that it is of the other kind. Nix begins with the first of equals.
    let other =
        "ssh-ng://localhost?remote-program=nix-daemon%20--option%20extra-platforms%20riscv64-linux";
    let conf = fs::read_to_string(rooted.nix_conf()).unwrap();
    let conf = conf.replace(
        "/etc/xpool/machines",
        &format!("/etc/xpool/machines;{other} riscv64-linux"),
    );
    let conf = conf + "build-users-group =\nsubstitute = false\n";
    fs::write(rooted.nix_conf(), conf).unwrap();
    let store = rooted.at("client").display().to_string();
    let expression = r#"derivation { name = "a"; system = "riscv64-linux"; builder = "/none"; }"#;
    let build = [
        "nix-build",
        "--store",
        &store,
        "--no-out-link",
        "-E",
        expression,
    ];
    let said = rooted.run(&build).stderr;
    let told = "error: no manager is running (nobody answers at `[DIR]/state/connect.sock`); \
        the user that it is for starts one by `xpool --state-dir [DIR]/state up riscv64`\n";
    // Once for each of the two slots.
    assert_eq!(said.matches(told).count(), 2, "{said}");
    assert!(said.contains(&format!("on '{other}'")), "{said}");
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

#[test]
fn clients_of_the_old_protocol_are_told_to_speak_the_new_one() {
    let test = "clients_of_the_old_protocol_are_told_to_speak_the_new_one";
    if Command::new("nix-build").arg("--version").output().is_err() {
        return skip(test, "there is no Nix");
    }
    let installation = Installation::new("");
    let _serving = installation.serve();
    let options = format!("-F {}", installation.state().join("ssh_config").display());
    let dir = installation.path();
    fs::write(
        dir.join("nix.conf"),
        "build-users-group =\nsubstitute = false\n",
    )
    .unwrap();
    fs::write(dir.join("file"), "x\n").unwrap();
    let run = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        let output = command
            .args(args)
            .env("HOME", dir)
            .env("NIX_CONF_DIR", dir)
            .env("NIX_SSHOPTS", &options)
            .env(
                "NIX_REMOTE",
                format!("local?root={}", dir.join("client").display()),
            )
            .current_dir(dir)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (
            output.status,
            String::from_utf8(output.stdout).unwrap(),
            said,
        )
    };
    let (status, path, said) = run("nix-store", &["--add", "./file"]);
    assert!(status.success(), "{said}");
    let host = "riscv64-00@xpool-riscv64";
    let only = "this builder speaks ssh-ng only: write `ssh-ng://` instead of `ssh://` in its URI";
    let (status, _, said) = run("nix-copy-closure", &["--to", host, path.trim()]);
    assert!(!status.success() && said.contains(only), "{said}");
    let expression = r#"derivation { name = "a"; system = "riscv64-linux"; builder = "/none"; }"#;
    let builders = format!("ssh://{host} riscv64-linux - 1");
    let (status, _, said) = run(
        "nix-build",
        &["--no-out-link", "--builders", &builders, "-E", expression],
    );
    assert!(!status.success() && said.contains(only), "{said}");
}
