//! A real Nix client, and the derivations that tests have it build.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Signal, kill_process};

use super::{Installation, Serving, pid_of};

/// Which Nix a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// This machine's own: 2.8 on Debian 12.
    Own,
    /// Debian 13's, which is 2.26.
    Newer,
    /// Debian sid's: 2.34 or what has come after it.
    Newest,
}

impl Version {
    /// The root folder that has its programs.
    fn system(self) -> PathBuf {
        let suite = match self {
            Self::Own => return PathBuf::from("/"),
            Self::Newer => "trixie",
            Self::Newest => "sid",
        };
        let clients = std::env::var_os("XPOOL_TEST_CLIENTS")
            .expect("run `scripts/test`, which makes the other clients");
        Path::new(&clients).join(suite)
    }
}

/// By which way a client comes to the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Through the gateway.
    Ssh,
    /// Through a program that Nix starts itself.
    Local,
}

impl Transport {
    /// The command that prints the machines lines for it.
    fn machines(self, installation: &Installation) -> Command {
        match self {
            Self::Ssh => {
                installation.command(&["machines", "--transport", "ssh", "--nix-version", "2.8"])
            }
            Self::Local => {
                link_to(installation, &own_xpool(installation));
                installation.command(&["machines", "--transport", "local"])
            }
        }
    }
}

/// An xpool where clients with another root folder see it too. It names itself in the lines that it prints.
fn own_xpool(installation: &Installation) -> PathBuf {
    let own = installation.path().join("xpool");
    let built = env!("CARGO_BIN_EXE_xpool");
    if !own.exists() && fs::hard_link(built, &own).is_err() {
        // On another file system.
        fs::copy(built, &own).unwrap();
    }
    own
}

/// Has what Nix starts lead to this xpool.
fn link_to(installation: &Installation, xpool: &Path) {
    for entry in fs::read_dir(installation.state().join("slots")).unwrap() {
        let link = entry.unwrap().path();
        if link.file_name() != Some("state".as_ref()) {
            fs::remove_file(&link).unwrap();
            symlink(xpool, &link).unwrap();
        }
    }
}

/// A Nix client. Its store is the installation's /nix if it has one, and a folder of the client's own otherwise.
pub struct Nix<'a> {
    pub installation: &'a Installation,
    /// What the `/` of store paths is outside of the client.
    pub store: PathBuf,
    pub machines: String,
    /// What its ssh reads to find the gateway.
    pub ssh_config: PathBuf,
    /// The root folder that has its programs.
    system: PathBuf,
    daemon: Option<&'a Daemon>,
}

impl<'a> Nix<'a> {
    /// This machine's own Nix.
    pub fn new(installation: &'a Installation) -> Self {
        Self::of(Version::Own, installation)
    }

    pub fn newer(installation: &'a Installation) -> Self {
        Self::of(Version::Newer, installation)
    }

    pub fn of(version: Version, installation: &'a Installation) -> Self {
        Self::by(Transport::Ssh, version, installation)
    }

    pub fn by(transport: Transport, version: Version, installation: &'a Installation) -> Self {
        let store = if installation.has_nix_folder() {
            installation.path().to_owned()
        } else {
            installation.path().join("client")
        };
        // Sandbox paths are for the builds on this machine that others are compared with: its shell. A client that has more
        // builds than slots asks for one again after the interval; its own default is five seconds.
        let conf = format!(
            "substitute = false\nbuild-users-group =\nsandbox-paths = {}\nexperimental-features = nix-command\n\
             build-poll-interval = 1\n",
            host_paths()
        );
        fs::write(installation.path().join("nix.conf"), conf).unwrap();
        // Not `ok`, which puts another word for the folder that the key is in.
        let machines = transport.machines(installation).output().unwrap();
        assert!(machines.status.success(), "{}", stderr(&machines));
        Self {
            installation,
            store,
            machines: String::from_utf8(machines.stdout).unwrap(),
            ssh_config: installation.state().join("ssh_config"),
            system: version.system(),
            daemon: None,
        }
    }

