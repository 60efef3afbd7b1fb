//! What every Nix client does day by day, with each version of Nix and by each way to the pool. `scripts/test` makes the
//! images and the clients and runs it.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::thread;

use crate::common::matrix::{Client, Clients, SYSTEM, clients, each, installed};
use crate::common::nix::{MACHINE, Nix, Transport, Version, derivation, started, tooled};
use crate::common::{Installation, namespace, skip};

/// Few, so that clients wait for each other's builds as well.
const TWO_VMS: &str = "max-vms = 2\n";

/// `nix (Nix) 2.26.3`, or with another word in the brackets: 2, 26.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().rsplit(' ').next()?.split('.');
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?))
}

#[test]
fn the_clients_are_of_the_versions_that_they_are_said_to_be() {
    let test = "the_clients_are_of_the_versions_that_they_are_said_to_be";
    if namespace::skipped(test) {
        return;
    }
    let installation = Installation::new("");
    let versions = [Version::Own, Version::Newer, Version::Newest];
    let [own, newer, newest] = versions.map(|version| {
        let nix = Nix::of(version, &installation);
        let output = nix.program("nix").arg("--version").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    });
    assert_eq!(version(&newer), Some((2, 26)), "{newer}");
    assert!(version(&newest) >= Some((2, 34)), "{newest}");
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if release.contains("VERSION_CODENAME=bookworm") && own.contains("(Nix)") {
        assert_eq!(version(&own), Some((2, 8)), "{own}");
    } else {
        let own = own.trim();
        skip(
            test,
            &format!("this machine has {own}, where Debian 12 has 2.8"),
        );
    }
}

#[test]
fn asking_whether_the_store_is_there_starts_no_vm() {
    const CLIENTS: Clients = Clients::Every;
    let test = "asking_whether_the_store_is_there_starts_no_vm";
    let Some((installation, _serving)) = installed(test, CLIENTS, 1, TWO_VMS) else {
        return;
    };
    let clients = clients(&installation, CLIENTS);
    each(&clients, |client| {
        let ask = |command| {
            let mut nix = client.nix.program("nix");
            client.ok(nix.args(["store", command, "--store", client.uri()]))
        };
        let (stdout, stderr) = ask("ping");
        assert!((stdout + &stderr).contains("ssh-ng://"));
        if client.version != Version::Own {
            ask("info");
        }
    });
    installation.until("no session is left", || {
        installation.list(SYSTEM, "sessions").is_empty()
    });
    assert!(installation.list(SYSTEM, "vms").is_empty());
    let logs = installation.logs();
    assert!(!logs.contains("VM ready"), "{logs}");
}

/// A derivation with a file and a folder as inputs, one that it needs, and three outputs that refer to each other.
fn with_inputs_and_three_outputs(client: &Client<'_>) {
    let tree = client.file("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file with spaces"), "from a tree\n").unwrap();
    let extra = format!(
        r#"tree = {}; file = builtins.toFile "file" "from a file\n";"#,
        tree.display()
    );
    let script = r#"cat "$tree/file with spaces" $file > $out"#;
    let first = tooled(SYSTEM, "first", &extra, script);
    let extra = format!(r#"outputs = [ "out" "dev" "doc" ]; first = {first};"#);
    let script = r#"cat $first > $out
        mkdir -p $dev/deep; echo "$out" > $dev/deep/refers
        echo "$dev" > $doc"#;
    let second = tooled(SYSTEM, "second", &extra, script);
    let (paths, _) = client.ok(&mut client
        .nix
        .build(&format!("let d = {second}; in [ d.out d.dev d.doc ]")));
    let paths: Vec<&str> = paths.lines().collect();
    let [out, dev, doc] = paths[..] else {
        panic!("{}: {paths:?}", client.name)
    };
    let read = |path: &str| fs::read_to_string(client.on_host(path)).unwrap();
    assert_eq!(read(out), "from a tree\nfrom a file\n");
    assert_eq!(read(&format!("{dev}/deep/refers")), format!("{out}\n"));
    assert_eq!(read(doc), format!("{dev}\n"));
}

