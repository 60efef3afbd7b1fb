//! A user whose Nix and ssh are configured by `xpool machines --install`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::geteuid;

use super::{Installation, Said, skip};

/// For a Nix that needs an ssh configuration.
pub const INSTALL: [&str; 6] = [
    "machines",
    "--install",
    "--transport",
    "ssh",
    "--nix-version",
    "2.8",
];

/// A user with configurations of Nix and ssh.
pub struct User {
    pub installation: Installation,
}

impl User {
    /// `None`, with a reason, where root cannot be somebody else here.
    pub fn new(test: &str) -> Option<Self> {
        let user = Self {
            installation: Installation::new(""),
        };
        fs::create_dir_all(user.nix_conf().parent().unwrap()).unwrap();
        fs::create_dir(user.path(".ssh")).unwrap();
        let probe = user.as_user(&["true"]).output();
        if probe.is_ok_and(|probe| probe.status.success()) {
            return Some(user);
        }
        skip(test, "root may have no namespaces of users here");
        None
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.installation.path().join(name)
    }

    pub fn nix_conf(&self) -> PathBuf {
        self.path(".config/nix/nix.conf")
    }

    pub fn ssh_config(&self) -> PathBuf {
        self.path(".ssh/config")
    }

    /// A command of an ordinary user's: root becomes one who owns the same files.
    pub fn as_user(&self, words: &[&str]) -> Command {
        let mut words = words.to_vec();
        if geteuid().is_root() {
            words.splice(0..0, ["unshare", "--user", "--"]);
        }
        let mut command = Command::new(words[0]);
        let template = self.installation.command(&[]);
        for (name, value) in template.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        command
            .args(&words[1..])
            .env("NIX_CONF_DIR", self.path("etc"))
            .env_remove("NIX_USER_CONF_FILES")
            .env_remove("XDG_CONFIG_HOME")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Said {
        let mut words = vec![env!("CARGO_BIN_EXE_xpool")];
        words.extend(args);
        self.installation
            .said(self.as_user(&words).output().unwrap())
    }

    /// Runs it and expects that it goes well; what it says.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let said = self.run(args);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        said.stdout + &said.stderr
    }

    /// Both configurations.
    pub fn files(&self) -> [Option<Vec<u8>>; 2] {
        [self.nix_conf(), self.ssh_config()].map(|file| fs::read(file).ok())
    }

    /// The value of `builders` that counts, with this user's folder as `[DIR]`.
    pub fn builders(&self) -> String {
        let text = fs::read_to_string(self.nix_conf()).unwrap();
        let mut values = text
            .lines()
            .filter_map(|line| line.strip_prefix("builders = "));
        let dir = self.installation.path().to_str().unwrap();
        values.next_back().unwrap().replace(dir, "[DIR]")
    }
}
