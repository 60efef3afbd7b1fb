//! What the tests share: an xpool of their own, started and looked at as a user does it.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by tests that each need a part of it"
)]

pub mod builder;
pub mod corp;
pub mod inputs;
pub mod machine;
pub mod matrix;
pub mod namespace;
pub mod nix;
pub mod nixes;
pub mod qemu;
pub mod rooted;
pub mod roots_own;
pub mod tier;
pub mod tools;
pub mod user;
pub mod vm;
mod watchdog;

use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use watchdog::Watchdog;

/// Longer than anything that goes well takes, on a machine that is busy with something else.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// An installation of xpool that is nobody else's: folders, port, configuration.
pub struct Installation {
    dir: TempDir,
    images: PathBuf,
    _watchdog: Watchdog,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Installation {
    /// One with a configuration, in which `[DIR]` is its own folder; `[gateway]` with a free port is put before it.
    pub fn new(config: &str) -> Self {
        // Short: the sockets in it have paths of 107 bytes at the most.
        let dir = tempfile::Builder::new()
            .prefix("xp")
            .tempdir_in("/tmp")
            .unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = config.replace("[DIR]", dir.path().to_str().unwrap());
        let text = format!("[gateway]\nlisten = \"127.0.0.1:{port}\"\n{config}");
        std::fs::write(dir.path().join("xpool.toml"), text).unwrap();
        Self {
            images: dir.path().join("cache"),
            _watchdog: Watchdog::new(dir.path()),
            dir,
        }
    }

    /// The same, with the images that `scripts/test` has made.
    pub fn with_real_images(config: &str) -> Self {
        let images = std::env::var_os("XPOOL_TEST_IMAGES")
            .expect("run `scripts/test`, which makes the images");
        let images = Path::new(&images).parent().unwrap().to_owned();
        let mut installation = Self::new(config);
        installation.images = images;
        tools::put_into(installation.path());
        installation
    }

    /// The same with a cache of its own: the images, but no templates.
    pub fn with_own_templates(config: &str) -> Self {
        let mut installation = Self::with_real_images(config);
        let own = installation.path().join("cache");
        std::fs::create_dir(&own).unwrap();
        let images = installation.images.join("images");
        std::os::unix::fs::symlink(images, own.join("images")).unwrap();
        installation.images = own;
        installation
    }

    /// The same, with a /nix of its own: the folder `nix` of this installation, whatever /nix this machine has.
    pub fn with_nix_folder(config: &str) -> Self {
        let installation = Self::with_real_images(config);
        std::fs::create_dir(installation.nix_folder()).unwrap();
        installation
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn nix_folder(&self) -> PathBuf {
        self.path().join("nix")
    }

    pub fn has_nix_folder(&self) -> bool {
        self.nix_folder().exists()
    }

    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    pub fn cache(&self) -> &Path {
        &self.images
    }

    /// A program of a system: of this machine's if that is `/`, or else of a root folder that `scripts/client-root` has made.
    pub fn program(&self, system: &Path, program: impl AsRef<OsStr>) -> Command {
        if system == Path::new("/") && !self.has_nix_folder() {
            return Command::new(program);
        }
        namespace::command(self.path(), system, program)
    }

    /// The command, ready to run.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_xpool")), args)
    }

    /// The same, of an xpool that is somewhere else.
    pub fn command_of(&self, xpool: &Path, args: &[&str]) -> Command {
        let mut command = self.program(Path::new("/"), xpool);
        command
            .args(args)
            .env("XPOOL_CONFIG", self.path().join("xpool.toml"))
            .env("XPOOL_STATE_DIR", self.state())
            .env("XPOOL_CACHE_DIR", &self.images)
            .env("HOME", self.path())
            .env_remove("RUST_LOG")
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null());
        command
    }

    /// Runs xpool to its end.
    pub fn run(&self, args: &[&str]) -> Said {
        self.said(self.command(args).output().unwrap())
    }

