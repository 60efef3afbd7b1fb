//! Real Nix clients, through the real gateway, building on real VMs. `scripts/test` makes the images and runs it.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::common::nix::{Nix, derivation, sleeper, started, stderr, tooled};
use crate::common::{ended, now, pid_of, signal};
use rustix::process::{Signal, kill_process_group};

/// Where it makes no difference which: other files have riscv64 do the same.
const SYSTEM: &str = "aarch64-linux";

#[test]
fn aarch64_builds_a_derivation_with_inputs_and_two_outputs() {
    let (installation, _serving) = started("[pool]\nmax-vms = 1\n");
    let nix = Nix::new(&installation);
    fs::create_dir(installation.path().join("tree")).unwrap();
    fs::write(
        installation.path().join("tree/file with spaces"),
        "from a tree",
    )
    .unwrap();
    let tree = format!("tree = {}/tree;", installation.path().display());
    let first = derivation(
        SYSTEM,
        "first",
        &tree,
        r#"read -r text < "$tree/file with spaces"; echo "$text" > $out"#,
    );
    let extra = format!(r#"outputs = [ "out" "dev" ]; first = {first};"#);
    let second = derivation(
        SYSTEM,
        "second",
        &extra,
        r#"read -r text < $first
            read -r machine < /proc/sys/kernel/arch; read -r kernel < /proc/sys/kernel/osrelease
            echo "$text, on $machine, $kernel" > $out; echo "$out" > $dev"#,
    );
    let both = format!("let d = {second}; in [ d.out d.dev ]");
    let results = nix.results(&both);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(
        results[0].starts_with("from a tree, on aarch64, "),
        "{results:?}"
    );
    assert!(
        !results[0].contains(kernel.trim()),
        "built on this machine: {results:?}"
    );
    // The second output holds a reference to the first.
    assert!(
        results[1].starts_with("/nix/store/") && results[1].trim().ends_with("-second"),
        "{results:?}"
    );
}

#[test]
fn aarch64_failing_derivation_shows_its_log_and_exits_as_with_any_remote_builder() {
    let (installation, _serving) = started("[pool]\nmax-vms = 1\n");
    let nix = Nix::new(&installation);
    let failing = |system: &str| {
        derivation(
            system,
            "failing",
            "",
            "echo this is the last line of the log; exit 3",
        )
    };
    let ours = nix.build(&failing(SYSTEM)).output().unwrap();
    let own = format!("{}-linux", std::env::consts::ARCH);
    let local = nix.build(&failing(&own)).output().unwrap();
    // Nix's own remote builder: no ssh, no xpool, a second store on this machine.
    let second_store = installation.path().join("second");
    let builder = format!(
        "ssh-ng://localhost?remote-store={} {own}",
        second_store.display()
    );
    let remote = nix
        .build(&failing(&own))
        .args(["-j0", "--builders", &builder])
        .output()
        .unwrap();
    for output in [&ours, &local, &remote] {
        assert!(
            stderr(output).contains("this is the last line of the log"),
            "{}",
            stderr(output)
        );
    }
    // Nix 2.8's hook ends with 1 whatever happened on a remote builder, where a local build gives 100.
    assert_eq!(
        ours.status.code(),
        remote.status.code(),
        "{}\n{}",
        stderr(&ours),
        stderr(&remote)
    );
    assert_eq!(
        (ours.status.success(), local.status.success()),
        (false, false)
    );
    installation.until("the slot is free again", || {
        installation.list(SYSTEM, "sessions").is_empty()
    });
}

#[test]
fn eight_builds_at_once_share_two_vms() {
    let (installation, _serving) = started("[pool]\nmax-vms = 2\nbuild-machines = 8\n");
    let nix = Nix::new(&installation);
    let one = tooled(
        "riscv64-linux",
        "one",
        "inherit n;",
        "sleep 1; echo number $n > $out",
    );
    let eight = format!("map (n: {one}) [ 1 2 3 4 5 6 7 8 ]");
    let mut running = nix.start(&eight);
    let (mut most_vms, mut most_sessions) = (0, 0);
    let mut waited = false;
    while running.child.try_wait().unwrap().is_none() {
        let sessions = installation.list("riscv64-linux", "sessions");
        most_vms = most_vms.max(installation.list("riscv64-linux", "vms").len());
        most_sessions = most_sessions.max(sessions.len());
        waited |= sessions.iter().any(|session| session["vm"].is_null());
    }
    assert_eq!(ended(&mut running.child), Some(0), "{}", running.log());
    assert_eq!(most_vms, 2);
    assert!(
        waited && most_sessions == 8,
        "the queue was not seen: {most_sessions} sessions at the most"
    );
    let mut results = nix.results(&eight);
    results.sort();
    let expected: Vec<String> = (1..=8).map(|n| format!("number {n}\n")).collect();
    assert_eq!(results, expected);
    assert!(
        running.log().contains("xpool: "),
        "waiting was not shown: {}",
        running.log()
    );
}

/// Seconds of processor time that a process has used.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    // Linux counts 100 ticks a second for user space, on every architecture.
    ticks / 100.0
}

