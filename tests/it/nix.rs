//! What is written in Nix's language: parsed and evaluated by real Nixes with stubs in place of NixOS (tests/nix).

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::builder::{By, LIMITS, SYSCTLS};
use crate::common::nixes::Nixes;
use insta::assert_snapshot;
use serde_json::{Value, json};

/// The files that end in `.nix`, as they are written.
fn nix_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            nix_files(&path, found);
        } else if path.extension().is_some_and(|end| end == "nix") {
            found.push(path);
        }
    }
}

#[test]
fn every_nix_parses_every_file() {
    let Some(nixes) = Nixes::find("every_nix_parses_every_file") else {
        return;
    };
    let mut files = vec!["flake.nix".into(), "nixos-module.nix".into()];
    nix_files(Path::new("images"), &mut files);
    nix_files(Path::new("tests/nix"), &mut files);
    assert!(files.len() >= 10, "{files:?}");
    for system in &nixes.systems {
        for file in &files {
            let args = ["--parse", file.to_str().unwrap()];
            let output = nixes.run(system, "dummy://", "nix-instantiate", &args);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{}: {said}", file.display());
        }
    }
}

#[test]
fn the_host_module_has_nix_use_the_machines() {
    let Some(nixes) = Nixes::find("the_host_module_has_nix_use_the_machines") else {
        return;
    };
    let host = nixes.evaluate("host");
    let nothing = json!({ "distributedBuilds": false, "services": {}, "sockets": {}, "users": {} });
    assert_eq!(host["disabled"], nothing);
    let plain = &host["plain"];
    assert_eq!(
        plain["builders"],
        "@/etc/nix/machines;@/run/xpool-nix/machines"
    );
    assert_eq!(plain["distributedBuilds"], true);
    assert_eq!(written_by_root(plain), "--transport local");
    assert_eq!(plain["users"]["xpool"]["isSystemUser"], true);
    assert_eq!(
        plain["toml"],
        json!({
            "budget": {},
            "gateway": { "listen": "127.0.0.1:31022" },
            "local": { "group": "xpool" },
            "metrics": {},
            "pool": {},
            "systems": { "aarch64-linux": {}, "riscv64-linux": {} },
        })
    );
    let check = plain["check"].as_str().unwrap();
    assert!(
        check.contains("/bin/xpool config check --elsewhere --config "),
        "{check}"
    );
    let generated = nixes.installation.path().join("generated.toml");
    fs::write(&generated, toml::to_string(&plain["toml"]).unwrap()).unwrap();
    let args = ["config", "check", "--elsewhere", "--config"];
    let args = [&args[..], &[generated.to_str().unwrap()]].concat();
    let said = nixes.installation.run(&args);
    assert_eq!(said.code, Some(0), "{said:?}");
    // Some have bash start the helper.
    let bash = json!(["/nix/store/00000000000000000000000000000000-bash"]);
    assert_eq!(plain["services"]["nix-daemon"]["path"], bash);
    assert_eq!(host["alone"]["services"]["nix-daemon"], Value::Null);
    assert_eq!(host["alone"]["builders"], Value::Null);
    let alone = &host["alone"]["services"]["xpool"]["serviceConfig"];
    assert_eq!(alone["ExecStartPre"], Value::Null);
    assert_eq!(host["alone"]["distributedBuilds"], false);
}

/// How root is told to write what its Nix and ssh read; nothing that these read is in a folder of the manager's.
#[track_caller]
fn written_by_root(host: &Value) -> String {
    let commands = &host["services"]["xpool"]["serviceConfig"]["ExecStartPre"];
    let command = commands.as_array().unwrap().last().unwrap();
    let (program, how) = command
        .as_str()
        .and_then(|command| command.split_once(" machines --write-to /run/xpool-nix "))
        .unwrap();
    assert!(program.starts_with("-+/nix/store/"), "{program}");
    for read in [&host["builders"], &host["ssh"]] {
        let text = read.as_str().unwrap_or_default();
        assert!(!text.contains("/var/"), "{text}");
    }
    how.to_owned()
}

