//! What `xpool simulate` says of the traces in tests/traces, and of what is no trace.

#[path = "../traces/generate.rs"]
#[allow(dead_code, reason = "its `main` writes the files")]
mod generate;

use std::path::PathBuf;

use crate::common::{Installation, Said};
use insta::assert_snapshot;
use serde_json::Value;

fn shipped(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/traces")
        .join(name)
}

/// What is said of a trace that is shipped, with six VMs of each system at the most and all else as it is by default.
fn simulate(name: &str, more: &[&str]) -> Said {
    let trace = shipped(name);
    let args = [
        &["simulate", trace.to_str().unwrap(), "--max-vms", "6"],
        more,
    ]
    .concat();
    Installation::new("").run(&args)
}

/// What is said of a file with this text.
fn simulate_text(text: &[u8]) -> Said {
    let installation = Installation::new("");
    let trace = installation.path().join("trace.csv");
    std::fs::write(&trace, text).unwrap();
    installation.run(&["simulate", trace.to_str().unwrap()])
}

fn all(said: &Said) -> String {
    format!(
        "exit code: {}\n{}{}",
        said.code.unwrap_or(-1),
        said.stdout,
        said.stderr
    )
}

#[test]
fn the_traces_are_what_their_generator_makes() {
    for (name, text) in generate::all() {
        let is_same = std::fs::read_to_string(shipped(name)).unwrap() == text;
        assert!(is_same, "{name} differs: `cargo run --example traces`");
    }
}

