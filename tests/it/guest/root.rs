//! A guest without its machine: a root folder with the script, in namespaces of its own (root.sh).

use std::cell::Cell;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::geteuid;
use tempfile::TempDir;

use crate::common::{self, PATIENCE, Said, skip};

const GUEST_SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/images/xpool-guest");
const ROOT_SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/guest/root.sh");
const DAEMON: &str = "/nix/var/nix/daemon-socket/socket";
/// Programs that the script calls and that are written down instead.
const WRITES_DOWN: &str = "#!/bin/sh\necho \"${0##*/} $*\" >>/calls\n";

/// A program that can be a guest's /bin/sh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shell {
    Busybox,
    Dash,
    Bash,
}

impl Shell {
    const ALL: [Self; 3] = [Self::Busybox, Self::Dash, Self::Bash];

    fn name(self) -> &'static str {
        match self {
            Self::Busybox => "busybox",
            Self::Dash => "dash",
            Self::Bash => "bash",
        }
    }

    /// In /usr, which is all that a guest sees of this machine.
    fn program(self) -> Option<PathBuf> {
        let dirs = ["/usr/bin", "/usr/local/bin"];
        let mut paths = dirs.iter().map(|dir| Path::new(dir).join(self.name()));
        paths.find(|path| path.exists())
    }
}

/// Runs a test in each shell, all at once. Those that this machine does not have are skipped.
pub(super) fn in_each_shell(test: &str, run: impl Fn(Shell) + Sync) {
    if let Err(why) = have_socat().and_then(|()| may_have_namespaces()) {
        return skip(test, &why);
    }
    let (there, missing): (Vec<Shell>, Vec<Shell>) = Shell::ALL
        .iter()
        .partition(|shell| shell.program().is_some());
    if !missing.is_empty() {
        skip(test, &format!("not installed: {missing:?}"));
    }
    // A panic names the thread, and so the shell.
    thread::scope(|scope| {
        for shell in there {
            let thread = thread::Builder::new().name(format!("{shell:?}"));
            let run = &run;
            thread.spawn_scoped(scope, move || run(shell)).unwrap();
        }
    });
}

/// Says that a test is skipped where nobody but root can do what it is about.
pub(super) fn skipped_for_a_user(test: &str, why: &str) -> bool {
    let skipped = !geteuid().is_root();
    if skipped {
        skip(test, why);
    }
    skipped
}

/// What the script needs and a machine may not have.
fn have_socat() -> Result<(), String> {
    let said = Command::new("socat").arg("-V").output();
    said.map(drop)
        .map_err(|error| format!("`socat` cannot be run: {error}"))
}

fn may_have_namespaces() -> Result<(), String> {
    let probe = namespaces()
        .args(["mount", "-t", "proc", "proc", "/proc"])
        .output()
        .unwrap();
    if probe.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&probe.stderr);
    Err(format!("no namespaces here: {}", said.trim()))
}

fn namespaces() -> Command {
    let mut command = Command::new("unshare");
    if !geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "--uts", "--pid", "--fork", "--kill-child", "--"]);
    command
}

/// A guest. Its end is the end of all that runs in it.
pub(super) struct Guest {
    dir: TempDir,
    unshare: Child,
    /// What runs in it always.
    own: Vec<u32>,
    started: Cell<usize>,
}

impl Guest {
    pub(super) fn new(shell: Shell) -> Self {
        Self::with_control_group(shell, Path::new(""))
    }

    /// One that has this folder as its control groups.
    pub(super) fn with_control_group(shell: Shell, group: &Path) -> Self {
        // Short: the daemon's socket in it has a path of 107 bytes at the most.
        let dir = tempfile::Builder::new()
            .prefix("xg")
            .tempdir_in("/tmp")
            .unwrap();
        furnish(dir.path(), shell);
        let unshare = start(dir.path(), group);
        let mut guest = Self {
            dir,
            unshare,
            own: Vec::new(),
            started: Cell::new(0),
        };
        guest.own = guest.pids();
        guest
    }

    /// Where a file of the guest's is for the test. It must not be a link.
    pub(super) fn path(&self, inside: &str) -> PathBuf {
        self.dir.path().join(inside.trim_start_matches('/'))
    }

    #[track_caller]
    pub(super) fn read(&self, inside: &str) -> String {
        fs::read_to_string(self.path(inside)).unwrap()
    }

    pub(super) fn write(&self, inside: &str, text: &str) {
        write(self.dir.path(), inside, text);
    }

    /// Puts a program into the guest's PATH that writes down how it was called, and then does this.
    pub(super) fn program(&self, name: &str, does: &str) {
        program(self.dir.path(), name, does);
    }