#[test]
fn the_host_module_says_to_ssh_what_xpool_says() {
    let Some(nixes) = Nixes::find("the_host_module_says_to_ssh_what_xpool_says") else {
        return;
    };
    let ssh = nixes.evaluate("host.ssh");
    assert_eq!(
        ssh["builders"],
        "@/etc/nix/machines;@/run/xpool-nix/machines"
    );
    assert_eq!(written_by_root(&ssh), "--transport ssh --nix-version 2.8");
    let installation = &nixes.installation;
    fs::write(
        installation.path().join("xpool.toml"),
        "[gateway]\nlisten = \"[::]:4022\"\n",
    )
    .unwrap();
    let args = ["machines", "--transport", "ssh", "--format", "ssh-config"];
    let own = installation.ok(&args).replace('"', "");
    // The same files, where root has written them.
    let own = own.replace("[DIR]/state/keys/", "[DIR]/state/");
    let own = own.replace("[DIR]/state", "/run/xpool-nix");
    let is_said = |line: &&str| !line.trim_start().starts_with('#') && !line.is_empty();
    let mut said: Vec<&str> = own.lines().filter(is_said).collect();
    // What other modules say comes after it.
    said.push("Match all");
    let module: Vec<&str> = ssh["ssh"].as_str().unwrap().lines().collect();
    let module: Vec<&str> = module.into_iter().filter(is_said).collect();
    assert_eq!(module, said);
}