#[test]
fn a_day_on_a_laptop_is_simulated() {
    assert_snapshot!(all(&simulate("laptop-day.csv", &[])), @r"
    exit code: 0
    42 builds of 1 client in 7h39m, 1h56m of work

    SYSTEM         POLICY      WAIT P50  P95     MAX     VM-SECONDS  STARTS  PEAK  BUILDS WITHOUT VM
    aarch64-linux  configured  1.0s      1.0s    1.0s    2348        14      5     -
    aarch64-linux  always max  0.0s      0.0s    0.0s    168593      6       6     -
    aarch64-linux  always one  0.0s      633.6s  633.6s  28583       1       1     -
    riscv64-linux  configured  0.8s      0.8s    0.8s    4665        28      5     -
    riscv64-linux  always max  0.0s      0.0s    0.0s    168593      6       6     -
    riscv64-linux  always one  0.0s      504.6s  751.9s  28583       1       1     -
    all            configured  0.8s      1.0s    1.0s    7012        42      7     -
    all            always max  0.0s      0.0s    0.0s    337186      12      12    -
    all            always one  0.0s      504.6s  751.9s  57166       2       2     -
    ");
}

#[test]
fn a_bursty_ci_is_simulated() {
    assert_snapshot!(all(&simulate("bursty-ci.csv", &[])), @r"
    exit code: 0
    489 builds of 4 clients in 7h13m, 5h52m of work

    SYSTEM         POLICY      WAIT P50  P95      MAX      VM-SECONDS  STARTS  PEAK  BUILDS WITHOUT VM
    aarch64-linux  configured  10.7s     98.1s    152.8s   9725        237     6     -
    aarch64-linux  always max  7.9s      93.8s    146.5s   157341      6       6     -
    aarch64-linux  always one  270.0s    947.9s   1284.4s  27155       1       1     -
    riscv64-linux  configured  19.6s     142.4s   179.5s   11935       252     6     -
    riscv64-linux  always max  17.1s     139.3s   173.8s   157341      6       6     -
    riscv64-linux  always one  421.5s    1191.7s  1556.6s  27155       1       1     -
    all            configured  14.7s     128.2s   179.5s   21660       489     12    -
    all            always max  11.7s     124.5s   173.8s   314682      12      12    -
    all            always one  329.9s    1098.1s  1556.6s  54309       2       2     -
    ");
}

#[test]
fn a_nightly_mass_build_is_simulated() {
    assert_snapshot!(all(&simulate("nightly-mass-build.csv", &[])), @r"
    exit code: 0
    2012 builds of 2 clients in 5h44m, 25h39m of work

    SYSTEM         POLICY      WAIT P50  P95       MAX       VM-SECONDS  STARTS  PEAK  BUILDS WITHOUT VM
    riscv64-linux  configured  345.7s    1216.8s   1545.6s   94154       2012    6     -
    riscv64-linux  always max  312.0s    1104.3s   1419.5s   125524      6       6     -
    riscv64-linux  always one  37860.2s  67434.3s  71831.4s  92344       1       1     -
    ");
}

/// Of each system and of both together: the 95th percentile of the wait as it is configured is at most 1.2 times that of
/// "always max" (which is more than 0 here, so that no start time is added to it), and the VM-seconds at most half.
#[test]
fn a_bursty_ci_waits_little_longer_than_with_all_vms_there_and_takes_half_of_their_time() {
    let said = simulate("bursty-ci.csv", &["--set", "reuse=never", "--json"]);
    let report: Value = serde_json::from_str(&said.stdout).unwrap();
    for of in [
        &report["all"],
        &report["systems"]["riscv64-linux"],
        &report["systems"]["aarch64-linux"],
    ] {
        let figure = |policy: &str, name: &str| of[policy][name].as_f64().unwrap();
        let waits = ["configured", "always-max"].map(|policy| figure(policy, "wait-p95-s"));
        assert!(
            waits[1] > 0.0 && waits[0] <= 1.2 * waits[1],
            "p95 {waits:?}"
        );
        let times = ["configured", "always-max"].map(|policy| figure(policy, "vm-seconds"));
        assert!(times[0] <= 0.5 * times[1], "VM-seconds {times:?}");
        assert_eq!(of["configured"]["rejected"], 0);
    }
}

#[test]
fn what_is_said_on_the_command_line_wins_over_the_file() {
    let config =
        "[pool]\nmax-vms = 1\n[systems.riscv64-linux]\nmax-vms = 2\nidle-timeout = \"1m\"\n";
    let installation = Installation::new(config);
    let trace = installation.path().join("trace.csv");
    let lines = "0,riscv64,a,10\n".repeat(9) + &"100,aarch64,a,10\n".repeat(9);
    std::fs::write(&trace, format!("time,system,client,seconds\n{lines}")).unwrap();
    let figures = |more: &[&str]| {
        let args = [&["simulate", trace.to_str().unwrap(), "--json"], more].concat();
        let said = installation.run(&args);
        let report: Value = serde_json::from_str(&said.stdout).unwrap();
        let one = |system: &str| {
            let figures = &report["systems"][system]["configured"];
            ["peak-vms", "starts"].map(|name| figures[name].as_u64().unwrap())
        };
        (one("riscv64-linux"), one("aarch64-linux"))
    };
    assert_eq!(figures(&[]), ([2, 9], [1, 9]));
    let (riscv64, aarch64) = figures(&["--max-vms", "3", "--set", "reuse=client"]);
    assert_eq!((riscv64, aarch64), ([3, 3], [3, 3]));
}

/// A build every twelve seconds from nine of each day, for fifteen days, of which a forecast knows the last eight.
#[test]
#[expect(
    clippy::float_cmp,
    reason = "whole milliseconds are the same numbers however they are come by"
)]
fn a_forecast_that_is_on_has_most_builds_wait_for_nothing() {
    let installation = Installation::new("");
    let trace = installation.path().join("trace.csv");
    let times =
        (0..15).flat_map(|day| (0..300).map(move |place| (day * 24 + 9) * 3600 + place * 12));
    let lines: Vec<String> = times.map(|at| format!("{at},riscv64,a,5")).collect();
    let text = format!("time,system,client,seconds\n{}\n", lines.join("\n"));
    std::fs::write(&trace, text).unwrap();
    let figures = |forecast: &str| {
        let set = format!("forecast={forecast}");
        let args = [
            "simulate",
            trace.to_str().unwrap(),
            "--max-vms",
            "4",
            "--set",
            &set,
            "--json",
        ];
        let report: Value = serde_json::from_str(&installation.run(&args).stdout).unwrap();
        let figures = &report["all"]["configured"];
        ["wait-p50-s", "wait-max-s", "vm-seconds"].map(|name| figures[name].as_f64().unwrap())
    };
    let off = figures("off");
    assert_eq!(figures("observe"), off);
    let on = figures("on");
    assert_eq!((off[0], on[0]), (0.8, 0.0));
    assert_eq!(off[1], on[1]);
    // One VM for eight hours, five minutes before each, and until it is idle for ten.
    let more = on[2] - off[2];
    assert!((8.0 * 2400.0..8.0 * 4500.0).contains(&more), "{more}");
}

#[test]
fn json_is_one_object_with_every_figure() {
    let said = simulate("laptop-day.csv", &["--start-time", "6s", "--json"]);
    let report: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_snapshot!(serde_json::to_string_pretty(&report["all"]["configured"]).unwrap(), @r#"
    {
      "lost": 0,
      "peak-vms": 7,
      "rejected": 0,
      "starts": 42,
      "vm-seconds": 7227.7,
      "wait-max-s": 6.0,
      "wait-p50-s": 6.0,
      "wait-p95-s": 6.0
    }
    "#);
    assert_snapshot!(report["trace"].to_string(), @r#"{"builds":42,"clients":1,"span-s":27592.9,"work-s":6971.6}"#);
    assert_eq!(report["start-times-s"]["riscv64-linux"], 6.0);
    let keys: Vec<&String> = report["systems"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["aarch64-linux", "riscv64-linux"]);
}

#[test]
fn what_is_no_trace_is_refused_with_what_one_looks_like() {
    assert_snapshot!(all(&simulate_text(b"")), @r"
    exit code: 2
    error: `[DIR]/trace.csv`: there is no build in it

    hint: a trace begins with the line `time,system,client,seconds`; then each build has one such as `12.5,riscv64-linux,alice,90`
    ");
    assert_snapshot!(all(&simulate_text(b"time,system,client,seconds\r\n0,riscv64-linux,a,-3\r\n")), @r"
    exit code: 2
    error: `[DIR]/trace.csv`: line 2, column `seconds`: `-3` is less than 0

    hint: a trace begins with the line `time,system,client,seconds`; then each build has one such as `12.5,riscv64-linux,alice,90`
    ");
    let installation = Installation::new("");
    let none = installation.path().join("none.csv");
    let said = installation.run(&["simulate", none.to_str().unwrap()]);
    assert_snapshot!(all(&said), @r"
    exit code: 1
    error: `[DIR]/none.csv`: No such file or directory (os error 2)
    ");
}

#[test]
fn values_that_no_pool_may_have_are_refused() {
    let said = |more: &[&str]| all(&simulate("laptop-day.csv", more));
    assert_snapshot!(said(&["--set", "max-vms=0"]), @r"
    exit code: 2
    error: command line: `max-vms` is 0 but must be from 1 to 1000
    ");
    assert_snapshot!(said(&["--set", "min-vms=7"]), @r"
    exit code: 2
    error: command line: `min-vms` is 7 but must be from 0 to 6
    ");
    assert_snapshot!(said(&["--set", "wram=1"]), @r"
    exit code: 2
    error: command line: unknown key `wram`

    hint: did you mean `warm`?
    ");
    assert_snapshot!(said(&["--set", "slots-per-vm=2"]), @r#"
    exit code: 2
    error: command line: `slots-per-vm` is 2 but with `reuse = "never"` a VM has one build in its life

    hint: more than 1 needs `reuse = "client"` or `reuse = "always"`
    "#);
    assert_snapshot!(said(&["--set", "warm"]), @r"
    exit code: 2
    error: invalid value 'warm' for '--set <KEY=VALUE>': it must be a key of xpool.toml's `[pool]` with a value, such as `warm=1` or `idle-timeout=5m`

    For more information, try '--help'.
    ");
    assert_snapshot!(said(&["--start-time", "2h"]), @r"
    exit code: 2
    error: invalid value '2h' for '--start-time <TIME>': it must be from 0s to 1h

    For more information, try '--help'.
    ");
}

#[test]
fn windows_line_ends_do_not_matter() {
    let text = generate::laptop_day();
    let (unix, windows) = (text.as_bytes(), text.replace('\n', "\r\n"));
    let said = simulate_text(unix);
    assert_eq!(said.code, Some(0));
    assert_eq!(simulate_text(windows.as_bytes()).stdout, said.stdout);
}

#[test]
fn a_trace_is_recorded_only_into_one() {
    let installation = Installation::new("[trace]\nfile = \"[DIR]/xpool.toml\"\n");
    assert_snapshot!(all(&installation.run(&["serve"])), @r"
    exit code: 1
    error: `[DIR]/xpool.toml` is no trace, and nothing is written to it
    ");
    let named = installation.path().join("no-such/trace.csv");
    let said = installation.run(&["serve", "--record-trace", named.to_str().unwrap()]);
    assert_snapshot!(all(&said), @r"
    exit code: 1
    error: creating the trace `[DIR]/no-such/trace.csv`: No such file or directory (os error 2)
    ");
}