    /// A nix-daemon of this version, which serves the installation's /nix.
    pub fn daemon(&self) -> Daemon {
        assert!(
            self.installation.has_nix_folder(),
            "a daemon serves /nix, and this installation has none"
        );
        let log = fs::File::create(self.installation.path().join("nix-daemon.log")).unwrap();
        let mut command = self.program("nix-daemon");
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut daemon = Daemon { child };
        let socket = self.store.join("nix/var/nix/daemon-socket/socket");
        self.installation.until("nix-daemon listens", || {
            let ended = daemon.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}\n{}", self.installation.logs());
            UnixStream::connect(&socket).is_ok()
        });
        daemon
    }

    /// The same client, which does all by a daemon instead of by itself.
    pub fn through(self, daemon: &'a Daemon) -> Self {
        Self {
            daemon: Some(daemon),
            ..self
        }
    }

    /// `nix-build` of an expression, ready to run, in a process group of its own.
    pub fn build(&self, expression: &str) -> Command {
        self.build_on(&self.machines, expression)
    }

    /// The same, with other machines lines.
    pub fn build_on(&self, machines: &str, expression: &str) -> Command {
        let mut command = self.program("nix-build");
        if !self.installation.has_nix_folder() {
            command.arg("--store").arg(&self.store);
        }
        command.args(["--no-out-link", "--builders", machines, "-E", expression]);
        command
    }

    /// A program of Nix's that finds the gateway, in a process group of its own.
    pub fn program(&self, name: &str) -> Command {
        let mut command = self.installation.program(&self.system, name);
        command
            .env("NIX_SSHOPTS", format!("-F {}", self.ssh_config.display()))
            .env("NIX_CONF_DIR", self.installation.path())
            .env("HOME", self.installation.path())
            .env_remove("NIX_REMOTE")
            .current_dir(self.installation.path())
            .stdin(Stdio::null())
            .process_group(0);
        if self.daemon.is_some() {
            command.env("NIX_REMOTE", "daemon");
        }
        command
    }

    /// Builds and gives the content of each result that is a file.
    #[track_caller]
    pub fn results(&self, expression: &str) -> Vec<String> {
        let output = self.build(expression).output().unwrap();
        assert!(
            output.status.success(),
            "{}\n{}",
            stderr(&output),
            self.installation.logs()
        );
        let paths = String::from_utf8(output.stdout).unwrap();
        let read =
            |path: &str| fs::read_to_string(format!("{}{path}", self.store.display())).unwrap();
        paths.lines().map(read).collect()
    }

    /// Starts a build whose output can be looked at while it runs.
    pub fn start(&self, expression: &str) -> Running {
        Running::start(
            self.build(expression),
            self.installation.path().join("nix-build.log"),
        )
    }
}

/// A nix-daemon, which is killed when it is dropped.
pub struct Daemon {
    child: Child,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Each connection has a process in a session of its own, which outlives the daemon.
        let pid = self.child.id();
        let connections = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let _ = self.child.kill();
        let _ = self.child.wait();
        for connection in connections.unwrap_or_default().split_whitespace() {
            let _ = kill_process(pid_of(connection.parse().unwrap()), Signal::KILL);
        }
    }
}

/// The folders that have this machine's /bin/sh and what it needs.
pub fn host_paths() -> String {
    let there = ["/bin", "/usr", "/lib", "/lib64"]
        .into_iter()
        .filter(|path| fs::exists(path).unwrap());
    there.collect::<Vec<_>>().join(" ")
}

pub struct Running {
    pub child: Child,
    pub log: PathBuf,
}

impl Running {
    /// Starts a command that says what it does in a file.
    pub fn start(mut command: Command, log: PathBuf) -> Self {
        let file = fs::File::create(&log).unwrap();
        let child = command.stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Self { child, log }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn started(config: &str) -> (Installation, Serving) {
    let installation = Installation::with_real_images(config);
    let serving = installation.serve();
    (installation, serving)
}

/// A derivation whose builder is a script of the sandbox's shell and calls nothing; `extra` are further attributes.
pub fn derivation(system: &str, name: &str, extra: &str, script: &str) -> String {
    format!(
        r#"derivation {{ name = "{name}"; system = "{system}"; builder = "/bin/sh"; {extra}
            args = [ (builtins.toFile "builder.sh" ''{script}'') ]; }}"#
    )
}

/// One whose builder finds tools in PATH; see [`tools`](super::tools).
pub fn tooled(system: &str, name: &str, extra: &str, script: &str) -> String {
    let extra = format!(r#"PATH = "${{./tools/{system}}}/bin:/bin"; {extra}"#);
    derivation(system, name, &extra, script)
}

/// A script that writes what the kernel calls its processors, as `uname -m` does.
pub const MACHINE: &str = "read -r machine < /proc/sys/kernel/arch; echo $machine > $out";

/// A build that says that it runs, and then does for as many seconds.
pub fn sleeper(seconds: u32) -> String {
    let script = format!("echo the build runs; sleep {seconds}; echo done > $out");
    tooled("riscv64-linux", "sleeper", "", &script)
}
