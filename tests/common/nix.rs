//! A real Nix client, and the derivations that tests have it build.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use super::{Installation, Serving};

/// A Nix client with a store of its own.
pub struct Nix<'a> {
    pub installation: &'a Installation,
    pub store: PathBuf,
    pub machines: String,
}

impl<'a> Nix<'a> {
    pub fn new(installation: &'a Installation) -> Self {
        let store = installation.path().join("client");
        // Sandbox paths are for the builds on this machine that others are compared with: its shell. A client that has more
        // builds than slots asks for one again after the interval; its own default is five seconds.
        let conf = format!(
            "substitute = false\nbuild-users-group =\nsandbox-paths = {}\nexperimental-features = nix-command\n\
             build-poll-interval = 1\n",
            host_paths()
        );
        fs::write(installation.path().join("nix.conf"), conf).unwrap();
        Self {
            installation,
            store,
            machines: installation.ok(&["machines"]),
        }
    }

    /// `nix-build` of an expression, ready to run, in a process group of its own.
    pub fn build(&self, expression: &str) -> Command {
        let mut command = self.program("nix-build");
        command.arg("--store").arg(&self.store).args([
            "--no-out-link",
            "--builders",
            &self.machines,
            "-E",
            expression,
        ]);
        command
    }

    /// A program of Nix's that finds the gateway, in a process group of its own.
    pub fn program(&self, name: &str) -> Command {
        let ssh_config = self.installation.state().join("ssh_config");
        let mut command = Command::new(name);
        command
            .env("NIX_SSHOPTS", format!("-F {}", ssh_config.display()))
            .env("NIX_CONF_DIR", self.installation.path())
            .env("HOME", self.installation.path())
            .env_remove("NIX_REMOTE")
            .current_dir(self.installation.path())
            .stdin(Stdio::null())
            .process_group(0);
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
        let log = self.installation.path().join("nix-build.log");
        let file = fs::File::create(&log).unwrap();
        let child = self
            .build(expression)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        Running { child, log }
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

/// A derivation whose builder is a shell script; `extra` are further attributes.
pub fn derivation(system: &str, name: &str, extra: &str, script: &str) -> String {
    format!(
        r#"derivation {{ name = "{name}"; system = "{system}"; builder = "/bin/sh"; {extra}
            args = [ (builtins.toFile "builder.sh" ''{script}'') ]; }}"#
    )
}

/// A build that says that it runs, and then does for as many seconds.
pub fn sleeper(seconds: u32) -> String {
    let script = format!("echo the build runs; sleep {seconds}; echo done > $out");
    derivation("riscv64-linux", "sleeper", "", &script)
}