#[test]
fn every_client_builds_with_inputs_and_three_outputs_and_without_any() {
    const CLIENTS: Clients = Clients::Every;
    let test = "every_client_builds_with_inputs_and_three_outputs_and_without_any";
    let Some((installation, _serving)) = installed(test, CLIENTS, 2, TWO_VMS) else {
        return;
    };
    each(&clients(&installation, CLIENTS), |client| {
        let trivial = derivation(SYSTEM, "trivial", "", MACHINE);
        assert_eq!(client.built(&trivial), ["riscv64\n"]);
        with_inputs_and_three_outputs(client);
    });
}

const LAST_LINE: &str = "this is the last line of the log";

/// Nix's own remote builder on this machine: no ssh, no xpool, a store beside the client's. Also the system that it is for.
fn own_builder(client: &Client<'_>) -> (String, String) {
    let system = format!("{}-linux", std::env::consts::ARCH);
    let store = client.file("second");
    let uri = format!("ssh-ng://localhost?remote-store={}", store.display());
    (format!("{uri} {system}"), system)
}

fn fails_as_with_nix_alone(client: &Client<'_>) {
    let script = format!("echo first; echo {LAST_LINE}; exit 3");
    let failing = |system: &str| derivation(system, "failing", "", &script);
    let (code, log) = client.fails(&mut client.nix.build(&failing(SYSTEM)));
    let (builder, system) = own_builder(client);
    let mut alone = client.nix.build_on(&builder, &failing(&system));
    let (code_alone, log_alone) = client.fails(alone.arg("-j0"));
    for log in [&log, &log_alone] {
        let n_shown = log.lines().filter(|line| line.contains(LAST_LINE)).count();
        assert!(n_shown >= 2, "as it came, and in the error: {log}");
        assert!(log.contains("failed with exit code 3"), "{log}");
    }
    assert_eq!(code, code_alone, "{}: {log}\n{log_alone}", client.name);
}

/// Two that fail, one that needs one of them, and three that do not.
fn keeps_going(client: &Client<'_>) {
    let good = derivation(SYSTEM, "good", "inherit n;", "echo good $n > $out");
    let bad = derivation(
        SYSTEM,
        "bad",
        "inherit n;",
        "echo number $n is bad; exit $n",
    );
    let needs = tooled(SYSTEM, "needs", "inherit first;", "cp $first $out");
    let all = format!(
        "let good = n: {good}; bad = n: {bad}; needs = first: {needs};
         in [ (bad 4) (good 1) (needs (bad 4)) (good 2) (bad 5) (needs (good 3)) ]"
    );
    let (_, log) = client.fails(client.nix.build(&all).arg("--keep-going"));
    for n in [4, 5] {
        assert!(log.contains(&format!("number {n} is bad")), "{log}");
        assert!(log.contains(&format!("failed with exit code {n}")), "{log}");
    }
    // What went well is there, and needs no builder any more.
    let gone_well = format!(
        "let good = n: {good}; needs = first: {needs}; in [ (good 1) (good 2) (needs (good 3)) ]"
    );
    let mut again = client.nix.build_on("", &gone_well);
    let (paths, _) = client.ok(again.arg("-j0"));
    let read = |path: &str| fs::read_to_string(client.on_host(path)).unwrap();
    let results: Vec<String> = paths.lines().map(read).collect();
    assert_eq!(results, ["good 1\n", "good 2\n", "good 3\n"]);
}

#[test]
fn every_client_hears_of_a_failed_build_as_with_nix_alone() {
    const CLIENTS: Clients = Clients::Every;
    let test = "every_client_hears_of_a_failed_build_as_with_nix_alone";
    let Some((installation, _serving)) = installed(test, CLIENTS, 1, TWO_VMS) else {
        return;
    };
    each(&clients(&installation, CLIENTS), fails_as_with_nix_alone);
    installation.until("no session is left", || {
        installation.list(SYSTEM, "sessions").is_empty()
    });
}

