//! Builds that say much, nothing, or give much, and many at once, with each version of Nix and by each way to the pool.
//! `scripts/test` makes the images and the clients and runs it.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::time::Duration;

use crate::common::matrix::{CLIENTS, Client, SYSTEM, clients, each, installed};
use crate::common::nix::{Transport, derivation, stderr};
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
const LOG_LINES: usize = 25_000;

/// 100 MB of log, and a last line.
fn says_100_mb(client: &Client<'_>) {
    let script = format!(
        "line=$(head -c {LOG_LINE} /dev/zero | tr '\\0' x)
        yes $line | head -n {LOG_LINES}
        echo that was all; echo done > $out"
    );
    let says_much = derivation(SYSTEM, "says-much", "", &script);
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
    match client.transport {
        Transport::Local => {
            assert_eq!(n_lines, LOG_LINES, "{}", client.name);
            assert!(log.contains("that was all"));
        }
        // OpenSSH lets nobody wait who writes to its standard error, which is that of Nix's hook as well, and Nix does not
        // write again what found no room. So it is with every builder that is reached by ssh.
        Transport::Ssh => {
            assert!(n_lines > LOG_LINES * 9 / 10, "{}: {n_lines}", client.name);
        }
    }
}

/// By one way to the pool: all six clients in one test would take ten minutes, and longer on a busy machine.
fn hundred_megabytes_reach_every_client_by(test: &str, transport: Transport) {
    let Some((installation, serving)) = installed(test, 1, "max-vms = 1\n") else {
        return;
    };
    let mut clients = clients(&installation);
    clients.retain(|client| client.transport == transport);
    assert_eq!(clients.len(), CLIENTS / 2);
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
        says_100_mb(client);
    }
    let after = kib(manager, "VmHWM");
    assert!(
        after < before + 8 * 1024,
        "the manager had {before} KiB, and then {after}"
    );
}

#[test]
fn a_hundred_megabytes_of_log_reach_every_client_by_ssh_and_fill_no_memory() {
    let test = "a_hundred_megabytes_of_log_reach_every_client_by_ssh_and_fill_no_memory";
    hundred_megabytes_reach_every_client_by(test, Transport::Ssh);
}

#[test]
fn a_hundred_megabytes_of_log_reach_every_client_by_the_local_transport_and_fill_no_memory() {
    let test =
        "a_hundred_megabytes_of_log_reach_every_client_by_the_local_transport_and_fill_no_memory";
    hundred_megabytes_reach_every_client_by(test, Transport::Local);
}

const BLOCKS: usize = 200;

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
    for number in 1..=BLOCKS {
        digest.update(format!("{number:07}\n"));
        digest.update(&block);
    }
    digest.finalize().to_vec()
}

/// 200 MB, of which each is another one.
fn gives_200_mb(client: &Client<'_>) {
    let script = format!(
        r"seq 100000 242855 > block
        n=0
        while [ $n -lt {BLOCKS} ]; do n=$((n + 1)); printf '%07d\n' $n; cat block; done > $out"
    );
    let (path, _) =
        client.ok(&mut client
            .nix
            .build(&derivation(SYSTEM, "gives-much", "", &script)));
    let file = fs::File::open(client.on_host(path.trim())).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 200_000_000);
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
fn an_output_of_200_megabytes_reaches_every_client_as_it_was_made() {
    let test = "an_output_of_200_megabytes_reaches_every_client_as_it_was_made";
    let pool = format!("max-vms = {CLIENTS}\n");
    let Some((installation, _serving)) = installed(test, 1, &pool) else {
        return;
    };
    each(&clients(&installation), gives_200_mb);
}

/// Forty derivations: thirty, nine that each need a part of them, and one that needs all nine.
fn forty() -> String {
    let leaf = derivation(SYSTEM, "leaf", "inherit n;", "echo $n > $out");
    let middle = derivation(SYSTEM, "middle", "inherit needed;", "cat $needed > $out");
    let top = derivation(
        SYSTEM,
        "top",
        "inherit middles;",
        "cat $middles | sort -n | uniq > $out",
    );
    format!(
        "let leaf = n: {leaf};
            leaves = builtins.genList leaf 30;
            middle = needed: {middle};
            middles = builtins.genList
                (m: middle (builtins.genList (i: builtins.elemAt leaves (m * 3 + i)) 6)) 9;
        in {top}"
    )
}

fn builds_forty(client: &Client<'_>) {
    let (path, log) = client.ok(client.nix.build(&forty()).arg("-j0"));
    let numbers: String = (0..30).fold(String::new(), |text, n| format!("{text}{n}\n"));
    let made = fs::read_to_string(client.on_host(path.trim())).unwrap();
    assert_eq!(made, numbers);
    let is_start = |line: &&str| line.starts_with("building '") && line.contains(" on 'ssh-ng:");
    assert_eq!(log.lines().filter(is_start).count(), 40, "{log}");
}

const SILENCE: Duration = Duration::from_secs(90);

#[test]
fn builds_that_say_nothing_for_90_seconds_end_well_beside_forty_at_once_of_every_client() {
    let test =
        "builds_that_say_nothing_for_90_seconds_end_well_beside_forty_at_once_of_every_client";
    // One for each silence, and two for all the others, which serve on: what a fresh one costs is looked at elsewhere.
    let pool = format!("max-vms = {}\nreuse = \"always\"\n", CLIENTS + 2);
    let Some((installation, _serving)) = installed(test, 6, &pool) else {
        return;
    };
    let clients = clients(&installation);
    let script = format!(
        "echo from now on silent; sleep {}; echo silent > $out",
        SILENCE.as_secs()
    );
    let silent = derivation(SYSTEM, "silent", "", &script);
    let running = each(&clients, |client| {
        let running = client.start("silent", &silent);
        let name = &client.name;
        installation.until(&format!("the silent build of {name} runs"), || {
            running.log().contains("from now on silent")
        });
        (running, now())
    });
    each(&clients, builds_forty);
    for (client, (mut running, since)) in clients.iter().zip(running) {
        let code = ended(&mut running.child);
        assert_eq!(code, Some(0), "{}: {}", client.name, running.log());
        // Its last word took a moment to be seen.
        assert!(since.elapsed() + Duration::from_secs(5) >= SILENCE);
        assert_eq!(client.built(&silent), ["silent\n"]);
    }
}