    /// What was printed, with this installation's own folder written as `[DIR]`.
    pub fn said(&self, output: Output) -> Said {
        let text = |bytes: Vec<u8>| {
            let dir = self.path().to_str().unwrap();
            String::from_utf8(bytes).unwrap().replace(dir, "[DIR]")
        };
        Said {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Runs xpool and expects that it goes well.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let said = self.run(args);
        assert_eq!(
            said.code,
            Some(0),
            "xpool {args:?}: {}{}",
            said.stdout,
            said.stderr
        );
        said.stdout
    }

    /// A manager in the foreground, which is killed when it is dropped.
    pub fn serve(&self) -> Serving {
        let stderr = std::fs::File::create(self.path().join("serve.log")).unwrap();
        let child = self.command(&["serve"]).stderr(stderr).spawn().unwrap();
        let serving = Serving { child };
        self.until("the manager serves", || {
            self.run(&["status"]).code == Some(0)
        });
        serving
    }

    /// The parsed `xpool status --json`.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.ok(&["status", "--json"])).unwrap()
    }

    /// Everything that a list of a system's status has: `vms`, `sessions`.
    #[track_caller]
    pub fn list(&self, system: &str, what: &str) -> Vec<serde_json::Value> {
        let status = self.status();
        let systems = status["systems"].as_array().unwrap();
        let pool = systems
            .iter()
            .find(|pool| pool["system"] == system)
            .unwrap();
        pool[what].as_array().unwrap().clone()
    }

    /// The numbers of the QEMUs that belong to this installation.
    pub fn qemus(&self) -> Vec<u32> {
        let needle = format!("{}/", self.state().display());
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_ours = |pid: &u32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            command.starts_with('/')
                && command.contains("qemu-system-")
                && command.contains(&needle)
        };
        pids.filter(is_ours).collect()
    }

    /// Waits for something, looking often.
    #[track_caller]
    pub fn until(&self, what: &str, reached: impl FnMut() -> bool) {
        until(what, || self.logs(), reached);
    }

    /// What the manager and a nix-daemon said, for a test that fails.
    pub fn logs(&self) -> String {
        logs_in(self.path())
    }

    /// What is left below the folder of VMs, the running ones' included.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let dir = std::fs::read_dir(self.state().join("vms"));
        dir.map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default()
    }
}

fn logs_in(dir: &Path) -> String {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
    ["serve.log", "state/logs/manager.log", "nix-daemon.log"]
        .map(read)
        .concat()
}

impl Drop for Installation {
    fn drop(&mut self) {
        // Whatever a failed test has left must not disturb the next one.
        let _ = self.command(&["down", "--now"]).output();
        for pid in self.qemus() {
            let _ = kill_process(pid_of(pid), Signal::KILL);
        }
        // Folders in a Nix store are read-only, and only root could remove what is in them.
        let _ = Command::new("chmod")
            .args(["-R", "u+w"])
            .arg(self.path())
            .output();
    }
}

/// A manager in the foreground.
pub struct Serving {
    pub child: Child,
}

impl Serving {
    pub fn signal(&self, wanted: Signal) {
        signal(self.child.id(), wanted);
    }

    /// Waits for its end; its exit code.
    #[track_caller]
    pub fn ended(&mut self) -> Option<i32> {
        ended(&mut self.child)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal(pid: u32, signal: Signal) {
    kill_process(pid_of(pid), signal).unwrap();
}

pub fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed()).unwrap()
}

/// Waits for something, looking often; in vain, it says this beside.
#[track_caller]
pub fn until(what: &str, said: impl Fn() -> String, mut reached: impl FnMut() -> bool) {
    let end = now() + PATIENCE;
    while !reached() {
        assert!(now() < end, "waited in vain until {what}\n{}", said());
        pause();
    }
}

/// Waits for a process's end; its exit code.
#[track_caller]
pub fn ended(child: &mut Child) -> Option<i32> {
    let end = now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        assert!(
            now() < end,
            "waited in vain for the end of process {}",
            child.id()
        );
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "tests look at the clock")]
pub fn now() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the pause between two looks at a condition that has a deadline"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

/// Says that a test cannot run here and why; `scripts/test` counts it as skipped.
pub fn skip(test: &str, why: &str) {
    use std::io::Write;
    let line = format!("{test}: {why}\n");
    print(&line);
    if let Some(file) = std::env::var_os("XPOOL_TEST_SKIPS") {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(file)
            .unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

#[expect(clippy::print_stdout, reason = "what a test says")]
fn print(text: &str) {
    print!("{text}");
}
