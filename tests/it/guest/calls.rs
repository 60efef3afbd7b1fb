//! How the script is called, and what it has done by other programs: `warm`, `timers`, `shutdown`.

use std::fs;

use super::root::{Guest, Shell, in_each_shell};
use crate::common;

#[test]
fn every_other_way_of_calling_it_is_a_usage_error() {
    let wrong: [&[&str]; 34] = [
        &[],
        &[""],
        &["help"],
        &["session"],
        &["session 2"],
        &["session", ""],
        &["session", "x"],
        &["session", "1x"],
        &["session", "-1"],
        &["session", "../console"],
        &["session", "0", "1"],
        &["join"],
        &["ready", "now"],
        &["thaw"],
        &["thaw", "vm-1", "0"],
        &["ahead"],
        &["ahead", "x"],
        &["join-ahead"],
        &["names", "vm-1"],
        &["identity"],
        &["identity", "vm-1", "vm-2"],
        &["configure", "nix.conf"],
        &["store-mount", "/nix/store"],
        &["store-register", "12"],
        &["warm", "up"],
        &["timers", "2"],
        &["shell"],
        &["shell", "pipes"],
        &["shell", "tty", "24", "80", "vt100"],
        &["shell", "tty", "true"],
        &["shell", "pipes", "24", "80", "vt100", "true"],
        &["shell-ports"],
        &["shell-run", "true"],
        &["shutdown", "now"],
    ];
    in_each_shell("every_other_way_of_calling_it_is_a_usage_error", |shell| {
        let guest = Guest::new(shell);
        for args in wrong {
            let said = guest.run(args);
            assert_eq!(said.code, Some(2), "{args:?}: {}", said.stderr);
            assert_eq!(said.stdout, "", "{args:?}");
            let usage = "usage: xpool-guest session K | ready | ";
            assert!(said.stderr.starts_with(usage), "{args:?}: {}", said.stderr);
        }
        assert!(guest.calls().is_empty(), "{:?}", guest.calls());
    });
}

#[test]
fn the_processors_are_counted_whose_timers_fire() {
    in_each_shell("the_processors_are_counted_whose_timers_fire", |shell| {
        let guest = Guest::new(shell);
        let mut processors = processors();
        let number = processors.len();
        // What is beside them is none of them.
        processors.extend(["cpufreq".to_owned(), "cpuidle".to_owned()]);
        for name in processors {
            let folder = format!("/sys/devices/system/cpu/{name}");
            fs::create_dir_all(guest.path(&folder)).unwrap();
        }
        let said = guest.run(&["timers"]);
        assert_eq!(said.stdout, format!("{number}\n"), "{}", said.stderr);
        assert_eq!(said.code, Some(0));
    });
}

#[test]
fn a_processor_that_nothing_runs_on_is_told() {
    in_each_shell("a_processor_that_nothing_runs_on_is_told", |shell| {
        let guest = Guest::new(shell);
        // Linux has this many, but hardly this machine.
        fs::create_dir_all(guest.path("/sys/devices/system/cpu/cpu62")).unwrap();
        let said = guest.run(&["timers"]);
        assert_eq!(said.code, Some(1));
        let told = "xpool-guest: no timer on cpu62\n";
        assert!(said.stderr.ends_with(told), "{}", said.stderr);
    });
}

/// The first and the last of those that this test may run on.
fn processors() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let mut numbers: Vec<&str> = list.unwrap().trim().split([',', '-']).collect();
    numbers.dedup();
    let ends = [numbers.first(), numbers.last()];
    let mut ends: Vec<String> = ends
        .into_iter()
        .flatten()
        .map(|n| format!("cpu{n}"))
        .collect();
    ends.dedup();
    ends
}

#[test]
fn the_system_is_powered_off_when_all_is_written() {
    in_each_shell("the_system_is_powered_off_when_all_is_written", |shell| {
        let guest = Guest::new(shell);
        let said = guest.run(&["shutdown"]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        common::until("the power is off", String::new, || {
            guest.calls().iter().any(|call| call.trim() == "poweroff")
        });
        // A busybox may have a `sync` of its own, which nobody is told of.
        if shell != Shell::Busybox {
            assert_eq!(guest.calls(), ["sync ", "poweroff "]);
        }
    });
}

#[test]
fn a_guest_is_warm_when_it_has_built_something_and_deleted_it() {
    in_each_shell(
        "a_guest_is_warm_when_it_has_built_something_and_deleted_it",
        |shell| {
            let guest = Guest::new(shell);
            guest.program(
                "nix-build",
                "echo \"HOME=$HOME NIX_REMOTE=$NIX_REMOTE\" >>/calls; echo /nix/store/built",
            );
            let said = guest.run(&["warm"]);
            assert_eq!((said.code, said.stdout.as_str()), (Some(0), ""));
            let calls = guest.calls().join("\n");
            assert!(calls.starts_with("nix-build --no-out-link -E derivation {\n"));
            // Expanded by the builder, not before.
            assert!(calls.contains("\"echo > $out\""), "{calls}");
            let then = "HOME=/root NIX_REMOTE=daemon\nnix-store --delete /nix/store/built";
            assert!(calls.contains(then), "{calls}");
        },
    );
}

#[test]
fn a_guest_in_which_nothing_builds_is_not_warm() {
    in_each_shell("a_guest_in_which_nothing_builds_is_not_warm", |shell| {
        let guest = Guest::new(shell);
        for (program, why) in [
            ("nix-store", "the trivial build's output stays"),
            ("nix-build", "a trivial build failed"),
        ] {
            guest.program(program, "exit 100");
            let said = guest.run(&["warm"]);
            assert_eq!(said.code, Some(1));
            assert_eq!(said.stderr, format!("xpool-guest: {why}\n"));
        }
    });
}

#[test]
fn what_the_host_gives_is_in_what_nix_conf_includes() {
    in_each_shell(
        "what_the_host_gives_is_in_what_nix_conf_includes",
        |shell| {
            let guest = Guest::new(shell);
            guest.program("modprobe", "exit 1");
            assert_eq!(guest.run(&["configure"]).code, Some(0));
            assert!(!guest.path("/run/xpool/nix.conf").exists());
            let file = "/sys/firmware/qemu_fw_cfg/by_name/opt/org.xpool/nix.conf/raw";
            fs::create_dir_all(guest.path(file).parent().unwrap()).unwrap();
            guest.write(file, "extra-platforms = armv7l-linux\n");
            let said = guest.run(&["configure"]);
            assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
            let conf = guest.read("/run/xpool/nix.conf");
            assert_eq!(conf, "extra-platforms = armv7l-linux\n");
        },
    );
}
