//! What tests of inputs that need not be copied share.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Installation;
use super::nix::{Nix, stderr};

/// The client's store is the one that VMs see. One slot, so that Nix does one build after another.
pub const SHARED: &str =
    "[store]\nroot = \"[DIR]/client\"\n[pool]\nmax-vms = 2\nbuild-machines = 1\n";

/// How many inputs a session asked for, and how many of them it did not have to copy, in the manager's log; session by
/// session.
pub fn inputs(installation: &Installation) -> Vec<(usize, usize)> {
    let logs = installation.logs();
    let number = |line: &str, key: &str| {
        let rest = line.split_once(&format!("{key}="))?.1;
        rest.split_whitespace().next()?.parse().ok()
    };
    let lines = logs.lines().filter(|line| line.contains(" inputs "));
    lines
        .filter_map(|line| Some((number(line, "asked")?, number(line, "shared")?)))
        .collect()
}

/// The paths that a client copied to a builder, by its log.
pub fn copied(log: &str) -> Vec<&str> {
    let to_builder = |line: &&str| line.starts_with("copying path") && line.contains("to 'ssh-ng:");
    log.lines().filter(to_builder).collect()
}

/// Builds something, expects that it goes well, and gives the client's log and the results.
#[track_caller]
pub fn built(nix: &Nix<'_>, expression: &str) -> (String, Vec<String>) {
    let output = nix.build(expression).output().unwrap();
    let log = stderr(&output);
    let logs = nix.installation.logs();
    assert!(output.status.success(), "{log}\n{logs}");
    let read = |path: &str| fs::read_to_string(on_host(nix, path)).unwrap();
    let paths = String::from_utf8(output.stdout).unwrap();
    (log, paths.lines().map(read).collect())
}

/// Where a path of a client's store is on this machine.
pub fn on_host(nix: &Nix<'_>, path: &str) -> PathBuf {
    nix.store.join(path.trim_start_matches('/'))
}

/// What a program of Nix's says that works on the client's store, and is expected to go well.
#[track_caller]
pub fn said(nix: &Nix<'_>, program: &str, args: &[&str]) -> String {
    let mut command = nix.program(program);
    if !nix.installation.has_nix_folder() {
        command.arg("--store").arg(&nix.store);
    }
    let output = command.args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Adds a file to the client's store; its path. Nothing but a client that uses it keeps it there.
#[track_caller]
pub fn added(nix: &Nix<'_>, name: &str, text: &str) -> String {
    let file = nix.installation.path().join(name);
    fs::write(&file, text).unwrap();
    said(nix, "nix-store", &["--add", file.to_str().unwrap()])
}

/// Changes what is in a file of a store, behind Nix's back.
pub fn damage(file: &Path, text: &str) {
    let mode = |mode| fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    fs::write(file, text).unwrap();
    mode(0o444);
}

/// All that there is to know of what is in a folder, in lines to be compared.
#[track_caller]
pub fn listing(folder: &Path) -> String {
    let script = r"
        find . -printf '%p %y %m %U %G %n %s %T@ %C@ %l\n' | sort
        find . -type f -exec sha256sum {} + | sort";
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// A client elsewhere, that logs in with a key of its own.
pub struct Elsewhere {
    dir: tempfile::TempDir,
    pub public_key: String,
}

impl Elsewhere {
    pub fn new() -> Self {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let status = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(dir.path().join("key"))
            .stdin(Stdio::null())
            .status();
        assert!(status.unwrap().success());
        let public_key = fs::read_to_string(dir.path().join("key.pub")).unwrap();
        Self { dir, public_key }
    }

    /// The configuration of this machine's clients, with this one's key in the place of xpool's own.
    pub fn client<'a>(&self, installation: &'a Installation) -> Nix<'a> {
        let mut nix = Nix::new(installation);
        let own_key = nix.machines.split(' ').nth(2).unwrap().to_owned();
        let key = self.dir.path().join("key").into_os_string();
        let key = key.into_string().unwrap();
        let ssh_config = fs::read_to_string(&nix.ssh_config).unwrap();
        nix.ssh_config = self.dir.path().join("ssh_config");
        fs::write(&nix.ssh_config, ssh_config.replace(&own_key, &key)).unwrap();
        nix.machines = nix.machines.replace(&own_key, &key);
        nix
    }
}
