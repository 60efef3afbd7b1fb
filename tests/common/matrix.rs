//! Several clients at the same time: versions of Nix, each by a way to the pool. Which of them a test has, its tier says.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread::{self, ScopedJoinHandle};

use super::nix::{Nix, Running, Transport, Version, started, stderr};
use super::tier::volume;
use super::{Installation, Serving, namespace};

pub const SYSTEM: &str = "riscv64-linux";

/// One client: a version of Nix, by a way to the pool.
pub type Kind = (Transport, Version);

/// Every version by every transport.
const EVERY: [Kind; 6] = [
    (Transport::Ssh, Version::Own),
    (Transport::Local, Version::Newer),
    (Transport::Ssh, Version::Newest),
    (Transport::Local, Version::Own),
    (Transport::Ssh, Version::Newer),
    (Transport::Local, Version::Newest),
];

/// How many clients a test of the short tier has, if not every one.
const SOME: usize = EVERY.len() / 2;

/// The clients that a test of the short tier has: each version and each transport is among some of them. The full tier has them all.
#[derive(Clone, Copy, Debug)]
pub enum Clients {
    Every,
    /// Three, and the three others: tests that look at similar things take turns.
    Some,
    Others,
}

impl Clients {
    pub fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Every => &EVERY,
            Self::Some => volume(&EVERY[..SOME], &EVERY),
            Self::Others => volume(&EVERY[SOME..], &EVERY),
        }
    }
}

/// One of the clients. Its store and its slots are its own, so that it can be told from the others.
pub struct Client<'a> {
    pub name: String,
    pub version: Version,
    pub transport: Transport,
    pub nix: Nix<'a>,
    /// What the manager calls its slots.
    slots: Vec<String>,
}

/// An installation for these clients, each of which has as many slots; `pool` is more of the pool's configuration. None where
/// there can be no other versions of Nix than this machine's, which is said.
pub fn installed(
    test: &str,
    clients: Clients,
    slots: usize,
    pool: &str,
) -> Option<(Installation, Serving)> {
    if namespace::skipped(test) {
        return None;
    }
    let slots = slots * clients.kinds().len();
    Some(started(&format!(
        "[pool]\nbuild-machines = {slots}\n{pool}"
    )))
}

/// The clients of an installation, which has the same number of slots for each.
#[track_caller]
pub fn clients(installation: &Installation, clients: Clients) -> Vec<Client<'_>> {
    let kinds = clients.kinds();
    kinds
        .iter()
        .enumerate()
        .map(|(number, &(transport, version))| {
            let name = format!("{version:?}-{transport:?}").to_lowercase();
            let mut nix = Nix::by(transport, version, installation);
            nix.store = installation.path().join(&name);
            let slots = take_slots(&mut nix.machines, number, kinds.len());
            Client {
                name,
                version,
                transport,
                nix,
                slots,
            }
        })
        .collect()
}

/// Leaves one of so many clients the machines lines that are its own; what the manager calls their slots.
fn take_slots(machines: &mut String, client: usize, clients: usize) -> Vec<String> {
    let is_ours = |line: &&str| line.split(' ').nth(1) == Some(SYSTEM);
    let lines: Vec<&str> = machines.lines().filter(is_ours).collect();
    assert!(!lines.is_empty() && lines.len().is_multiple_of(clients));
    let count = lines.len() / clients;
    let own = client * count..(client + 1) * count;
    let text = lines[own.clone()].join("\n");
    *machines = text;
    own.map(|slot| format!("riscv64-{slot:02}")).collect()
}

/// Does something with all of them at the same time. All come to their end, whatever becomes of the others.
pub fn each<'a, T: Send>(
    clients: &'a [Client<'a>],
    case: impl Fn(&'a Client<'a>) -> T + Sync,
) -> Vec<T> {
    let case = &case;
    thread::scope(|scope| {
        let spawn = |client: &'a Client<'a>| {
            let thread = thread::Builder::new().name(client.name.clone());
            thread.spawn_scoped(scope, move || case(client)).unwrap()
        };
        let running: Vec<_> = clients.iter().map(spawn).collect();
        let ended: Vec<_> = running.into_iter().map(ScopedJoinHandle::join).collect();
        let results = ended.into_iter().zip(clients);
        results
            .map(|(result, client)| {
                result.unwrap_or_else(|_| panic!("the client {} failed, see above", client.name))
            })
            .collect()
    })
}

impl Client<'_> {
    /// Starts a build that can be looked at while it runs. `what` is the name of its log.
    pub fn start(&self, what: &str, expression: &str) -> Running {
        Running::start(self.nix.build(expression), self.file(what))
    }

    /// A file of this client's.
    pub fn file(&self, what: &str) -> PathBuf {
        let name = format!("{}-{what}", self.name);
        self.nix.installation.path().join(name)
    }

    /// The URI of its first slot.
    pub fn uri(&self) -> &str {
        self.nix.machines.split(' ').next().unwrap()
    }

    /// The same for the VM of this name, by the same way.
    pub fn uri_of_vm(&self, vm: &str) -> String {
        let installation = self.nix.installation;
        match self.transport {
            Transport::Ssh => self.uri().replace(&self.slots[0], &format!("vm-{vm}")),
            // No link has the name of a VM.
            Transport::Local => format!(
                "ssh-ng://localhost?remote-program={}/xpool%20connect%20--state-dir%20{}%20vm-{vm}",
                installation.path().display(),
                installation.state().display()
            ),
        }
    }

    /// Sessions in its slots.
    pub fn sessions(&self) -> Vec<serde_json::Value> {
        let mut sessions = self.nix.installation.list(SYSTEM, "sessions");
        sessions.retain(|session| {
            let slot = session["slot"].as_str().unwrap();
            self.slots.iter().any(|ours| ours == slot)
        });
        sessions
    }

    /// Where a path of its store is on this machine.
    pub fn on_host(&self, path: &str) -> PathBuf {
        self.nix.store.join(path.trim_start_matches('/'))
    }

    /// Runs something that is expected to go well; what it printed.
    #[track_caller]
    pub fn ok(&self, command: &mut Command) -> (String, String) {
        let output = command.output().unwrap();
        let log = stderr(&output);
        let name = &self.name;
        let logs = self.nix.installation.logs();
        assert!(output.status.success(), "{name}: {log}\n{logs}");
        (String::from_utf8(output.stdout).unwrap(), log)
    }

    /// Runs something that is expected to fail; how it ended, and what it said.
    #[track_caller]
    pub fn fails(&self, command: &mut Command) -> (Option<i32>, String) {
        let output: Output = command.output().unwrap();
        let log = stderr(&output);
        assert!(!output.status.success(), "{}: {log}", self.name);
        (output.status.code(), log)
    }

    /// Builds something and reads its results, which are files.
    #[track_caller]
    pub fn built(&self, expression: &str) -> Vec<String> {
        let (paths, _) = self.ok(&mut self.nix.build(expression));
        let read = |path: &str| fs::read_to_string(self.on_host(path)).unwrap();
        paths.lines().map(read).collect()
    }
}
