//! A test that hangs fails, and says where its installation was: without this it would take the whole run with it.

use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use super::tier::volume;

/// The longest test takes five minutes on a machine that is busy with something else; of the full tier, a package with its tests
/// half an hour.
fn limit() -> Duration {
    Duration::from_secs(volume(15, 90) * 60)
}

/// Ends the test's process when it is not dropped in time.
pub struct Watchdog {
    _dropped: Sender<()>,
}

impl Watchdog {
    /// Looks after a test with an installation in this folder.
    pub fn new(dir: &Path) -> Self {
        let (dropped, end) = mpsc::channel();
        let dir = dir.to_owned();
        std::thread::spawn(move || {
            if end.recv_timeout(limit()) == Err(RecvTimeoutError::Timeout) {
                bite(&dir);
            }
        });
        Self { _dropped: dropped }
    }
}

fn bite(dir: &Path) -> ! {
    let processes = processes_of(dir);
    let logs = super::logs_in(dir);
    // Not by `eprintln`, which is kept until the test has ended.
    let _ = writeln!(
        std::io::stderr(),
        "the test hangs: it took more than {:?}\n{processes:#?}\n{logs}",
        limit()
    );
    for (pid, _) in processes {
        let _ = kill_process(super::pid_of(pid), Signal::KILL);
    }
    // Its threads cannot be ended, so the process is.
    std::process::exit(101);
}

/// Those that name the folder in their arguments or environment.
fn processes_of(dir: &Path) -> Vec<(u32, String)> {
    let needle = format!("{}/", dir.display());
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let named = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let read = |name| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\0', " ");
        let (command, environment) = (read("cmdline"), read("environ"));
        let is_of = |bytes: &[u8]| text(bytes).contains(&needle);
        (is_of(&command) || is_of(&environment)).then(|| (pid, text(&command)))
    });
    named.collect()
}
