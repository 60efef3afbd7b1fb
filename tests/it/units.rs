//! The systemd units, of nixos-module.nix and of scripts/systemd: looked at by real systemd, and the same where they can be.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use crate::common::{Installation, PATIENCE, skip};
use serde_json::Value;
use xpool::nix::client::Form;
use xpool::paths::Paths;

/// The settings of a service, each with its words in order.
type Settings = BTreeMap<String, Vec<String>>;

/// The first systemd that looks at units without running them.
const OFFLINE: u32 = 250;

const SERVICE: [&str; 1] = ["xpool.service"];
const BOTH: [&str; 2] = ["xpool.service", "xpool.socket"];

/// The worst that a unit may be exposed, in tenths.
const THRESHOLD: &str = "--threshold=30";

/// Whether systemd can look at units here; says so if not.
fn is_systemd_here(test: &str) -> bool {
    let output = Command::new("systemd-analyze").arg("--version").output();
    let said = output.map_or(Vec::new(), |output| output.stdout);
    let said = String::from_utf8_lossy(&said);
    let version = said.split_whitespace().nth(1);
    let version = version.and_then(|word| word.parse::<u32>().ok());
    let is_here = version.is_some_and(|version| version >= OFFLINE);
    if !is_here {
        skip(test, "there is no systemd-analyze, or an old one");
    }
    is_here
}

