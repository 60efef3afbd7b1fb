//! Clients that are interrupted as by Ctrl-C in a terminal, in every phase of a build, with each version of Nix and by each
//! way to the pool. `scripts/test` makes the images and the clients and runs it.

use std::fs;

use crate::common::matrix::{Client, Clients, SYSTEM, clients, each, installed};
use crate::common::nix::{Running, derivation, tooled};
use crate::common::tier::volume;
use crate::common::{Installation, ended, pid_of};
use rustix::process::{Signal, kill_process_group};

/// Waits until a client has a session that does something, by what `xpool status` says of it.
#[track_caller]
fn until_it_does(client: &Client<'_>, what: &str, running: &Running) {
    let name = &client.name;
    client
        .nix
        .installation
        .until(&format!("{name} is {what}"), || {
            let does = |session: &serde_json::Value| {
                let activity = session["activity"].as_str().unwrap();
                session["vm"].is_string() && activity.contains(what)
            };
            let reached = client.sessions().iter().any(does);
            assert!(
                reached || !running.log().contains("error:"),
                "{}",
                running.log()
            );
            reached
        });
}

/// What a terminal does to what runs in its foreground.
#[track_caller]
fn interrupt(client: &Client<'_>, mut running: Running) {
    kill_process_group(pid_of(running.child.id()), Signal::INT).unwrap();
    let code = ended(&mut running.child);
    assert_ne!(code, Some(0), "{}: {}", client.name, running.log());
}

/// Nothing is left of what the clients had begun, and each of them can build.
fn all_is_free(installation: &Installation, clients: &[Client<'_>]) {
    installation.until("no session is left, and no VM that one was in", || {
        installation.list(SYSTEM, "sessions").is_empty()
            && installation.list(SYSTEM, "vms").is_empty()
    });
    assert!(installation.leftovers().is_empty());
    let next = derivation(SYSTEM, "next", "inherit n;", "echo next > $out");
    each(clients, |client| {
        let n = client.nix.installation.logs().len();
        let next = format!("let n = {n}; in {next}");
        assert_eq!(client.built(&next), ["next\n"]);
    });
    installation.until("their VMs are gone", || {
        installation.list(SYSTEM, "vms").is_empty()
    });
}

#[test]
fn clients_that_are_interrupted_while_they_build_or_wait_for_it_leave_nothing() {
    const CLIENTS: Clients = Clients::Some;
    let test = "clients_that_are_interrupted_while_they_build_or_wait_for_it_leave_nothing";
    let pool = format!("max-vms = {}\n", CLIENTS.kinds().len());
    let Some((installation, _serving)) = installed(test, CLIENTS, 2, &pool) else {
        return;
    };
    let clients = clients(&installation, CLIENTS);
    let endless = |n: u32| {
        let script = "echo the build runs; while :; do sleep 1; done";
        tooled(SYSTEM, "endless", &format!("n = {n};"), script)
    };
    let building = each(&clients, |client| {
        let running = client.start("building", &endless(1));
        until_it_does(client, "building endless", &running);
        running
    });
    // All VMs are busy.
    let queued = each(&clients, |client| {
        let running = client.start("queued", &endless(2));
        let name = &client.name;
        installation.until(&format!("{name} waits"), || {
            client
                .sessions()
                .iter()
                .any(|session| session["vm"].is_null())
        });
        running
    });
    for (client, running) in clients.iter().zip(queued) {
        interrupt(client, running);
    }
    installation.until("none of them waits", || {
        installation.list(SYSTEM, "sessions").len() == clients.len()
    });
    for (client, running) in clients.iter().zip(building) {
        interrupt(client, running);
    }
    all_is_free(&installation, &clients);
}

/// Bytes, enough to be seen on their way.
fn large_size() -> u64 {
    volume(30_000_000, 100_000_000)
}

#[test]
fn clients_that_are_interrupted_while_they_copy_either_way_leave_nothing() {
    const CLIENTS: Clients = Clients::Others;
    let test = "clients_that_are_interrupted_while_they_copy_either_way_leave_nothing";
    let pool = format!("max-vms = {}\n", CLIENTS.kinds().len());
    let Some((installation, _serving)) = installed(test, CLIENTS, 1, &pool) else {
        return;
    };
    let clients = clients(&installation, CLIENTS);
    // All zeros, which take no room here, and as much time as others on their way.
    let large = installation.path().join("large");
    fs::File::create(&large)
        .unwrap()
        .set_len(large_size())
        .unwrap();
    let input = format!("large = {};", large.display());
    let reads = derivation(SYSTEM, "reads", &input, "echo never > $out");
    each(&clients, |client| {
        let running = client.start("uploading", &reads);
        until_it_does(client, "copying inputs", &running);
        interrupt(client, running);
    });
    all_is_free(&installation, &clients);
    let script = format!("head -c {} /dev/zero > $out", large_size());
    let gives = tooled(SYSTEM, "gives", "", &script);
    each(&clients, |client| {
        let running = client.start("downloading", &gives);
        until_it_does(client, "copying outputs", &running);
        interrupt(client, running);
    });
    all_is_free(&installation, &clients);
}
