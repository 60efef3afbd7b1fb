//! Builds on machines that nobody used before: copies of a guest that was booted once, each for one build.
//! `scripts/test` makes the images and runs it.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command};

use crate::common::nix::{Nix, derivation, sleeper, started, stderr, tooled};
use crate::common::tier::volume;
use crate::common::{Installation, Serving, ended, skip};
use rustix::process::Signal;
use serde_json::Value;

const SYSTEM: &str = "riscv64-linux";

/// One slot, so that Nix does one build after another.
const ONE_SLOT: &str = "[pool]\nmax-vms = 2\nbuild-machines = 1\n";

/// Builds that each tell which guest they ran in. A kernel makes its boot's id when it is first asked for it, which
/// nobody does before a guest is saved.
fn boot_ids(numbers: &str) -> String {
    let script = "read -r id < /proc/sys/kernel/random/boot_id; echo $id $n > $out";
    let one = derivation(SYSTEM, "boot-id", "inherit n;", script);
    format!("map (n: {one}) [ {numbers} ]")
}

/// The id of the guest that one build ran in.
#[track_caller]
fn boot_id(nix: &Nix, number: u32) -> String {
    let results = nix.results(&boot_ids(&number.to_string()));
    results[0].split(' ').next().unwrap().to_owned()
}

fn distinct(results: &[String]) -> usize {
    let ids = results.iter().map(|text| text.split(' ').next().unwrap());
    ids.collect::<BTreeSet<_>>().len()
}

/// Lines of the manager's log that have a text in them.
fn logged(installation: &Installation, text: &str) -> usize {
    let logs = installation.logs();
    logs.lines().filter(|line| line.contains(text)).count()
}

/// What the manager found abnormal.
fn warnings(installation: &Installation) -> Vec<String> {
    let is_bad = |line: &&str| line.contains(" WARN ") || line.contains("ERROR");
    let logs = installation.logs();
    logs.lines().filter(is_bad).map(str::to_owned).collect()
}

/// Files and sockets that a process has open.
fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Processes that one has started and not reaped, those that have ended included.
fn children(pid: u32) -> usize {
    let stat = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("stat")).ok();
    let parent = |stat: String| {
        let (_, fields) = stat.rsplit_once(')')?;
        fields.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let parents = processes.filter_map(stat).filter_map(parent);
    parents.filter(|parent| *parent == pid).count()
}

fn ready(installation: &Installation) -> Vec<Value> {
    let mut vms = installation.list(SYSTEM, "vms");
    vms.retain(|vm| vm["state"] == "ready");
    vms
}

/// As many builds, one after the other, each of them in a guest of its own, and nothing left of any.
fn sessions_in_a_row(count: usize) {
    let (installation, serving) = started(ONE_SLOT);
    let manager = serving.child.id();
    let nix = Nix::new(&installation);
    // The first one may make the template.
    let first = boot_id(&nix, 0);
    let is_quiet = || {
        installation.leftovers().is_empty()
            && installation.list(SYSTEM, "vms").is_empty()
            && children(manager) == 0
    };
    installation.until("the first VM is gone", is_quiet);
    let (files, warned) = (open_files(manager), warnings(&installation).len());
    let before = logged(&installation, "VM ready");

    let numbers: Vec<String> = (1..=count).map(|n| n.to_string()).collect();
    let mut results = nix.results(&boot_ids(&numbers.join(" ")));

    for (number, result) in numbers.iter().zip(&results) {
        assert!(result.ends_with(&format!(" {number}\n")), "{result}");
    }
    results.push(first);
    assert_eq!(distinct(&results), count + 1, "{results:?}");
    assert_eq!(logged(&installation, "VM ready"), before + count);
    assert_eq!(logged(&installation, "session opened"), 1 + count);
    installation.until("nothing is left of the VMs", is_quiet);
    assert_eq!(installation.qemus(), [0; 0]);
    installation.until("the manager has closed its files", || {
        open_files(manager) <= files
    });
    assert_eq!(
        warnings(&installation).split_off(warned),
        [""; 0],
        "{}",
        installation.logs()
    );
    assert!(
        installation.list(SYSTEM, "sessions").is_empty(),
        "a session is left"
    );
}

