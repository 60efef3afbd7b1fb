//! A root whose Nix, ssh and programs are configured by `xpool machines --install`, for a manager of another user's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::geteuid;

use super::{Installation, Said, roots_own, skip};

/// A machine's /etc and /usr/local that are an installation's own, with an xpool where only root can write.
pub struct Rooted {
    pub installation: Installation,
}

/// The xpool of a [`Rooted`] that only root can write.
pub const SAFE: &str = "/usr/local/bin/xpool";

/// How root installs for Nixes that start a helper.
pub const LOCAL: [&str; 4] = ["machines", "--install", "--transport", "local"];

/// Puts the folders `etc` and `local` of a place there, and makes files as private as a service does.
const MOUNTS: &str = r#"cd "$1" && mount --bind etc /etc && mount --bind local /usr/local && umask 077 && shift && exec "$@""#;

impl Rooted {
    /// `None`, with a reason, for anybody but root.
    pub fn new(test: &str) -> Option<Self> {
        if !geteuid().is_root() {
            skip(test, "only root can give a folder away");
            return None;
        }
        let installation = Installation::new("[pool]\nbuild-machines = 2\n");
        let rooted = Self { installation };
        for folder in ["etc/ssh/ssh_config.d", "local/bin", "bin", "nix-conf"] {
            fs::create_dir_all(rooted.at(folder)).unwrap();
        }
        for file in ["passwd", "group", "nsswitch.conf", "ld.so.cache"] {
            let _ = fs::copy(Path::new("/etc").join(file), rooted.at("etc").join(file));
        }
        let include = "Include /etc/ssh/ssh_config.d/*.conf\n";
        fs::write(rooted.at("etc/ssh/ssh_config"), include).unwrap();
        for place in ["local/bin/xpool", "bin/xpool"] {
            fs::copy(env!("CARGO_BIN_EXE_xpool"), rooted.at(place)).unwrap();
        }
        Some(rooted)
    }

    /// The same, with a state folder of another user's in which a manager has been.
    pub fn of_a_users_manager(test: &str) -> Option<Self> {
        let rooted = Self::new(test)?;
        rooted.installation.ok(&["machines"]);
        rooted.give_away("state");
        Some(rooted)
    }

    pub fn give_away(&self, name: &str) {
        let mut chown = Command::new("chown");
        chown.args(["-R", "-h", "65534"]).arg(self.at(name));
        assert!(chown.status().unwrap().success());
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.installation.path().join(name)
    }

    /// An xpool that somebody else than root could replace.
    pub fn own(&self) -> String {
        self.at("bin/xpool").display().to_string()
    }

    pub fn nix_conf(&self) -> PathBuf {
        self.at("nix-conf/nix.conf")
    }

    /// Runs a command as root, where Nix, ssh and programs are configured by this installation.
    pub fn run(&self, words: &[&str]) -> Said {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        command.args(["sh", "-c", MOUNTS, "sh"]);
        command.arg(self.installation.path()).args(words);
        let template = self.installation.command(&[]);
        for (name, value) in template.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        command.env("NIX_CONF_DIR", self.at("nix-conf"));
        self.installation
            .said(command.stdin(Stdio::null()).output().unwrap())
    }

    /// Runs it and expects that it goes well; what it says.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        let said = self.run(words);
        assert_eq!(said.code, Some(0), "{words:?}: {}", said.stderr);
        said.stdout + &said.stderr
    }

    /// What anybody but root can change of what root's Nix reads and executes, and how much that is.
    pub fn walk(&self) -> (Vec<String>, usize) {
        let run = |words: &[&str]| {
            self.run(words)
                .stdout
                .replace("[DIR]", self.installation.path().to_str().unwrap())
        };
        let nix_conf = self.nix_conf().display().to_string();
        let named = roots_own::named(&run, &nix_conf).len();
        (roots_own::changeable(&run, &nix_conf), named)
    }
}
