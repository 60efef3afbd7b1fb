//! What is seen of real builds, and the limits that they have. `scripts/test` makes the images and runs it.

use std::process::Stdio;

use crate::common::nix::{Nix, sleeper, started, stderr, tooled};
use crate::common::{Installation, ended, namespace};
use serde_json::Value;

/// A build that enters a phase, writes lines with what a terminal would obey, and takes its time.
fn talker() -> String {
    let script = r#"echo '@nix { "action": "setPhase", "phase": "buildPhase" }'
        n=0; while [ $n -lt 100 ]; do n=$((n + 1)); printf 'line \033[31m%d\033[0m\n' $n; done
        sleep 4; echo at last; echo done > $out"#;
    tooled("riscv64-linux", "talker-1.0", "", script)
}

fn build(installation: &Installation) -> Option<Value> {
    let status = installation.status();
    status["builds"].as_array().unwrap().last().cloned()
}

/// The last build when it is as wanted.
fn until(installation: &Installation, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut found = None;
    installation.until(what, || {
        found = build(installation).filter(&wanted);
        found.is_some()
    });
    found.unwrap()
}

fn a_build_is_seen(nix: &Nix) {
    let installation = nix.installation;
    let mut running = nix.start(&talker());
    let seen = until(installation, "the build speaks", |build| {
        build["n-lines"] == 100
    });
    assert_eq!(
        (&seen["phase"], &seen["outcome"]),
        (&"buildPhase".into(), &Value::Null)
    );
    assert_eq!(seen["last-lines"].as_array().unwrap().len(), 30);
    assert_eq!(seen["last-lines"][29], "line \u{1b}[31m100\u{1b}[0m");
    let table = installation.ok(&["status"]);
    assert!(table.contains("talker-1.0.drv"), "{table}");
    assert!(table.contains("buildPhase: line 100"), "{table}");
    let follow = installation
        .command(&["logs", "talker-1.0", "-f"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(ended(&mut running.child), Some(0), "{}", running.log());
    let followed = installation.said(follow.wait_with_output().unwrap());
    assert!(
        // Without what a terminal would obey.
        followed.stdout.ends_with("line [31m100[0m\nat last\n"),
        "{}",
        followed.stdout
    );
    assert!(followed.stderr.ends_with("built\n"), "{}", followed.stderr);

    let output = seen["outputs"][0].as_str().unwrap();
    assert!(output.ends_with("-talker-1.0"), "{seen}");
    let built = until(installation, "the build has ended", |build| {
        build["outcome"]["is"] == "built"
    });
    assert_eq!(built["n-lines"], 101);
    let took = built["ended"].as_u64().unwrap() - built["began"].as_u64().unwrap();
    assert!((4..60).contains(&took), "{built}");
    assert!(built["bytes-in"].as_u64().unwrap() > 100, "{built}");
    let session = built["session"].to_string();
    assert!(installation.ok(&["logs", &session]).ends_with("at last\n"));
}

#[test]
fn a_build_is_seen_while_it_runs_and_remembered_when_it_has_ended() {
    let config = "[pool]\nmax-vms = 1\n[trace]\nfile = \"[DIR]/trace.csv\"\n";
    let (installation, _serving) = started(config);
    a_build_is_seen(&Nix::new(&installation));
    a_build_is_in_the_trace(&installation);
}

/// The one that was there, with a work of 4 seconds and more.
fn a_build_is_in_the_trace(installation: &Installation) {
    let trace = installation.path().join("trace.csv");
    let lines = || std::fs::read_to_string(&trace).map_or(0, |text| text.lines().count());
    installation.until("the build is in the trace", || lines() > 1);
    assert_eq!(lines(), 2);
    let said = installation.ok(&["simulate", "--json", trace.to_str().unwrap()]);
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["trace"]["builds"], 1, "{said}");
    let work = report["trace"]["work-s"].as_f64().unwrap();
    assert!((4.0..60.0).contains(&work), "{said}");
}

#[test]
fn a_build_for_a_newer_nix_is_seen_too() {
    if namespace::skipped("a build for a newer Nix") {
        return;
    }
    let (installation, _serving) = started("[pool]\nmax-vms = 1\n");
    a_build_is_seen(&Nix::newer(&installation));
}

#[test]
fn a_build_that_is_silent_for_too_long_is_ended_and_nix_says_why() {
    let (installation, _serving) = started("[pool]\nmax-vms = 1\nmax-silent-time = \"3s\"\n");
    let nix = Nix::new(&installation);
    let output = nix.build(&sleeper(600)).output().unwrap();
    assert!(!output.status.success());
    let said = "building sleeper.drv was ended: it was silent for 3s (max-silent-time of the pool; set it in xpool.toml)";
    assert!(stderr(&output).contains(said), "{}", stderr(&output));
    let build = build(&installation).unwrap();
    assert_eq!(
        build["outcome"]["because"],
        "it was silent for 3s (max-silent-time)"
    );
    installation.until("its session and its VM are gone", || {
        installation.list("riscv64-linux", "sessions").is_empty()
            && installation.list("riscv64-linux", "vms").is_empty()
    });
}
