//! A machine that is nobody else's, as far as programs in it can tell: this one's files, and a systemd as PID 1 that starts what a
//! test installs. `machine.sh` makes it out of namespaces. It is not a VM: kernel and processors are this machine's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use super::watchdog::Watchdog;
use super::{skip, until};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/machine.sh");

/// Where programs are found in there, whoever runs the test.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The most of its journal that is shown.
const LOG_LINES: usize = 200;

/// A machine, which is gone when it is dropped or this process ends.
pub struct Machine {
    dir: TempDir,
    script: Child,
    _watchdog: Watchdog,
}

impl Machine {
    /// `None`, with a reason, where there can be no such machine. For root and with a systemd, that is a failure.
    pub fn start(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip(test, "only root can start a systemd");
            return None;
        }
        if !fs::exists("/lib/systemd/systemd").unwrap() {
            skip(test, "there is no systemd");
            return None;
        }
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let script = Command::new(SCRIPT)
            .arg(dir.path())
            // It ends when this process does: nobody can write to it any more.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut machine = Self {
            script,
            _watchdog: Watchdog::new(dir.path()),
            dir,
        };
        let log = machine.dir.path().join("log");
        let log = || fs::read_to_string(&log).unwrap();
        until("systemd has started", log, || {
            let ended = machine.script.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}\n{}", log());
            let mut state = machine.command("root", &["systemctl", "is-system-running"]);
            state.stderr(Stdio::null()).output().unwrap().stdout == b"running\n"
        });
        Some(machine)
    }

    /// Where a file of the machine's is, seen from here. Links in it lead to where they lead here.
    pub fn path(&self, inside: &str) -> PathBuf {
        let pid = fs::read_to_string(self.dir.path().join("pid")).unwrap();
        Path::new("/proc")
            .join(pid.trim())
            .join("root")
            .join(inside.trim_start_matches('/'))
    }

    /// Writes a file there, and makes the folders that it is in.
    pub fn write(&self, inside: &str, text: &str) {
        let path = self.path(inside);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Copies a file or a folder of this machine to there, links as links.
    pub fn copy(&self, from: &Path, inside: &str) {
        let to = self.path(inside);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let copied = Command::new("cp")
            .arg("--archive")
            .arg(from)
            .arg(to)
            .status();
        assert!(copied.unwrap().success(), "copying {}", from.display());
    }

    /// A command of one of its users, ready to run.
    pub fn command(&self, user: &str, words: &[&str]) -> Command {
        let mut command = Command::new(SCRIPT);
        command.arg("--in").arg(self.dir.path());
        // Without a session: nobody logs in.
        command.args(["runuser", "--user", user, "--"]).args(words);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C.UTF-8");
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command of a user's to its end.
    pub fn run(&self, user: &str, words: &[&str]) -> Output {
        self.command(user, words).output().unwrap()
    }

    /// Runs it and expects that it goes well; what it prints.
    #[track_caller]
    pub fn ok(&self, user: &str, words: &[&str]) -> String {
        let output = self.run(user, words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{words:?}: {stderr}\n{}",
            self.logs()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits for something, looking often.
    #[track_caller]
    pub fn until(&self, what: &str, reached: impl FnMut() -> bool) {
        until(what, || self.logs(), reached);
    }

    /// What its services said, for a test that fails.
    pub fn logs(&self) -> String {
        let journal = self.run("root", &["journalctl", "--no-pager"]);
        let journal = String::from_utf8_lossy(&journal.stdout);
        // Not that the test has run a command.
        let lines = journal.lines().filter(|line| !line.contains("runuser["));
        let lines: Vec<&str> = lines.collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}
