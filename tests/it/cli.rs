//! What the commands print, to the letter, when something is wrong: what, to which thing, and what to do next.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{Installation, Said, skip};
use insta::assert_snapshot;

/// Exit code, stdout, stderr.
pub(super) fn all(said: &Said) -> String {
    format!(
        "exit code: {}\n{}{}",
        said.code.unwrap_or(-1),
        said.stdout,
        said.stderr
    )
}

/// An image whose files are whole but boot nothing.
pub(super) fn put_image(installation: &Installation, contract: u32) -> std::path::PathBuf {
    let images = installation.cache().join("images");
    let dir = images.join("digest");
    fs::create_dir_all(&dir).unwrap();
    let file = |name: &str| {
        fs::write(dir.join(name), "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        format!(r#"{{ "name": "{name}", "size": 3, "sha256": "{abc}" }}"#)
    };
    let manifest = format!(
        r#"{{ "contract": {contract}, "system": "riscv64-linux", "kind": "portable", "recipe": "", "nix-version": "2.26.3",
            "kernel-version": "6.12", "cmdline": "", "kernel": {}, "initrd": {}, "disk": {} }}"#,
        file("kernel"),
        file("initrd"),
        file("disk.qcow2")
    );
    fs::write(dir.join("manifest.json"), manifest).unwrap();
    std::os::unix::fs::symlink("digest", images.join("riscv64-linux")).unwrap();
    dir
}

/// Whether a manager was started, or anything of a VM is there.
fn is_untouched(installation: &Installation) -> bool {
    installation.run(&["status"]).code == Some(69) && installation.leftovers().is_empty()
}

