//! Builds that say much, nothing, or give much, and many at once, with each version of Nix and by each way to the pool.
//! `scripts/test` makes the images and the clients and runs it.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::time::Duration;

use crate::common::matrix::{Client, Clients, SYSTEM, clients, each, installed};
use crate::common::nix::{Transport, derivation, stderr, tooled};
use crate::common::tier::volume;
use crate::common::{ended, now};
use sha2::{Digest as _, Sha256};

/// A number of kB out of what the kernel says of a process.
fn kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let text = line.unwrap().trim_start_matches(':').trim();
    text.strip_suffix(" kB").unwrap().parse().unwrap()
}

const LOG_LINE: usize = 3_999;

/// 16 MB of log, twice what the manager may need more for it, or 100 MB.
fn log_lines() -> usize {
    volume(4_000, 25_000)
}

/// The log, and a last line.
fn says_much(client: &Client<'_>) {
    let lines = log_lines();
    let script = format!(
        "line=$(head -c {LOG_LINE} /dev/zero | tr '\\0' x)
        yes $line | head -n {lines}
        echo that was all; echo done > $out"
    );
    let says_much = tooled(SYSTEM, "says-much", "", &script);
    let output = client.nix.build(&says_much).output().unwrap();
    assert!(
        output.status.success(),
        "{}: {:?}",
        client.name,
        output.status
    );
    let log = stderr(&output);
    let line = "x".repeat(LOG_LINE);
    let n_lines = log.lines().filter(|text| text.ends_with(&line)).count();
    let installation = client.nix.installation;
    let what = format!("each line of {}'s build has come", client.name);
    installation.until(&what, || {
        let status = installation.status();
        let build = status["builds"].as_array().unwrap().last();
        build.is_some_and(|build| build["n-lines"] == lines + 1)
    });
    match client.transport {
        Transport::Local => {
            assert_eq!(n_lines, lines, "{}", client.name);
            assert!(log.contains("that was all"));
        }
        // OpenSSH makes its standard error non-blocking, which is that of Nix's hook as well, and Nix drops what finds no room:
        // on a busy machine a seventh of a log. So it is with every builder behind ssh. All of it came as far as the gateway.
        Transport::Ssh => {
            assert!(n_lines > lines / 2, "{}: {n_lines}", client.name);
        }
    }
}

/// By one way to the pool: with 100 MB, all six clients in one test would take ten minutes, and longer on a busy machine.
fn a_long_log_reaches_clients_by(test: &str, transport: Transport) {
    const CLIENTS: Clients = Clients::Some;
    let Some((installation, serving)) = installed(test, CLIENTS, 1, "max-vms = 1\n") else {
        return;
    };
    let mut clients = clients(&installation, CLIENTS);
    clients.retain(|client| client.transport == transport);
    assert!(!clients.is_empty());
    let manager = serving.child.id();
    let small = derivation(SYSTEM, "small", "", "echo a line; echo small > $out");
    each(&clients, |client| {
        assert_eq!(client.built(&small), ["small\n"]);
    });
    // The most that it has had is what it has now (proc(5)).
    fs::write(format!("/proc/{manager}/clear_refs"), "5").unwrap();
    let before = kib(manager, "VmHWM");
    // One after another: a guest that says much on a machine with too few processors mostly waits for itself.
    for client in &clients {
        says_much(client);
    }
    let after = kib(manager, "VmHWM");
    assert!(
        after < before + 8 * 1024,
        "the manager had {before} KiB, and then {after}"
    );
}

#[test]
fn a_long_log_reaches_clients_by_ssh_and_fills_no_memory() {
    let test = "a_long_log_reaches_clients_by_ssh_and_fills_no_memory";
    a_long_log_reaches_clients_by(test, Transport::Ssh);
}

#[test]
fn a_long_log_reaches_clients_by_the_local_transport_and_fills_no_memory() {
    let test = "a_long_log_reaches_clients_by_the_local_transport_and_fills_no_memory";
    a_long_log_reaches_clients_by(test, Transport::Local);
}

/// Megabytes, each of which is another one.
fn blocks() -> usize {
    volume(24, 200)
}

/// The numbers of so many digits that they and their line ends are a megabyte with the block's number.
fn block() -> String {
    let mut text = String::new();
    for number in 100_000..242_856 {
        writeln!(text, "{number}").unwrap();
    }
    text
}

/// What the builder below makes, as a digest.
fn expected_digest() -> Vec<u8> {
    let block = block();
    let mut digest = Sha256::new();
    for number in 1..=blocks() {
        digest.update(format!("{number:07}\n"));
        digest.update(&block);
    }
    digest.finalize().to_vec()
}