#[test]
fn a_client_keeps_going_after_a_failed_build_if_it_shall() {
    const CLIENTS: Clients = Clients::Others;
    let test = "a_client_keeps_going_after_a_failed_build_if_it_shall";
    let Some((installation, _serving)) = installed(test, CLIENTS, 3, TWO_VMS) else {
        return;
    };
    each(&clients(&installation, CLIENTS), keeps_going);
    installation.until("no session is left", || {
        installation.list(SYSTEM, "sessions").is_empty()
    });
}

/// What a fixed-output derivation makes, and its SHA-256.
const KNOWN: (&str, &str) = (
    "this content is known before it is made\n",
    "c42a9121a7f0ea5238131f8115d2e295e6b64347752af3079d5391c3bbc03bcd",
);

fn fixed_output(name: &str, script: &str) -> String {
    let extra = format!(
        r#"outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "{}";"#,
        KNOWN.1
    );
    tooled(SYSTEM, name, &extra, script)
}

/// A web server on this machine's loopback that serves the known content to one after another; its port. It ends with the
/// test's process.
fn serves_known() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let lines = BufReader::new(client.try_clone().unwrap()).lines();
            let _request = lines.map_while(Result::ok).find(String::is_empty);
            let head = format!(
                "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n",
                KNOWN.0.len()
            );
            client.write_all((head + KNOWN.0).as_bytes()).unwrap();
        }
    });
    port
}

#[test]
fn clients_have_known_content_made_and_fetched_and_no_other() {
    const CLIENTS: Clients = Clients::Some;
    let test = "clients_have_known_content_made_and_fetched_and_no_other";
    let Some((installation, _serving)) = installed(test, CLIENTS, 1, TWO_VMS) else {
        return;
    };
    let port = serves_known();
    each(&clients(&installation, CLIENTS), |client| {
        let known = KNOWN.0.trim_end();
        let made = fixed_output("made", &format!("echo {known} > $out"));
        assert_eq!(client.built(&made), [KNOWN.0]);
        // The guest's network leads to this machine's loopback.
        let fetch = format!("wget -O $out http://10.0.2.2:{port}/known");
        assert_eq!(client.built(&fixed_output("fetched", &fetch)), [KNOWN.0]);
        let other = fixed_output("other", "echo something else > $out");
        let (_, log) = client.fails(&mut client.nix.build(&other));
        assert!(log.contains("hash mismatch"), "{}: {log}", client.name);
        // Nothing else has a network.
        let fetch = tooled(SYSTEM, "sandboxed", "", &fetch);
        client.fails(&mut client.nix.build(&fetch));
    });
}

/// A derivation that gives the same every time, and one that does not.
fn same_and_differing(system: &str) -> [String; 2] {
    let differing = "read -r id < /proc/sys/kernel/random/uuid; echo $id > $out";
    [
        derivation(system, "same", "", "echo the same > $out"),
        derivation(system, "differing", "", differing),
    ]
}

/// Checking by way of build machines. Up to 2.26 the build is done and nothing compared, 2.34 refuses, with Nix's own remote
/// builder too: with xpool it is neither better nor worse.
fn checked_as_with_nix_alone(client: &Client<'_>) {
    let (builder, system) = own_builder(client);
    let ours = same_and_differing(SYSTEM);
    let alone = same_and_differing(&system);
    for (ours, alone) in ours.iter().zip(&alone) {
        let checked = |machines: &str, expression: &str| {
            let build = || client.nix.build_on(machines, expression);
            client.ok(build().arg("-j0"));
            build().args(["-j0", "--check"]).output().unwrap()
        };
        let (ours, alone) = (
            checked(&client.nix.machines, ours),
            checked(&builder, alone),
        );
        let texts = [&ours, &alone].map(crate::common::nix::stderr);
        assert_eq!(ours.status.code(), alone.status.code(), "{texts:#?}");
    }
}

