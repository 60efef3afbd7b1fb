//! `xpool up`, as a person types it: the manager in the background, the VM, and the command that it prints.

use std::fs;
use std::process::{Command, Stdio};

use crate::common::{Installation, ended};

#[test]
fn up_starts_everything_and_the_command_that_it_prints_works() {
    let installation = Installation::with_real_images("[pool]\nmax-vms = 1\n");
    // Two at the same moment: one starts the manager, the other finds it.
    let other = up_in_a_script(&installation).stderr(Stdio::null()).spawn();
    let said = up_in_a_script(&installation).output().unwrap();
    let said = installation.said(said);
    assert_eq!(ended(&mut other.unwrap()), Some(0));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    for expected in [
        "Starting riscv64-linux: waiting for the guest agent",
        "Ready riscv64-1 (started in ",
    ] {
        assert!(said.stderr.contains(expected), "{}", said.stderr);
    }
    assert_eq!(installation.qemus().len(), 1, "one VM for both");
    assert_nothing_is_passed_on(&installation);

    let built = run_printed_commands(&installation, &said.stderr);
    assert!(
        built.starts_with("Linux version ") && built.contains("-riscv64 "),
        "{built}"
    );

    assert!(
        installation
            .ok(&["logs", "riscv64-1"])
            .contains("xpool: this copy of a saved guest is riscv64-1")
    );
    installation.until(
        "another VM takes the place of the one that was used",
        || installation.ok(&["status"]).contains("riscv64-2  ready"),
    );
    installation.ok(&["down"]);
    assert!(installation.qemus().is_empty() && installation.leftovers().is_empty());
    assert_eq!(
        installation.run(&["status"]).code,
        Some(69),
        "the manager runs on"
    );
}

/// `xpool up`, in a script that holds a lock and has a password.
fn up_in_a_script(installation: &Installation) -> Command {
    let up = installation.command(&["up", "riscv64"]);
    let environment = up.get_envs();
    let mut script = Command::new("bash");
    script
        .args(["-c", "exec 9>\"$0\" && exec \"$@\""])
        .arg(installation.path().join("script.lock"))
        .arg(up.get_program())
        .args(up.get_args())
        .envs(environment.filter_map(|(name, value)| Some((name, value?))))
        .env("PASSWORD", "secret");
    script
}

fn assert_nothing_is_passed_on(installation: &Installation) {
    let manager = fs::read_to_string(installation.state().join("manager.lock")).unwrap();
    let qemu = installation.qemus()[0];
    for pid in [manager.trim(), &qemu.to_string()] {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        for file in files.filter_map(|file| fs::read_link(file.path()).ok()) {
            assert!(
                !file.ends_with("script.lock"),
                "process {pid} holds a lock of a script's"
            );
        }
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let cores = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"));
        let cores: Vec<&str> = cores.unwrap().split_whitespace().skip(4).collect();
        assert_eq!(cores, ["1", "1", "bytes"]);
    }
    assert_eq!(fs::read(format!("/proc/{qemu}/environ")).unwrap(), b"");
    let score = fs::read_to_string(format!("/proc/{qemu}/oom_score_adj")).unwrap();
    assert_eq!(score, "500\n");
}

/// Runs what `up` printed, to the letter, but with a Nix store of the test's own; the content of the result.
fn run_printed_commands(installation: &Installation, said: &str) -> String {
    let dir = installation.path().display().to_string();
    let lines = said
        .lines()
        .skip_while(|line| !line.starts_with("Build something"));
    let commands: Vec<&str> = lines.filter(|line| line.starts_with("  ")).collect();
    let script = commands.join("\n").replace("[DIR]", &dir);
    let template = installation.command(&[]);
    let output = Command::new("bash")
        .args(["-euc", &script])
        .envs(
            template
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .env("NIX_REMOTE", installation.path().join("client"))
        .env("NIX_CONFIG", "substitute = false\nbuild-users-group =")
        .current_dir(installation.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let output = installation.said(output);
    assert_eq!(output.code, Some(0), "{script}\n{}", output.stderr);
    fs::read_to_string(format!("{dir}/client{}", output.stdout.trim())).unwrap()
}