#[test]
fn an_unknown_system_is_named_with_the_nearest_known_one() {
    let installation = Installation::new("");
    assert_snapshot!(all(&installation.run(&["up", "riscv"])), @r"
    exit code: 2
    error: invalid value 'riscv' for '<SYSTEM>': unknown system `riscv`: did you mean `riscv64`?

    For more information, try '--help'.
    ");
    assert_snapshot!(all(&installation.run(&["up", "sparc"])), @r"
    exit code: 2
    error: invalid value 'sparc' for '<SYSTEM>': unknown system `sparc`: xpool has guests for `riscv64` and `aarch64`

    For more information, try '--help'.
    ");
}

#[test]
fn an_unknown_configuration_key_is_named_with_its_line_and_the_nearest_known_one() {
    let installation = Installation::new("[pool]\nmax-vm = 4\n");
    assert_snapshot!(all(&installation.run(&["up", "riscv64"])), @r"
    exit code: 2
    error: [DIR]/xpool.toml:4: unknown key `max-vm`

    hint: did you mean `max-vms`?
    ");
    assert!(is_untouched(&installation));
}

#[test]
fn a_configuration_is_checked_for_this_machine_or_for_another() {
    let right = Installation::new("[pool]\nwarm = 1\n");
    let said = right.run(&["config", "check"]);
    assert_snapshot!(all(&said), @r"
    exit code: 0
         Checked [DIR]/xpool.toml
    ");
    let large = Installation::new("[pool]\nwarm = 500\n");
    // How many this machine bears is in the message.
    let said = large.run(&["config", "check"]);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(
        said.stderr
            .contains("xpool.toml:4: `warm` is 500 but must be from 0 to ")
    );
    let elsewhere = large.run(&["config", "check", "--elsewhere"]);
    assert_eq!(elsewhere.code, Some(0), "{elsewhere:?}");
    let wrong = Installation::new("[pool]\nwarm = \"x\"\n");
    let elsewhere = wrong.run(&["config", "check", "--elsewhere"]);
    assert_snapshot!(all(&elsewhere), @r#"
    exit code: 2
    error: [DIR]/xpool.toml:4: invalid type: string "x", expected u32
    "#);
    assert!(is_untouched(&right));
}

#[test]
fn a_port_that_is_none_is_refused() {
    let installation = Installation::new("");
    fs::write(
        installation.path().join("xpool.toml"),
        "[gateway]\nlisten = \"127.0.0.1:99999\"\n",
    )
    .unwrap();
    assert_snapshot!(all(&installation.run(&["serve"])), @r"
    exit code: 2
    error: [DIR]/xpool.toml:2: `listen` is `127.0.0.1:99999` but its port must be from 1 to 65535, such as `127.0.0.1:31022`
    ");
    assert!(is_untouched(&installation));
}

#[test]
fn a_port_that_is_taken_is_named() {
    let installation = Installation::new("");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    fs::write(
        installation.path().join("xpool.toml"),
        format!("[gateway]\nlisten = \"{listen}\"\n"),
    )
    .unwrap();
    let said = all(&installation.run(&["serve"])).replace(&listen, "[LISTEN]");
    assert_snapshot!(said, @r"
    exit code: 1
    error: the gateway cannot listen on [LISTEN]: Address already in use (os error 98)

    hint: set `listen` in section `[gateway]` of xpool.toml to a free port
    ");
    assert!(is_untouched(&installation));
}

#[test]
fn a_missing_qemu_is_named_with_its_package() {
    let installation = Installation::new("");
    put_image(&installation, 6);
    let said = installation
        .command(&["up", "riscv64"])
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    assert_snapshot!(all(&installation.said(said)), @r"
    exit code: 69
    error: `qemu-system-riscv64` is not in PATH; install it with `apt-get install qemu-system-misc`
    ");
    assert!(is_untouched(&installation));
}

#[test]
fn an_image_with_one_changed_byte_is_refused() {
    let installation = Installation::new("");
    let image = put_image(&installation, 6);
    fs::write(image.join("kernel"), "abd").unwrap();
    assert_snapshot!(all(&installation.run(&["up", "riscv64"])), @r"
    exit code: 1
    error: the image for riscv64-linux is damaged: `[DIR]/cache/images/digest/kernel` has another SHA-256 than its manifest says

    hint: `xpool image build riscv64` makes a new one
    ");
    assert_snapshot!(all(&installation.run(&["image", "verify", "riscv64"])), @r"
    exit code: 1
    error: the image for riscv64-linux is damaged: `[DIR]/cache/images/digest/kernel` has another SHA-256 than its manifest says

    hint: `xpool image build riscv64` makes a new one
    ");
    assert!(is_untouched(&installation));
}

#[test]
fn an_image_of_another_contract_is_refused() {
    let installation = Installation::new("");
    put_image(&installation, 99);
    assert_snapshot!(all(&installation.run(&["up", "riscv64"])), @r"
    exit code: 1
    error: the image for riscv64-linux keeps version 99 of the guest contract, this xpool needs 6

    hint: `xpool image build riscv64` makes a new one
    ");
    assert!(is_untouched(&installation));
}

#[test]
fn an_image_that_finds_no_space_leaves_nothing() {
    let installation = Installation::new("");
    let tiny = installation.path().join("cache");
    fs::create_dir(&tiny).unwrap();
    // A file system of 16 MiB, in mounts of its own that end with the command.
    let script = format!(
        "mount -t tmpfs -o size=16m tmpfs {0} && {1} image build riscv64; code=$?; ls -A {0}/images >&2; exit $code",
        tiny.display(),
        env!("CARGO_BIN_EXE_xpool")
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", &script]);
    let template = installation.command(&[]);
    for (name, value) in template.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let probe = Command::new("unshare")
        .args(["--mount", "--map-root-user", "true"])
        .output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return skip(
            "an_image_that_finds_no_space_leaves_nothing",
            "mounts of one's own are not allowed here",
        );
    }
    let said = installation.said(command.output().unwrap());
    assert_snapshot!(all(&said), @r"
    exit code: 69
    error: building the image for riscv64-linux: `[DIR]/cache/images` has 16 MiB free and a build needs 2048 MiB

    hint: free some, or name another folder with `--cache-dir`
    ");
}

#[test]
fn a_second_manager_on_the_same_state_folder_is_refused() {
    let installation = Installation::new("");
    let serving = installation.serve();
    let said = all(&installation.run(&["serve"])).replace(&serving.child.id().to_string(), "[PID]");
    assert_snapshot!(said, @r"
    exit code: 1
    error: another manager (pid [PID]) uses `[DIR]/state`

    hint: `xpool status` shows it, `xpool down` ends it; `--state-dir`, and `--config` with another port, run one beside it
    ");
    assert_eq!(
        installation.run(&["status"]).code,
        Some(0),
        "the first one serves on"
    );
}

#[test]
fn without_a_manager_status_says_how_to_start_one_and_down_has_nothing_to_do() {
    let installation = Installation::new("");
    assert_snapshot!(all(&installation.run(&["status"])), @r"
    exit code: 69
    error: no manager is running (nobody answers at `[DIR]/state/control.sock`)

    hint: `xpool up riscv64` starts one
    ");
    assert_snapshot!(all(&installation.run(&["down"])), @r"
    exit code: 0
            Down nothing was up
    ");
}

#[test]
fn more_vms_than_allowed_are_refused() {
    let installation = Installation::new("[pool]\nmax-vms = 2\n");
    put_image(&installation, 6);
    let said = installation.run(&["up", "riscv64", "--count", "3"]);
    assert_eq!(said.code, Some(1));
    let last = said.stderr.lines().last().unwrap();
    assert!(is_untouched(&installation), "a manager was started");
    assert_snapshot!(last, @"error: 3 VMs are more than `max-vms` allows, which is 2 for riscv64-linux");
}

#[test]
fn more_vms_than_a_system_has_slots_need_a_configured_maximum() {
    let installation = Installation::new("");
    put_image(&installation, 6);
    let said = installation.run(&["up", "riscv64", "--count", "65"]);
    assert!(is_untouched(&installation), "a manager was started");
    assert_snapshot!(all(&said), @r"
    exit code: 1
    error: 65 VMs of riscv64-linux are more than the 64 that `up` may ask for; `max-vms` in xpool.toml allows more
    ");
}

#[test]
fn a_value_that_does_not_fit_another_one_is_refused() {
    let installation = Installation::new("[pool]\nslots-per-vm = 2\n");
    assert_snapshot!(all(&installation.run(&["up", "riscv64"])), @r#"
    exit code: 2
    error: [DIR]/xpool.toml:4: `slots-per-vm` is 2 but with `reuse = "never"` a VM has one build in its life

    hint: more than 1 needs `reuse = "client"` or `reuse = "always"`
    "#);
    assert!(is_untouched(&installation));
}

#[test]
fn xpools_own_key_is_not_given_to_somebody_else() {
    let installation = Installation::new("");
    installation.ok(&["machines"]);
    let key = fs::read_to_string(installation.state().join("keys/client_ed25519.pub")).unwrap();
    let config = installation.path().join("xpool.toml");
    let text = fs::read_to_string(&config).unwrap();
    let keys = format!("[keys.alice]\npublic-key = \"{}\"\n", key.trim_end());
    fs::write(&config, text + &keys).unwrap();
    assert_snapshot!(all(&installation.run(&["serve"])), @r"
    exit code: 2
    error: `keys.alice` is xpool's own key, `[DIR]/state/keys/client_ed25519`

    hint: it is for clients on this machine: whoever comes from elsewhere needs a key of their own
    ");
    assert!(is_untouched(&installation));
}

#[test]
fn a_pool_without_vms_shows_its_rules_and_what_it_cannot_share() {
    let installation = Installation::new(
        "[store]\nroot = \"/nonexistent\"\n[pool]\nmax-vms = 2\n[systems.riscv64-linux]\nstore.share = \"none\"\n",
    );
    let _serving = installation.serve();
    let said = installation.ok(&["status"]);
    let tables = said.split_once("\n\n").unwrap().1;
    assert_snapshot!(tables, @r"
    SYSTEM         STATE  VMS     KEPT  BUSY  WAITING  REUSE  INPUTS
    aarch64-linux  open   0 of 2  0     0     0        never  copied
    riscv64-linux  open   0 of 2  0     0     0        never  copied

    aarch64-linux: inputs: copied, because there is no /nonexistent/nix/store
    ");
}

#[test]
fn a_log_that_is_not_there_is_named() {
    let installation = Installation::new("");
    assert_snapshot!(all(&installation.run(&["logs", "riscv64-7"])), @r"
    exit code: 1
    error: there is no log of `riscv64-7`: nothing has been started yet; no manager is running
    ");
    assert_snapshot!(all(&installation.run(&["logs", "../keys/host"])), @r"
    exit code: 1
    error: there is no log of `../keys/host`: nothing has been started yet; no manager is running
    ");
}

#[test]
fn a_state_folder_that_nix_cannot_read_is_refused() {
    let installation = Installation::new("");
    let spaced = installation.path().join("my state");
    let said = installation.run(&["machines", "--state-dir", spaced.to_str().unwrap()]);
    assert_snapshot!(all(&said), @r"
    exit code: 1
    error: the state folder `[DIR]/my state` has white space in its name, which Nix cannot read; name another one with `--state-dir`
    ");
    assert!(!spaced.exists());
}

#[test]
fn the_state_folder_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let installation = Installation::new("");
    let _serving = installation.serve();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&installation.state()), 0o700);
    assert_eq!(mode(&installation.state().join("keys")), 0o700);
    assert_eq!(
        mode(&installation.state().join("keys/client_ed25519")),
        0o600
    );
    assert_eq!(mode(&installation.state().join("keys/host_ed25519")), 0o600);
}

#[test]
fn a_shell_needs_a_vm_that_is_there() {
    let installation = Installation::new("");
    assert_snapshot!(all(&installation.run(&["ssh", "riscv64-1"])), @r"
    exit code: 69
    error: no manager is running (nobody answers at `[DIR]/state/control.sock`)

    hint: `xpool up riscv64` starts one
    ");
    assert_snapshot!(all(&installation.run(&["ssh", "riscv", "--", "ls"])), @r"
    exit code: 2
    error: invalid value 'riscv' for '<SYSTEM|VM>': unknown system `riscv`: did you mean `riscv64`? (VMs have names such as `riscv64-1`)

    For more information, try '--help'.
    ");
    let long = "x".repeat(100_001);
    assert_snapshot!(all(&installation.run(&["ssh", "riscv64", "--", &long])), @r"
    exit code: 1
    error: the command has 100001 bytes and may have 100000; send a script over standard input
    ");
    let _serving = installation.serve();
    assert_snapshot!(all(&installation.run(&["ssh", "riscv64-1", "--", "ls"])), @r"
    exit code: 1
    error: no shell in riscv64-1: there is no such VM, and none is running
    ");
}
