//! Every Nix that there is, for what is written in its language.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use super::{Installation, namespace, skip};

/// What is copied to where Nixes with another root folder see it.
const SOURCES: [&str; 6] = [
    "Cargo.toml",
    "flake.lock",
    "flake.nix",
    "images",
    "nixos-module.nix",
    "tests/nix",
];

/// Every Nix that there is for the test: this machine's, and those that `scripts/client-root` has made.
pub struct Nixes {
    pub installation: Installation,
    pub systems: Vec<PathBuf>,
}

impl Nixes {
    /// None, and says so, where this machine has no Nix.
    pub fn find(test: &str) -> Option<Self> {
        if !is_there("nix-instantiate") {
            skip(test, "there is no Nix");
            return None;
        }
        let installation = Installation::new("");
        copy_sources(installation.path());
        fs::write(
            installation.path().join("nix.conf"),
            "build-users-group =\nexperimental-features = nix-command flakes\n",
        )
        .unwrap();
        let mut systems = vec![PathBuf::from("/")];
        if let Some(clients) = std::env::var_os("XPOOL_TEST_CLIENTS")
            && !namespace::skipped(test)
        {
            systems.extend(["trixie", "sid"].map(|suite| Path::new(&clients).join(suite)));
        }
        Some(Self {
            installation,
            systems,
        })
    }

    pub fn run(&self, system: &Path, store: &str, program: &str, args: &[&str]) -> Output {
        let place = self.installation.path();
        let mut command = self.installation.program(system, program);
        command
            .args(args)
            .current_dir(place)
            .env("HOME", place)
            .env("NIX_CONF_DIR", place)
            // Or it would make /nix.
            .env("NIX_REMOTE", store)
            .output()
            .unwrap()
    }

    /// What an attribute of tests/nix is for each Nix: JSON or an error.
    pub fn evaluate_each(&self, attribute: &str) -> Vec<Result<Value, String>> {
        let args = ["--eval", "--strict", "--json", "tests/nix", "-A", attribute];
        let evaluate = |system: &PathBuf| {
            let output = self.run(system, "dummy://", "nix-instantiate", &args);
            if output.status.success() {
                Ok(serde_json::from_slice(&output.stdout).unwrap())
            } else {
                Err(String::from_utf8(output.stderr).unwrap())
            }
        };
        self.systems.iter().map(evaluate).collect()
    }

    /// What an attribute of tests/nix is, for every Nix the same.
    #[track_caller]
    pub fn evaluate(&self, attribute: &str) -> Value {
        let mut values = self.evaluate_each(attribute).into_iter();
        let first = values.next().unwrap().unwrap();
        assert!(values.all(|value| value.as_ref() == Ok(&first)));
        first
    }
}

/// Copies what is written in Nix's language, and what it reads, to below a folder.
#[track_caller]
pub fn copy_sources(folder: &Path) {
    let copied = Command::new("cp")
        .args(["-r", "--parents"])
        .args(SOURCES)
        .arg(folder)
        .status();
    assert!(copied.unwrap().success());
}

/// Whether a program is in PATH. It is not run: `nix-store --version` makes /nix.
pub fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