    /// How programs were called.
    pub(super) fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("/calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// Listens as nix-daemon does.
    pub(super) fn daemon(&self) -> Daemon {
        let listener = UnixListener::bind(self.path(DAEMON)).unwrap();
        listener.set_nonblocking(true).unwrap();
        Daemon { listener }
    }

    /// Starts the script.
    pub(super) fn start(&self, args: &[&str]) -> Running {
        self.start_program("xpool-guest", args, "")
    }

    /// Runs the script to its end.
    #[track_caller]
    pub(super) fn run(&self, args: &[&str]) -> Said {
        self.run_with("", args)
    }

    /// The same, with something to read.
    #[track_caller]
    pub(super) fn run_with(&self, stdin: &str, args: &[&str]) -> Said {
        self.start_program("xpool-guest", args, stdin).said()
    }

    pub(super) fn host_name(&self) -> String {
        let said = self.start_program("cat", &["/proc/sys/kernel/hostname"], "");
        said.said().stdout.trim().to_owned()
    }

    pub(super) fn start_program(&self, program: &str, args: &[&str], stdin: &str) -> Running {
        let number = self.started.replace(self.started.get() + 1);
        let file = |name: &str| self.path(&format!("/{name}.{number}"));
        let (stdout, stderr) = (file("stdout"), file("stderr"));
        let mut child = self
            .enter()
            .arg("--")
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(fs::File::create(&stdout).unwrap())
            .stderr(fs::File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        // It may have ended without reading.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        Running {
            child,
            stdout,
            stderr,
        }
    }

    fn enter(&self) -> Command {
        let of = |name: &str| format!("/proc/{}/ns/{name}", self.unshare.id());
        let mut command = Command::new("nsenter");
        if !geteuid().is_root() {
            command
                .arg(format!("--user={}", of("user")))
                .arg("--preserve-credentials");
        }
        command
            .arg(format!("--mount={}", of("mnt")))
            .arg(format!("--uts={}", of("uts")))
            .arg(format!("--pid={}", of("pid_for_children")))
            .env_clear()
            .env("PATH", "/bin:/usr/sbin:/usr/bin")
            // As in the environment of a guest agent that somebody configured so.
            .env("NIX_REMOTE", "daemon");
        command
    }

    /// What was started in the guest and has not ended.
    pub(super) fn running(&self) -> Vec<String> {
        let pids = self.pids().into_iter();
        let started = pids.filter(|pid| !self.own.contains(pid));
        started
            .map(|pid| {
                let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&words).replace('\0', " ")
            })
            .collect()
    }

    #[track_caller]
    pub(super) fn until_nothing_runs(&self) {
        let left = || format!("still there: {:#?}", self.running());
        common::until("nothing runs in the guest", left, || {
            self.running().is_empty()
        });
    }

    /// Zombies are none of them: they have nothing open.
    fn pids(&self) -> Vec<u32> {
        let namespace = |link: String| fs::read_link(link).ok();
        let own = namespace(format!("/proc/{}/ns/pid_for_children", self.unshare.id()));
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| namespace(format!("/proc/{pid}/ns/pid")) == own && !is_zombie(*pid))
            .collect()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.unshare.stdin.take());
        let _ = self.unshare.wait();
    }
}

fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name comes before, in brackets, and may have anything in it.
    stat.rsplit(')').next().unwrap().starts_with(" Z")
}

/// What a guest's own image has.
fn furnish(dir: &Path, shell: Shell) {
    for folder in ["bin", "nix/store", "nix/var/nix/daemon-socket", "root"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    for folder in ["dev/virtio-ports", "etc", "run/xpool/own"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    symlink(shell.program().unwrap(), dir.join("bin/sh")).unwrap();
    fs::copy(GUEST_SCRIPT, dir.join("bin/xpool-guest")).unwrap();
    write(dir, "/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
    write(dir, "/dev/console", "");
    for name in ["nix-build", "nix-store", "poweroff", "sync"] {
        program(dir, name, "");
    }
}

fn write(dir: &Path, inside: &str, text: &str) {
    fs::write(dir.join(inside.trim_start_matches('/')), text).unwrap();
}

fn program(dir: &Path, name: &str, does: &str) {
    let path = dir.join("bin").join(name);
    fs::write(&path, format!("{WRITES_DOWN}{does}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Starts the first process and waits until it is up.
fn start(dir: &Path, group: &Path) -> Child {
    let mut unshare = namespaces()
        .arg(ROOT_SCRIPT)
        .arg(dir)
        .arg(group)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let stdout = unshare.stdout.as_mut().unwrap();
    BufReader::new(stdout).read_line(&mut said).unwrap();
    assert_eq!(said, "up\n", "the guest's root folder cannot be made");
    unshare
}

/// nix-daemon, as far as the script sees it.
pub(super) struct Daemon {
    listener: UnixListener,
}

impl Daemon {
    /// The next connection; reading and writing have a deadline.
    #[track_caller]
    pub(super) fn accept(&self) -> UnixStream {
        let mut accepted = None;
        common::until("somebody connects to nix-daemon", String::new, || {
            accepted = self.listener.accept().ok();
            accepted.is_some()
        });
        let (stream, _) = accepted.unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Whether nobody has connected.
    pub(super) fn is_alone(&self) -> bool {
        self.listener.accept().is_err()
    }
}

/// A program in the guest.
pub(super) struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// Waits for its end; what it printed.
    #[track_caller]
    pub(super) fn said(mut self) -> Said {
        let code = common::ended(&mut self.child);
        Said {
            code,
            stdout: fs::read_to_string(self.stdout).unwrap(),
            stderr: fs::read_to_string(self.stderr).unwrap(),
        }
    }
}
