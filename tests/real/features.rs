//! What builders can do beside what all can, where it is configured: features, further platforms, experiments. With real Nix clients.
//! `scripts/test` makes the images and runs it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use crate::common::Installation;
use crate::common::namespace;
use crate::common::nix::{Nix, Version, derivation, started, stderr, tooled};

const RISCV64: &str = "riscv64-linux";
const AARCH64: &str = "aarch64-linux";

const CONFIG: &str = r#"[pool]
max-vms = 1
reuse = "always"
lease = "1s"
[systems.riscv64-linux]
features = ["gccarch-rv64gc", "uid-range"]
experimental-features = ["ca-derivations", "impure-derivations"]
[systems.aarch64-linux]
cpu = "cortex-a72"
features = ["gccarch-armv8-a"]
extra-platforms = ["armv7l-linux"]
"#;

/// A command with these experiments in the client's Nix too. An option would not be passed on to its build hook.
fn with_experiments(mut command: Command) -> Output {
    let config = "extra-experimental-features = ca-derivations impure-derivations";
    command.env("NIX_CONFIG", config).output().unwrap()
}

fn wants(feature: &str) -> String {
    format!(r#"requiredSystemFeatures = [ "{feature}" ];"#)
}

/// A derivation that is made of its content, one that has it as input, and on a machine that knows of neither one that has both. Then
/// another machine is told of one by a person.
fn made_of_content(nix: &Nix<'_>, client: &str) {
    let by_content =
        r#"__contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";"#;
    let script = format!("echo by content, for {client} > $out");
    let first = derivation(RISCV64, "by-content", by_content, &script);
    let second = format!("{by_content} first = {first};");
    let script = "read -r text < $first; echo \"$text, and of it\" > $out";
    let second = derivation(RISCV64, "of-it", &second, script);
    let output = with_experiments(nix.build(&second));
    let log = stderr(&output);
    let logs = nix.installation.logs();
    assert!(output.status.success(), "{log}\n{logs}");
    let path = String::from_utf8(output.stdout).unwrap();
    let made = fs::read_to_string(format!("{}{}", nix.store.display(), path.trim())).unwrap();
    assert_eq!(made, format!("by content, for {client}, and of it\n"));
    drain(nix.installation);
    let both = format!("{by_content} first = {first}; second = {second};");
    let script = "while read -r text; do echo \"$text\"; done < $first > $out; while read -r text; do echo \"$text\"; done < $second >> $out";
    let both = derivation(RISCV64, "of-both", &both, script);
    let output = with_experiments(nix.build(&both));
    assert!(output.status.success(), "{}", stderr(&output));
    copied_with_what_was_built(nix, &both);
    // It is its client's now, and there is room for one.
    drain(nix.installation);
}

/// Ends the machine that there is.
fn drain(installation: &Installation) {
    let vms = installation.list(RISCV64, "vms");
    let name = vms[0]["name"].as_str().unwrap().to_owned();
    installation.ok(&["drain", &name]);
    installation.until("it has ended", || {
        let vms = installation.list(RISCV64, "vms");
        vms.iter().all(|vm| vm["name"] != *name)
    });
}

/// Has a machine told what was built for a derivation, by `nix copy`, and asks it.
fn copied_with_what_was_built(nix: &Nix<'_>, expression: &str) {
    let vms = nix.installation.list(RISCV64, "vms");
    let name = vms[0]["name"].as_str().unwrap();
    let vm = format!("ssh-ng://vm-{name}@xpool-riscv64");
    let own = nix.store.to_str().unwrap();
    let of_store = |command: &[&str], store: &str| {
        let mut nix = nix.program("nix");
        nix.args(command)
            .args(["--store", store, "--impure", "--expr", expression]);
        let output = with_experiments(nix);
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    of_store(&["copy", "--to", &vm], own);
    let info = ["realisation", "info"];
    assert_eq!(of_store(&info, &vm), of_store(&info, own));
}

/// One that may be another each time. Nix's own build hook brings its output and then does not find it, whatever the builder is: so do
/// 2.26 and 2.34 with `ssh-ng://localhost`. What a builder has to do is done.
fn impure(nix: &Nix<'_>) {
    let impure = derivation(RISCV64, "impure", "__impure = true;", "echo > $out");
    let output = with_experiments(nix.build(&impure));
    let log = stderr(&output);
    let is_brought = log.contains("copying path") && log.contains("unexpectedly invalid");
    assert!(is_brought, "{log}");
}

fn of_riscv64(nix: &Nix<'_>, client: &str) {
    let wants = |feature: &str| format!(r#"{} client = "{client}";"#, wants(feature));
    let arch = wants("gccarch-rv64gc");
    let arch = derivation(RISCV64, "arch", &arch, "echo arch > $out");
    assert_eq!(nix.results(&arch), ["arch\n"]);
    let script = "{ id -u; cat /proc/self/uid_map; } > $out";
    let uids = tooled(RISCV64, "uids", &wants("uid-range"), script);
    let uids = nix.results(&uids).remove(0);
    let words: Vec<&str> = uids.split_whitespace().collect();
    assert!(matches!(words[..], ["0", "0", _, "65536"]), "{uids}");
    let other = wants("gccarch-rv64gcv");
    let other = derivation(RISCV64, "other", &other, "echo > $out");
    let output = nix.build(&other).output().unwrap();
    let log = stderr(&output);
    assert!(!output.status.success(), "{log}");
    assert!(log.contains("gccarch-rv64gcv"), "{log}");
}

/// A program for 32-bit Arm that ends with 42: its ELF header, one segment, `mov r0, #42; mov r7, #1; svc 0`.
fn arm_program(installation: &Installation) {
    let word = u32::to_le_bytes;
    let mut program = b"\x7fELF\x01\x01\x01".to_vec();
    program.resize(16, 0);
    program.extend([2_u16, 40].map(u16::to_le_bytes).as_flattened());
    // Version, entry, where the segments are told of, no sections, flags of the fifth ABI.
    let header = [1, 0x10054, 52, 0, 0x0500_0000].map(word);
    program.extend(header.as_flattened());
    program.extend(
        [52_u16, 32, 1, 0, 0, 0]
            .map(u16::to_le_bytes)
            .as_flattened(),
    );
    program.extend(
        [1, 0, 0x10000, 0x10000, 96, 96, 5, 0x1000]
            .map(word)
            .as_flattened(),
    );
    program.extend(
        [0xe3a0_002a, 0xe3a0_7001, 0xef00_0000]
            .map(word)
            .as_flattened(),
    );
    let file = installation.path().join("arm");
    fs::write(&file, program).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}

fn of_aarch64(nix: &Nix<'_>) {
    arm_program(nix.installation);
    let script = "$arm; echo $? > $out; uname -m >> $out";
    let extra = format!(r#"arm = ./arm; PATH = "${{./tools/{AARCH64}}}/bin";"#);
    let arm = derivation("armv7l-linux", "arm", &extra, script);
    let said = nix.results(&arm).remove(0);
    assert!(["42\narmv7l\n", "42\narmv8l\n"].contains(&&*said), "{said}");
    let script = "grep -m1 Features /proc/cpuinfo > $out";
    let features = tooled(AARCH64, "features", &wants("gccarch-armv8-a"), script);
    let features = nix.results(&features).remove(0);
    assert!(
        features.contains(" crc32") && !features.contains("atomics"),
        "{features}"
    );
}

#[test]
fn builds_find_the_features_and_platforms_that_are_configured() {
    if namespace::skipped("builds_find_the_features_and_platforms_that_are_configured") {
        return;
    }
    let (installation, _serving) = started(CONFIG);
    for (version, client) in [(Version::Newer, "newer"), (Version::Newest, "newest")] {
        let nix = Nix::of(version, &installation);
        of_riscv64(&nix, client);
        made_of_content(&nix, client);
    }
    of_riscv64(&Nix::new(&installation), "own");
    impure(&Nix::of(Version::Newer, &installation));
    of_aarch64(&Nix::of(Version::Newer, &installation));
}
