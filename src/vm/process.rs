//! QEMU's process: a group of its own, always reaped, its last words kept.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;

use super::alive;
use super::console::{self, KilledProcesses};
use super::guest_text::quoted;
use super::wait::within;

/// Where memory runs out, the kernel ends a QEMU before a program that is half the machine's memory smaller (proc(5)), the manager
/// among them.
const OOM_SCORE: &str = "500";

/// How much of QEMU's standard error is kept.
const LAST_LINES: usize = 20;

/// A longer line is cut; QEMU's own are shorter.
const LINE_LIMIT: u64 = 4096;

/// Pipes end with the last process that holds them, and QEMU has no children.
const PIPES_LIMIT: Duration = Duration::from_millis(300);

/// A QEMU that was started.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    stderr: JoinHandle<Vec<String>>,
    console: JoinHandle<()>,
    /// Until somebody listens.
    killed: Option<KilledProcesses>,
}

impl Process {
    /// Starts QEMU, whose private folder this is; its console is recorded in `console_log`.
    pub(super) fn spawn(
        program: &Path,
        arguments: &[OsString],
        folder: &Path,
        console_log: &Path,
    ) -> anyhow::Result<Self> {
        let input = alive::input(folder)
            .with_context(|| format!("locking a file in `{}`", folder.display()))?;
        let mut child = Command::new(program)
            .args(arguments)
            // There are passwords in it, and what a guest gets out of QEMU it can read.
            .env_clear()
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            // The backstop when the runtime goes down under us; the group is what is killed otherwise.
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting `{}`", program.display()))?;
        if let Some(pid) = child.id()
            && let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE)
        {
            tracing::warn!(%error, "QEMU is not the first to go when memory runs out");
        }
        let stdout = child.stdout.take().context("QEMU has no console pipe")?;
        let stderr = child.stderr.take().context("QEMU has no error pipe")?;
        let (console, killed) = console::record(stdout, console_log)
            .with_context(|| format!("writing the console log `{}`", console_log.display()))?;
        Ok(Self {
            child,
            stderr: tokio::spawn(keep_last_lines(stderr)),
            console,
            killed: Some(killed),
        })
    }

    /// What its guest says of memory that ran out, for the first who asks.
    pub(super) fn killed(&mut self) -> Option<KilledProcesses> {
        self.killed.take()
    }

    /// Its number, unless it was reaped.
    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until QEMU has ended and is reaped. Cancel safe.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Kills QEMU's process group. Harmless when it has ended.
    pub(super) fn kill(&mut self) {
        // No id means that QEMU was reaped, and its number may be somebody else's by now.
        let pid = self.child.id().and_then(|id| id.try_into().ok());
        if let Some(pid) = pid.and_then(Pid::from_raw)
            && let Err(error) = kill_process_group(pid, Signal::KILL)
        {
            tracing::warn!(%error, "QEMU's process group could not be killed");
        }
    }

    /// What QEMU said last, and the console's log complete, after its end.
    pub(super) async fn last_words(self) -> Vec<String> {
        let (console, stderr) = tokio::join!(
            within("the console's end", PIPES_LIMIT, self.console),
            within("QEMU's standard error to end", PIPES_LIMIT, self.stderr),
        );
        if console.is_err() || stderr.is_err() {
            tracing::warn!("QEMU has ended but one of its pipes is still open");
        }
        stderr.ok().and_then(Result::ok).unwrap_or_default()
    }
}

async fn keep_last_lines(stderr: ChildStderr) -> Vec<String> {
    let mut reader = BufReader::new(stderr);
    let mut lines = VecDeque::new();
    let mut line = Vec::new();
    while let Ok(1..) = (&mut reader)
        .take(LINE_LIMIT)
        .read_until(b'\n', &mut line)
        .await
    {
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        // Of its guest, too: QEMU reports what guests do wrong.
        lines.push_back(quoted(&line));
        line.clear();
    }
    lines.into()
}

/// How a QEMU ended that nobody had asked to, in words.
pub(super) fn exit_in_words(status: ExitStatus, stderr: &[String]) -> String {
    let last = stderr.iter().rev().find(|line| !line.is_empty());
    match (status.signal(), status.code(), last) {
        (Some(signal), _, _) => format!("QEMU was killed by {}", signal_in_words(signal)),
        (None, Some(code), Some(last)) if code != 0 => {
            format!("QEMU exited with status {code}: {last}")
        }
        (None, Some(code), _) => format!("QEMU exited with status {code}"),
        (None, None, _) => format!("QEMU ended: {status}"),
    }
}

fn signal_in_words(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        // Its seccomp filter (`-sandbox`) ends QEMU with this one.
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    #[test]
    fn an_exit_is_told_in_words() {
        let said = [
            "qemu: first".to_owned(),
            "qemu: no /dev/kvm".to_owned(),
            String::new(),
        ];
        assert_eq!(
            exit_in_words(ExitStatus::from_raw(9), &said),
            "QEMU was killed by signal 9 (SIGKILL)"
        );
        assert_eq!(
            exit_in_words(ExitStatus::from_raw(40), &[]),
            "QEMU was killed by signal 40"
        );
        assert_eq!(
            exit_in_words(exited(1), &said),
            "QEMU exited with status 1: qemu: no /dev/kvm"
        );
        assert_eq!(exit_in_words(exited(0), &said), "QEMU exited with status 0");
    }

    async fn run(script: &str, console_log: &Path) -> (ExitStatus, Vec<String>) {
        let arguments = ["-c", script].map(OsString::from);
        let (shell, folder) = (Path::new("/bin/sh"), tempfile::tempdir().unwrap());
        let mut process = Process::spawn(shell, &arguments, folder.path(), console_log).unwrap();
        let status = process.wait().await.unwrap();
        (status, process.last_words().await)
    }

    #[tokio::test]
    async fn the_last_lines_of_standard_error_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let script = "for i in $(seq 30); do echo $i >&2; done; exit 3";
        let (status, stderr) = run(script, &dir.path().join("console")).await;
        assert_eq!(stderr.len(), LAST_LINES);
        assert_eq!(
            exit_in_words(status, &stderr),
            "QEMU exited with status 3: 30"
        );
    }

    #[tokio::test]
    async fn it_has_no_environment_and_is_the_first_to_go() {
        let dir = tempfile::tempdir().unwrap();
        let console_log = dir.path().join("console");
        // Its score is set just after its start.
        let script = "until [ $(cat /proc/$$/oom_score_adj) = 500 ]; do :; done; tr '\\0' '\\n' </proc/$$/environ; ls -l /proc/$$/fd";
        let (status, _) = run(script, &console_log).await;
        assert!(status.success());
        let said = std::fs::read_to_string(&console_log).unwrap();
        assert!(said.starts_with("total 0\n"), "{said}");
        assert!(
            said.contains("0 -> ") && said.contains("/alive\n"),
            "{said}"
        );
    }

    #[tokio::test]
    async fn a_kill_takes_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let console_log = dir.path().join("console");
        let arguments = ["-c", "sleep 1000 & wait"].map(OsString::from);
        let shell = Path::new("/bin/sh");
        let mut process = Process::spawn(shell, &arguments, dir.path(), &console_log).unwrap();
        process.kill();
        assert_eq!(process.wait().await.unwrap().signal(), Some(9));
        // The pipes end at once only if the sleeper is gone as well.
        within(
            "both to be gone",
            Duration::from_secs(1),
            process.last_words(),
        )
        .await
        .unwrap();
    }
}