#[test]
fn options_of_the_host_module_become_configuration() {
    let Some(nixes) = Nixes::find("options_of_the_host_module_become_configuration") else {
        return;
    };
    let full = nixes.evaluate("host.full");
    assert_eq!(
        full["toml"],
        json!({
            "budget": { "memory-mib": 8192 },
            "gateway": { "listen": "127.0.0.1:31022" },
            "keys": { "alice": { "public-key": "ssh-ed25519 AAAA alice" } },
            "local": { "group": "builders" },
            "metrics": { "listen": "127.0.0.1:31023" },
            "pool": { "max-vms": 6, "reuse": "client", "store": { "share": "none" } },
            "systems": { "aarch64-linux": {}, "riscv64-linux": { "vcpus": 1 } },
        })
    );
    let groups = json!({ "builders": { "members": ["alice"] }, "xpool": { "members": [] } });
    assert_eq!(full["groups"], groups);
    let manager = &full["services"]["xpool"]["serviceConfig"];
    assert_eq!(manager["SupplementaryGroups"], json!(["kvm", "builders"]));
    let images = &full["services"]["xpool-images"];
    // Nothing waits for them.
    assert_eq!(images["wantedBy"], json!(["xpool.service"]));
    // Again, but not for ever, and not for what will fail again.
    assert_eq!(images["serviceConfig"]["RestartPreventExitStatus"], "1 2");
    let [burst, interval] =
        ["startLimitBurst", "startLimitIntervalSec"].map(|key| images[key].as_u64().unwrap());
    assert_eq!(images["serviceConfig"]["RestartSec"], "5min");
    assert!(burst * 300 * 2 < interval, "{burst} in {interval} s");
    let script = images["script"].as_str().unwrap();
    assert_snapshot!(script, @r#"
    failed=0
    # Of two, the one that may go well later.
    fails() { [ "$failed" = 69 ] || failed=$1; }
    mkdir -p /var/cache/xpool/images
    ln -sfn /nix/store/00000000000000000000000000000000-xpool-image-riscv64-linux /var/cache/xpool/images/.riscv64-linux.new
    mv -T /var/cache/xpool/images/.riscv64-linux.new /var/cache/xpool/images/riscv64-linux

    exit $failed
    "#);
}

#[test]
fn wrong_values_are_refused_with_their_names() {
    let Some(nixes) = Nixes::find("wrong_values_are_refused_with_their_names") else {
        return;
    };
    let refused = [
        ("gone-from-nixos", "`boot.readOnlyNixStore' does not exist"),
        ("two-values", "`networking.hostName' has values that differ"),
        ("unknown-option", "`services.xpool.pakage' does not exist"),
        ("wrong-choice", "`services.xpool.transport' is not of type"),
        (
            "wrong-image",
            "`services.xpool.images.riscv64-linux' is not",
        ),
        (
            "wrong-listen",
            "`services.xpool.settings.gateway.listen' is",
        ),
        ("wrong-metrics", "`services.xpool.metrics.listen' is not"),
        (
            "wrong-policy",
            "`services.xpool.policy.reuse' is not of type",
        ),
        (
            "wrong-range",
            "`services.xpool.limits.memory-pressure' is not",
        ),
        (
            "wrong-system",
            "`services.xpool.systems.x86_64-linux' does not",
        ),
        (
            "wrong-toml",
            "`services.xpool.settings.pool.max-vms' is not of",
        ),
        (
            "wrong-type",
            "`services.xpool.users' is not of type `list of",
        ),
    ];
    for (case, why) in refused {
        for result in nixes.evaluate_each(&format!("bad.{case}")) {
            let said = result.unwrap_err();
            assert!(said.contains(why), "{case}: {said}");
        }
    }
}

#[test]
fn a_nixos_guest_keeps_the_contract() {
    let Some(nixes) = Nixes::find("a_nixos_guest_keeps_the_contract") else {
        return;
    };
    let guests = nixes.evaluate("guest");
    for (system, guest) in guests.as_object().unwrap() {
        let platform = format!("{system}-linux");
        assert_eq!(guest["nixpkgs"]["hostPlatform"], platform.as_str());
        // What images/portable/nix.conf sets is set here, to the same.
        let conf = fs::read_to_string("images/portable/nix.conf").unwrap();
        let settings = &guest["nix"]["settings"];
        for line in conf.lines().filter(|line| !line.starts_with(['#', '!'])) {
            let (key, value) = line.split_once('=').unwrap();
            match key.trim() {
                // NixOS's own; and the shell of nixpkgs' Nix is built in.
                "build-users-group" | "sandbox-paths" => {}
                key => assert_eq!(conf_value(&settings[key]), value.trim(), "{key}"),
            }
        }
        for (name, value, by) in SYSCTLS {
            let set = &guest["boot"]["kernel"]["sysctl"][name];
            match by {
                By::Guest => assert_eq!(conf_value(set), value, "{name}"),
                By::NixOs => assert_eq!(*set, Value::Null, "{name}"),
            }
        }
        let daemon = &guest["systemd"]["services"]["nix-daemon"]["serviceConfig"];
        for (limit, value) in LIMITS.iter().filter(|(limit, _)| limit.ends_with('n')) {
            assert_eq!(conf_value(&daemon["LimitNOFILE"]), *value, "{limit}");
        }
        assert_eq!(daemon["IgnoreSIGPIPE"], false);
        let disk = &guest["fileSystems"]["/"];
        assert_eq!(disk["autoResize"], true);
        assert!(!disk["options"].to_string().contains("noatime"));
        // An overlay's upper layer and its work folder are on one mount, and its files can be written.
        assert_eq!(guest["boot"]["nixStoreMountOpts"], json!([]));
        assert_ne!(guest["environment"]["etc"]["hosts"]["mode"], "symlink");
        assert_eq!(guest["networking"]["hostName"], "");
        let agent = &guest["systemd"]["services"]["qemu-guest-agent"];
        assert_eq!(agent["serviceConfig"]["KillMode"], "process");
        assert_eq!(agent["serviceConfig"]["OOMScoreAdjust"], -1000);
        let path = agent["path"].to_string();
        for package in [
            "gawk",
            "nix",
            "socat",
            "sqlite",
            "util-linux",
            "xpool-guest",
        ] {
            assert!(path.contains(&format!("-{package}\"")), "{package}");
        }
        let agent = guest["services"]["qemuGuest"]["package"].as_str().unwrap();
        assert!(agent.ends_with("-qemu-ga-alone"), "{agent}");
        let rules = guest["systemd"]["tmpfiles"]["rules"].to_string();
        assert!(rules.contains("L+ /usr/bin/xpool-guest "), "{rules}");
    }
}

/// As nix.conf has it.
fn conf_value(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(words) => words.iter().map(conf_value).collect::<Vec<_>>().join(" "),
        value => value.to_string(),
    }
}