#[track_caller]
fn analyze(dir: &Path, args: &[&str], units: &[&str]) {
    let output = Command::new("systemd-analyze")
        .args(args)
        .args(units.iter().map(|unit| dir.join(unit)))
        .env("XDG_RUNTIME_DIR", dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
}

/// A folder with a service whose program is there, and the socket that it has.
fn unit(text: &str, socket: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let with_program = |line: &str| match line.split_once(' ') {
        Some((program, rest)) if program.starts_with("ExecStart") => {
            let (key, _) = program.split_once('=').unwrap();
            format!("{key}=/bin/true {rest}\n")
        }
        _ => format!("{line}\n"),
    };
    let text: String = text.lines().map(with_program).collect();
    fs::write(dir.path().join("xpool.service"), text).unwrap();
    fs::write(dir.path().join("xpool.socket"), socket).unwrap();
    dir
}

fn written(unit: &str) -> String {
    fs::read_to_string(format!("scripts/systemd/{unit}")).unwrap()
}

/// The settings of a unit in a configuration of tests/nix, `None` where there is no Nix.
fn of_the_module(attribute: &str) -> Option<Settings> {
    let attribute = format!("host.plain.{attribute}");
    let output = Command::new("nix-instantiate")
        .args([
            "--eval",
            "--strict",
            "--json",
            "tests/nix",
            "-A",
            &attribute,
        ])
        // Or it would make /nix.
        .env("NIX_REMOTE", "dummy://")
        .output()
        .ok()?;
    assert!(output.status.success(), "{output:?}");
    let config: BTreeMap<String, Value> = serde_json::from_slice(&output.stdout).unwrap();
    let words = |value: &Value| match value {
        Value::Array(values) => values
            .iter()
            .map(|value| value.as_str().unwrap().to_owned())
            .collect(),
        Value::String(text) => vec![text.clone()],
        value => vec![value.to_string()],
    };
    Some(
        config
            .iter()
            .map(|(key, value)| (key.clone(), words(value)))
            .collect(),
    )
}

/// A section of a unit file.
fn of_the_file(unit: &str, section: &str) -> Settings {
    let text = written(unit);
    let service = text.split(section).nth(1).unwrap();
    let service = service.split("[Install]").next().unwrap();
    let mut settings = Settings::new();
    for (key, value) in service
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
    {
        settings
            .entry(key.to_owned())
            .or_default()
            .push(value.to_owned());
    }
    settings
}

#[test]
fn the_units_are_whole_and_closed_enough() {
    if !is_systemd_here("the_units_are_whole_and_closed_enough") {
        return;
    }
    let system = unit(&written("xpool.service"), &written("xpool.socket"));
    analyze(system.path(), &["verify"], &BOTH);
    analyze(
        system.path(),
        &["security", "--offline=true", THRESHOLD],
        &SERVICE,
    );
    // No score: systemd counts what root might do, which a person's service cannot.
    let user = unit(
        &written("user/xpool.service"),
        &written("user/xpool.socket"),
    );
    analyze(user.path(), &["--user", "verify"], &BOTH);
}

#[test]
fn the_units_of_the_nixos_module_are_closed_enough() {
    let test = "the_units_of_the_nixos_module_are_closed_enough";
    if !is_systemd_here(test) {
        return;
    }
    for service in ["xpool", "xpool-images"] {
        let attribute = format!("services.{service}.serviceConfig");
        let Some(settings) = of_the_module(&attribute) else {
            return skip(test, "there is no Nix");
        };
        let line = |(key, value): (&String, &String)| format!("{key}={value}\n");
        let lines: String = settings
            .iter()
            .filter(|(key, _)| *key != "ExecStart")
            .flat_map(|(key, values)| values.iter().map(move |value| (key, value)))
            .map(line)
            .collect();
        let unit_text = format!("[Service]\nExecStart=xpool serve\n{lines}");
        let dir = unit(&unit_text, &written("xpool.socket"));
        analyze(dir.path(), &["verify"], &SERVICE);
        let security = ["security", "--offline=true", THRESHOLD];
        analyze(dir.path(), &security, &SERVICE);
    }
}

#[test]
fn the_unit_of_other_distributions_is_that_of_nixos() {
    let Some(mut module) = of_the_module("services.xpool.serviceConfig") else {
        return skip(
            "the_unit_of_other_distributions_is_that_of_nixos",
            "there is no Nix",
        );
    };
    let mut file = of_the_file("xpool.service", "[Service]");
    // Where the program is; a variable that NixOS has elsewhere; groups that the user is in.
    let apart = [
        (
            &mut module,
            ["ExecStart", "ExecStartPre", "SupplementaryGroups"],
        ),
        (&mut file, ["ExecStart", "ExecStartPre", "Environment"]),
    ];
    for (settings, keys) in apart {
        for key in keys {
            assert!(settings.remove(key).is_some(), "{key}");
        }
    }
    let families = "RestrictAddressFamilies";
    let joined = module[families].join(" ");
    module.insert(families.to_owned(), vec![joined]);
    assert_eq!(file, module);
}

#[test]
fn the_socket_of_other_distributions_is_that_of_nixos() {
    let Some(mut module) = of_the_module("sockets.xpool.socketConfig") else {
        return skip(
            "the_socket_of_other_distributions_is_that_of_nixos",
            "there is no Nix",
        );
    };
    let host = of_the_module("sockets.xpool").unwrap();
    module.insert("ListenStream".to_owned(), host["listenStreams"].clone());
    let mut file = of_the_file("xpool.socket", "[Socket]");
    let state = Some("/var/lib/xpool".into());
    let paths = Paths::new(None, state, None).unwrap();
    let machines = Form::ALL.map(|form| paths.machines(form).display().to_string());
    // Where `rm` is, and what root's Nix reads.
    for (settings, fixed) in [(&mut module, "/run/xpool-nix"), (&mut file, "/etc/xpool")] {
        let removed = settings.remove("ExecStopPost").unwrap().concat();
        let files = removed.split_once("/bin/rm -f ").unwrap().1;
        let (first, files) = files.split_once(' ').unwrap();
        assert_eq!(first, format!("{fixed}/machines"));
        let mut files: Vec<&str> = files.split(' ').collect();
        files.sort_by_key(|file| machines.iter().position(|machines| machines == file));
        assert_eq!(files, machines);
    }
    assert_eq!(file, module);
}

#[test]
fn a_manager_tells_systemd_when_it_serves() {
    let installation = Installation::new("");
    let path = installation.path().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = installation.command(&["serve"]);
    let mut manager = command.env("NOTIFY_SOCKET", &path).spawn().unwrap();
    let mut told = [0; 64];
    let length = socket.recv(&mut told).unwrap();
    assert_eq!(&told[..length], b"READY=1\n");
    // It does serve by then.
    installation.ok(&["status"]);
    manager.kill().unwrap();
    manager.wait().unwrap();
}