#[test]
fn a_client_that_is_killed_ends_the_build_in_the_guest_and_frees_the_slot() {
    // A guest that serves on and is not paused has to come to rest by itself.
    let config = "[pool]\nmax-vms = 1\nreuse = \"always\"\npause = false\n";
    let (installation, _serving) = started(config);
    let nix = Nix::new(&installation);
    let busy = derivation(
        "riscv64-linux",
        "busy",
        "",
        "echo the build runs; while :; do :; done",
    );
    let mut running = nix.start(&busy);
    installation.until("the build runs", || {
        running.log().contains("the build runs")
    });
    let qemu = installation.qemus()[0];
    kill_group(&mut running.child);
    installation.until("the slot is free", || {
        installation.list("riscv64-linux", "sessions").is_empty()
    });
    // The loop would use all of a vCPU: the guest has to come to rest.
    installation.until("the guest is idle", || {
        let (from, before) = (now(), cpu_seconds(qemu));
        while from.elapsed() < Duration::from_secs(1) {
            installation.status();
        }
        (cpu_seconds(qemu) - before) / from.elapsed().as_secs_f64() < 0.3
    });
    let hello = derivation("riscv64-linux", "hello", "", "echo hello > $out");
    assert_eq!(nix.results(&hello), ["hello\n"]);
    assert_eq!(installation.qemus(), [qemu], "the same VM serves on");
}

/// Kills a client with its hook and its ssh, as a closed terminal or a crash does.
fn kill_group(client: &mut Child) {
    // Nix's hook is in a process group of its own and notices by its pipes.
    kill_process_group(pid_of(client.id()), Signal::KILL).unwrap();
    client.wait().unwrap();
}

#[test]
fn aarch64_a_qemu_that_is_killed_in_the_middle_of_a_build_is_named_to_the_client() {
    let (installation, _serving) = started("[pool]\nmax-vms = 1\n");
    let nix = Nix::new(&installation);
    let sleeper = sleeper(600).replace("riscv64-linux", SYSTEM);
    let mut running = nix.start(&sleeper);
    installation.until("the build runs", || {
        running.log().contains("the build runs")
    });
    let killed = now();
    signal(installation.qemus()[0], Signal::KILL);
    let code = ended(&mut running.child);
    let took = killed.elapsed();
    let log = running.log();
    assert_ne!(code, Some(0), "{log}");
    assert!(
        log.contains("aarch64-1") && log.contains("killed by signal 9"),
        "{log}"
    );
    assert!(
        took < Duration::from_secs(2),
        "the client heard of it after {took:?}"
    );
    installation.until("the VM is gone", || installation.leftovers().is_empty());
}

#[test]
fn down_lets_a_running_build_end_first() {
    let (installation, mut serving) = started("[pool]\nmax-vms = 1\n");
    let nix = Nix::new(&installation);
    let mut running = nix.start(&sleeper(5));
    installation.until("the build runs", || {
        running.log().contains("the build runs")
    });
    let said = installation.run(&["down"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stderr.contains("waiting for 1 build"),
        "{}",
        said.stderr
    );
    assert_eq!(ended(&mut running.child), Some(0), "{}", running.log());
    assert_eq!(serving.ended(), Some(0));
    assert!(installation.qemus().is_empty() && installation.leftovers().is_empty());
}

#[test]
fn a_second_signal_to_down_does_not_wait_for_the_build() {
    let (installation, mut serving) = started("[pool]\nmax-vms = 1\n");
    let nix = Nix::new(&installation);
    let mut running = nix.start(&sleeper(600));
    installation.until("the build runs", || {
        running.log().contains("the build runs")
    });
    let mut down = installation
        .command(&["down"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    installation.until("the pool drains", || {
        installation
            .list("riscv64-linux", "vms")
            .iter()
            .any(|vm| vm["state"] == "draining")
    });
    signal(down.id(), Signal::INT);
    assert_eq!(ended(&mut down), Some(0));
    assert_ne!(ended(&mut running.child), Some(0), "{}", running.log());
    assert!(running.log().contains("riscv64-1"), "{}", running.log());
    assert_eq!(serving.ended(), Some(0));
    assert!(installation.qemus().is_empty() && installation.leftovers().is_empty());
}

#[test]
fn a_second_signal_to_the_manager_does_not_wait_for_the_build() {
    let (installation, mut serving) = started("[pool]\nmax-vms = 1\n");
    let nix = Nix::new(&installation);
    let mut running = nix.start(&sleeper(600));
    installation.until("the build runs", || {
        running.log().contains("the build runs")
    });
    serving.signal(Signal::TERM);
    installation.until("the pool drains", || {
        installation
            .list("riscv64-linux", "vms")
            .iter()
            .any(|vm| vm["state"] == "draining")
    });
    serving.signal(Signal::TERM);
    assert_eq!(serving.ended(), Some(0));
    assert_ne!(ended(&mut running.child), Some(0), "{}", running.log());
    assert!(installation.qemus().is_empty() && installation.leftovers().is_empty());
}

/// What people say to their ssh for all hosts, and never mean for a build machine.
const OF_ALL_HOSTS: &str = "Host *
  ControlMaster auto
  ControlPath [DIR]/%C
  ControlPersist 10m
  ForwardAgent yes
  LocalForward 1 localhost:1
  PermitLocalCommand yes
  LocalCommand echo a local command
  ProxyJump nowhere.invalid
  RemoteCommand true
  RequestTTY force
";

#[test]
fn what_a_persons_ssh_does_for_all_hosts_is_not_done_for_the_gateway() {
    let (installation, _serving) = started("[pool]\nmax-vms = 2\n");
    let mut nix = Nix::new(&installation);
    let dir = installation.path();
    let ours = fs::read_to_string(&nix.ssh_config).unwrap();
    let theirs = OF_ALL_HOSTS.replace("[DIR]", dir.to_str().unwrap());
    nix.ssh_config = dir.join("both");
    fs::write(&nix.ssh_config, ours + &theirs).unwrap();
    let one = derivation("riscv64-linux", "one", "inherit n;", "echo $n > $out");
    for n in ["1", "2"] {
        let two = format!("map (n: {one}) [ \"{n}a\" \"{n}b\" ]");
        assert_eq!(nix.results(&two), [format!("{n}a\n"), format!("{n}b\n")]);
    }
}