fn gives_much(client: &Client<'_>) {
    let blocks = blocks();
    let script = format!(
        r"seq 100000 242855 > block
        n=0
        while [ $n -lt {blocks} ]; do n=$((n + 1)); printf '%07d\n' $n; cat block; done > $out"
    );
    let (path, _) = client.ok(&mut client.nix.build(&tooled(SYSTEM, "gives-much", "", &script)));
    let file = fs::File::open(client.on_host(path.trim())).unwrap();
    assert_eq!(file.metadata().unwrap().len(), blocks as u64 * 1_000_000);
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut digest = Sha256::new();
    loop {
        let bytes = reader.fill_buf().unwrap();
        if bytes.is_empty() {
            break;
        }
        digest.update(bytes);
        let read = bytes.len();
        reader.consume(read);
    }
    assert_eq!(digest.finalize().to_vec(), expected_digest());
}

#[test]
fn a_large_output_reaches_clients_as_it_was_made() {
    const CLIENTS: Clients = Clients::Others;
    let test = "a_large_output_reaches_clients_as_it_was_made";
    let pool = format!("max-vms = {}\n", CLIENTS.kinds().len());
    let Some((installation, _serving)) = installed(test, CLIENTS, 1, &pool) else {
        return;
    };
    each(&clients(&installation, CLIENTS), gives_much);
}

/// Derivations that each need six of the ones before them, of which there are thrice as many and three.
fn middles() -> usize {
    volume(2, 9)
}

fn leaves() -> usize {
    3 * middles() + 3
}

/// The leaves, the middles, and one that needs all middles: twelve derivations, or forty.
fn many() -> String {
    let (leaves, middles) = (leaves(), middles());
    let leaf = derivation(SYSTEM, "leaf", "inherit n;", "echo $n > $out");
    let middle = tooled(SYSTEM, "middle", "inherit needed;", "cat $needed > $out");
    let top = tooled(
        SYSTEM,
        "top",
        "inherit middles;",
        "cat $middles | sort -n | uniq > $out",
    );
    format!(
        "let leaf = n: {leaf};
            leaves = builtins.genList leaf {leaves};
            middle = needed: {middle};
            middles = builtins.genList
                (m: middle (builtins.genList (i: builtins.elemAt leaves (m * 3 + i)) 6)) {middles};
        in {top}"
    )
}

fn builds_many(client: &Client<'_>) {
    let (path, log) = client.ok(client.nix.build(&many()).arg("-j0"));
    let numbers: String = (0..leaves()).fold(String::new(), |text, n| format!("{text}{n}\n"));
    let made = fs::read_to_string(client.on_host(path.trim())).unwrap();
    assert_eq!(made, numbers);
    let is_start = |line: &&str| line.starts_with("building '") && line.contains(" on 'ssh-ng:");
    let count = leaves() + middles() + 1;
    assert_eq!(log.lines().filter(is_start).count(), count, "{log}");
}

/// Longer than anything that might take a silent session for a dead one.
const SILENCE: Duration = Duration::from_secs(90);

#[test]
fn builds_that_say_nothing_for_long_end_well_beside_many_at_once() {
    const CLIENTS: Clients = Clients::Others;
    let test = "builds_that_say_nothing_for_long_end_well_beside_many_at_once";
    // One for each silence, and two for all the others, which serve on: what a fresh one costs is looked at elsewhere.
    let pool = format!(
        "max-vms = {}\nreuse = \"always\"\n",
        CLIENTS.kinds().len() + 2
    );
    let Some((installation, _serving)) = installed(test, CLIENTS, 6, &pool) else {
        return;
    };
    let clients = clients(&installation, CLIENTS);
    let script = format!(
        "echo from now on silent; sleep {}; echo silent > $out",
        SILENCE.as_secs()
    );
    let silent = tooled(SYSTEM, "silent", "", &script);
    let running = each(&clients, |client| {
        let running = client.start("silent", &silent);
        let name = &client.name;
        installation.until(&format!("the silent build of {name} runs"), || {
            running.log().contains("from now on silent")
        });
        (running, now())
    });
    each(&clients, builds_many);
    for (client, (mut running, since)) in clients.iter().zip(running) {
        let code = ended(&mut running.child);
        assert_eq!(code, Some(0), "{}: {}", client.name, running.log());
        // Its last word took a moment to be seen.
        assert!(since.elapsed() + Duration::from_secs(5) >= SILENCE);
        assert_eq!(client.built(&silent), ["silent\n"]);
    }
}