#[test]
fn checking_a_build_ends_as_with_nix_alone() {
    const CLIENTS: Clients = Clients::Others;
    let test = "checking_a_build_ends_as_with_nix_alone";
    let Some((installation, _serving)) = installed(test, CLIENTS, 1, TWO_VMS) else {
        return;
    };
    each(&clients(&installation, CLIENTS), checked_as_with_nix_alone);
}

/// Checking in the guest's own store, where what is checked was built.
fn checked_in_the_guest(client: &Client<'_>) {
    let build = |expression: &str, args: &[&str]| {
        let mut nix = client.nix.program("nix");
        nix.args(["build", "--no-link", "--impure", "--eval-store"])
            .arg(&client.nix.store)
            .args(["--store", client.uri(), "--expr", expression])
            .args(args);
        nix
    };
    let [same, differing] = same_and_differing(SYSTEM);
    client.ok(&mut build(&same, &[]));
    client.ok(&mut build(&same, &["--rebuild"]));
    client.ok(&mut build(&differing, &[]));
    let (_, log) = client.fails(&mut build(&differing, &["--rebuild"]));
    assert!(log.contains("may not be deterministic"), "{log}");
}

#[test]
fn a_vm_that_is_kept_checks_builds_and_says_which_are_not_the_same_again() {
    const CLIENTS: Clients = Clients::Some;
    let test = "a_vm_that_is_kept_checks_builds_and_says_which_are_not_the_same_again";
    if namespace::skipped(test) {
        return;
    }
    // One VM, which is the store of all of them, one after another.
    let pool = format!(
        "[pool]\nbuild-machines = {}\nmax-vms = 1\nreuse = \"always\"\n",
        CLIENTS.kinds().len()
    );
    let (installation, _serving) = started(&pool);
    for client in &clients(&installation, CLIENTS) {
        checked_in_the_guest(client);
    }
}

/// Puts a file into the VM of this name, has something made of it there, and takes that out into a store that has neither.
fn copies_in_and_out(client: &Client<'_>, vm: &str) {
    let there = client.uri_of_vm(vm);
    let file = client.file("file");
    fs::write(&file, format!("from {}\n", client.name)).unwrap();
    let own = client.nix.store.to_str().unwrap().to_owned();
    let nix = |command: &str, args: &[&str]| {
        let mut nix = client.nix.program(command);
        client.ok(nix.args(args)).0.trim_end().to_owned()
    };
    let added = ["--store", &own, "--add", file.to_str().unwrap()];
    let path = nix("nix-store", &added);
    nix("nix", &["copy", "--store", &own, "--to", &there, &path]);

    let input = format!("input = builtins.storePath {path};");
    let script = "read -r line < $input; echo $line, and back > $out";
    let expression = derivation(SYSTEM, "and-back", &input, script);
    let build = ["--store", &there, "--no-out-link", "-E", &expression];
    let result = nix("nix-build", &build);

    let second = client.file("another-store");
    let to = second.to_str().unwrap();
    let copy = ["copy", "--no-check-sigs", "--from", &there, "--to", to];
    nix("nix", &[&copy[..], &[&result]].concat());
    let copied = second.join(result.trim_start_matches('/'));
    let expected = format!("from {}, and back\n", client.name);
    assert_eq!(fs::read_to_string(copied).unwrap(), expected);
}

#[test]
fn clients_copy_to_and_from_a_machine_that_they_name() {
    const CLIENTS: Clients = Clients::Others;
    let test = "clients_copy_to_and_from_a_machine_that_they_name";
    let Some((installation, _serving)) = installed(test, CLIENTS, 1, TWO_VMS) else {
        return;
    };
    installation.ok(&["up", "riscv64", "--count", "2"]);
    each(&clients(&installation, CLIENTS), |client| {
        // The two ways count as two keys, and a machine serves one.
        let vm = match client.transport {
            Transport::Ssh => "riscv64-1",
            Transport::Local => "riscv64-2",
        };
        copies_in_and_out(client, vm);
    });
    for vm in installation.list(SYSTEM, "vms") {
        assert_eq!(vm["state"], "pinned");
    }
}