#[test]
fn many_sessions_in_a_row_have_a_fresh_vm_each_and_none_is_lost() {
    sessions_in_a_row(volume(15, 100));
}

/// Keeps a processor busy until it is dropped, or the test ends in a way in which nothing is dropped.
struct Busy(Child);

impl Busy {
    fn start() -> Self {
        let program = Command::new("sh")
            .args(["-c", "while kill -0 $PPID 2>/dev/null; do :; done"])
            .spawn();
        Self(program.unwrap())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn sessions_in_a_row_lose_nothing_on_a_busy_machine() {
    let processors = std::thread::available_parallelism().unwrap().get();
    let _busy: Vec<Busy> = (0..processors).map(|_| Busy::start()).collect();
    sessions_in_a_row(volume(5, 15));
}

/// MiB of this machine's memory that can be used.
fn available_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() / 1024
}

#[test]
fn eight_clones_serve_at_once_and_take_little_memory() {
    if available_mib() < 8 * 1024 {
        let test = "eight_clones_serve_at_once_and_take_little_memory";
        return skip(test, "less than 8 GiB of memory are available");
    }
    let (installation, _serving) = started("[pool]\nbuild-machines = 8\n");
    let nix = Nix::new(&installation);
    installation.ok(&["up", "riscv64", "--count", "8"]);
    installation.until("all are paused", || {
        ready(&installation)
            .iter()
            .filter(|vm| vm["paused"] == true)
            .count()
            == 8
    });
    for vm in ready(&installation) {
        let mib = vm["memory-mib"].as_u64().unwrap();
        assert!(mib <= 150, "{vm:#}");
    }

    let script = "read -r id < /proc/sys/kernel/random/boot_id; sleep 12; echo $id > $out";
    let one = tooled(SYSTEM, "slow", "inherit n;", script);
    let eight = format!("map (n: {one}) [ 1 2 3 4 5 6 7 8 ]");
    let mut running = nix.start(&eight);
    installation.until("eight VMs build at the same moment", || {
        let sessions = installation.list(SYSTEM, "sessions");
        let building = sessions
            .iter()
            .filter(|session| session["activity"].as_str().unwrap().contains("slow"));
        let vms: BTreeSet<_> = building
            .map(|session| session["vm"].as_str().unwrap_or(""))
            .collect();
        vms.len() == 8
    });
    assert_eq!(ended(&mut running.child), Some(0), "{}", running.log());
    assert_eq!(distinct(&nix.results(&eight)), 8);
}

/// Whether the store of a guest, asked without a build, has a path.
fn guest_has(nix: &Nix, path: &str) -> bool {
    let mut ask = nix.program("nix");
    ask.args([
        "path-info",
        "--store",
        "ssh-ng://riscv64-00@xpool-riscv64",
        path,
    ]);
    let output = ask.output().unwrap();
    let says_no = stderr(&output).contains("is not valid");
    assert!(output.status.success() != says_no, "{}", stderr(&output));
    output.status.success()
}

/// The output of a build that has left what it could, and what the next one finds.
fn left_and_found(nix: &Nix) -> (String, String) {
    let leave = derivation(
        SYSTEM,
        "leaves",
        "",
        "for dir in /nix/store /etc /root /tmp /build /dev/shm; do echo left > $dir/left || true; done; echo kept > $out",
    );
    let output = nix.build(&leave).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let path = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    // The path without its context, or Nix would send it along.
    let look = derivation(
        SYSTEM,
        "looks",
        &format!("path = builtins.unsafeDiscardStringContext (toString ({leave}));"),
        "for file in /*/left /*/*/left $path; do [ ! -e $file ] || echo found $file >> $out; done; echo looked >> $out",
    );
    (path, nix.results(&look).remove(0))
}

#[test]
fn a_build_leaves_nothing_for_the_next_one() {
    let (installation, _serving) = started(ONE_SLOT);
    let nix = Nix::new(&installation);
    let (path, found) = left_and_found(&nix);
    assert_eq!(found, "looked\n");
    assert!(!guest_has(&nix, &path), "a fresh guest has {path}");
}

#[test]
fn a_build_on_a_vm_that_serves_on_finds_the_store_of_the_one_before() {
    let (installation, _serving) =
        started("[pool]\nmax-vms = 1\nbuild-machines = 1\nreuse = \"always\"\n");
    let nix = Nix::new(&installation);
    let (path, found) = left_and_found(&nix);
    assert_eq!(found, "looked\n", "its sandbox hides what it may not see");
    assert!(guest_has(&nix, &path), "the same guest lacks {path}");
}

#[test]
fn clones_that_a_killed_manager_left_are_named_and_ended() {
    let (installation, mut serving) =
        started("[systems.riscv64-linux]\nmin-vms = 2\nmax-vms = 2\n");
    let nix = Nix::new(&installation);
    installation.until("two VMs are ready", || ready(&installation).len() == 2);
    let mut running = nix.start(&sleeper(600));
    installation.until("the build runs", || {
        running.log().contains("the build runs")
    });
    installation.until("the other VM is paused", || {
        ready(&installation)
            .iter()
            .filter(|vm| vm["paused"] == true)
            .count()
            == 1
    });
    let before = installation.qemus();
    assert_eq!(before.len(), 2);
    serving.signal(Signal::KILL);
    serving.ended();
    assert_ne!(ended(&mut running.child), Some(0), "{}", running.log());
    assert_eq!(
        installation.qemus(),
        before,
        "QEMU does not end with its manager"
    );

    let serving = installation.serve();
    assert_eq!(
        logged(&installation, "ending a QEMU that an earlier manager left"),
        2
    );
    assert!(before.iter().all(|pid| !installation.qemus().contains(pid)));
    assert_eq!(nix.results(&boot_ids("1")).len(), 1);
    all_down(&installation, serving);
}

#[track_caller]
fn all_down(installation: &Installation, mut serving: Serving) {
    installation.ok(&["down"]);
    assert_eq!(serving.ended(), Some(0));
    assert!(installation.qemus().is_empty() && installation.leftovers().is_empty());
}

#[test]
fn a_vm_serves_on_where_the_configuration_says_so() {
    for reuse in ["client", "always"] {
        let (installation, serving) = started(&format!("{ONE_SLOT}reuse = \"{reuse}\"\n"));
        let nix = Nix::new(&installation);
        assert_eq!(boot_id(&nix, 1), boot_id(&nix, 2), "{reuse}");
        assert_eq!(logged(&installation, "VM ready"), 1, "{reuse}");
        all_down(&installation, serving);
    }
}

#[test]
fn a_warm_vm_is_there_before_anybody_asks() {
    let (installation, serving) = started(&format!("{ONE_SLOT}warm = 1\n"));
    let nix = Nix::new(&installation);
    let mut used = BTreeSet::new();
    for number in 1..=2 {
        let is_warm = || matches!(&ready(&installation)[..], [vm] if vm["paused"] == true);
        installation.until("an unused VM is ready and paused", is_warm);
        let name = ready(&installation)[0]["name"].clone();
        let mut running = nix.start(&sleeper(3).replace("sleeper", &format!("sleeper-{number}")));
        installation.until("the build is in it", || {
            let sessions = installation.list(SYSTEM, "sessions");
            sessions.iter().any(|session| session["vm"] == name)
        });
        assert_eq!(ended(&mut running.child), Some(0), "{}", running.log());
        assert!(
            !running.log().contains("xpool: "),
            "it was made to wait: {}",
            running.log()
        );
        used.insert(name.to_string());
    }
    assert_eq!(used.len(), 2, "{used:?}");
    all_down(&installation, serving);
}

#[test]
fn all_outputs_arrive_from_a_vm_that_has_one_build_in_its_life() {
    let (installation, _serving) = started(ONE_SLOT);
    let nix = Nix::new(&installation);
    let four = derivation(
        SYSTEM,
        "four",
        r#"outputs = [ "out" "dev" "doc" "man" ];"#,
        "echo $dev > $out; echo dev > $dev; echo doc > $doc; echo man > $man",
    );
    let results = nix.results(&format!("let d = {four}; in [ d.out d.dev d.doc d.man ]"));
    assert!(results[0].ends_with("-four-dev\n"), "{results:?}");
    assert_eq!(results[1..], ["dev\n", "doc\n", "man\n"]);
    assert_eq!(logged(&installation, "VM ready"), 1);
}
