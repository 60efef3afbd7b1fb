//! The process that has had a helper started: Nix's build hook, one for each build. All its helpers come for the same build.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often a process is looked for. The kernel tells of the end of a process that is not a child by a descriptor, and tokio
/// takes no descriptor that it does not know without unsafe code.
const LOOK: Duration = Duration::from_millis(250);

/// What Nix up to 2.19 starts a helper through. Most of them become what they start.
const SHELLS: [&str; 3] = ["bash", "dash", "sh"];

/// A process that has helpers. Numbers are used again, and the time of a start tells one process from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hook {
    pid: i32,
    started: u64,
}

impl Hook {
    /// That of a helper; `None` where nobody can tell, as from another namespace.
    pub(super) fn of(helper: i32) -> Option<Self> {
        let mut pid = Process::read(helper)?.parent;
        let mut process = Process::read(pid)?;
        if SHELLS.contains(&process.name.as_str()) {
            pid = process.parent;
            process = Process::read(pid)?;
        }
        let started = process.started;
        Some(Self { pid, started })
    }

    /// What the sessions of its helpers have in common, as
    /// [`SessionRequest::seat`](crate::manager::ticket::SessionRequest).
    pub(super) fn seat(self, slot: &str) -> String {
        let Self { pid, started } = self;
        format!("{slot} of process {pid}, started at {started}")
    }

    /// Returns when it has ended. Cancel safe.
    pub(super) async fn gone(self) {
        while Process::read(self.pid).is_some_and(|process| process.started == self.started) {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Processes whose end somebody waits for: one task looks for each of them, however much is kept for it.
#[derive(Debug)]
pub(super) struct Watched<T> {
    kept: Arc<Mutex<BTreeMap<Hook, BTreeSet<T>>>>,
}

impl<T: Ord + Send + 'static> Watched<T> {
    /// Of no process yet.
    pub(super) fn new() -> Self {
        Self {
            kept: Arc::default(),
        }
    }

    /// Calls `gone` with this when a process has ended; once, however often it was kept.
    pub(super) fn keep(&self, hook: Hook, what: T, gone: impl Fn(T) + Send + 'static) {
        let mut kept = self.lock();
        let is_new = !kept.contains_key(&hook);
        kept.entry(hook).or_default().insert(what);
        if !is_new {
            return;
        }
        let watched = Self {
            kept: Arc::clone(&self.kept),
        };
        tokio::spawn(async move {
            hook.gone().await;
            let all = watched.lock().remove(&hook).unwrap_or_default();
            all.into_iter().for_each(gone);
        });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Hook, BTreeSet<T>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the kernel says of a process (`/proc/PID/stat`).
struct Process {
    name: String,
    parent: i32,
    /// In ticks since the machine's start.
    started: u64,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The name is the second field, in parentheses, and may have anything in it.
        let (numbered, rest) = stat.rsplit_once(')')?;
        let (_, name) = numbered.split_once('(')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        Some(Self {
            name: name.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_name_may_have_parentheses_and_blanks() {
        let stat = "12 (a) b (c) S 7 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        let process = Process::parse(stat).unwrap();
        assert_eq!(
            (process.name.as_str(), process.parent, process.started),
            ("a) b (c", 7, 4711)
        );
    }

    #[tokio::test]
    async fn a_helpers_hook_is_the_process_before_a_shell_and_its_end_is_seen() {
        // A shell that stays beside what it starts.
        let mut shell = Command::new("sh")
            .args(["-c", "cat; true"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        let children = format!("/proc/{pid}/task/{pid}/children");
        let child = loop {
            let children = std::fs::read_to_string(&children).unwrap();
            if let Some(child) = children.split_whitespace().next() {
                break child.parse().unwrap();
            }
        };
        let this = i32::try_from(std::process::id()).unwrap();
        assert_eq!(Hook::of(child).unwrap().pid, this);
        let started = Process::read(pid).unwrap().started;
        let hook = Hook { pid, started };
        assert!(
            hook.seat("riscv64-00")
                .starts_with("riscv64-00 of process ")
        );
        let moment = Duration::from_millis(50);
        tokio::time::timeout(moment, hook.gone()).await.unwrap_err();
        drop(shell.stdin.take());
        shell.wait().unwrap();
        tokio::time::timeout(Duration::from_secs(60), hook.gone())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_process_is_looked_for_once_and_each_thing_is_told_once() {
        let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(sleeper.id()).unwrap();
        let started = Process::read(pid).unwrap().started;
        let (watched, hook) = (Watched::new(), Hook { pid, started });
        let (told, mut hear) = tokio::sync::mpsc::unbounded_channel();
        let tasks = || {
            tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks()
        };
        let before = tasks();
        for seat in (0..1000).map(|n| n % 3) {
            let told = told.clone();
            watched.keep(hook, seat, move |seat| told.send(seat).unwrap());
        }
        assert_eq!(tasks(), before + 1);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        drop(told);
        let mut heard = Vec::new();
        while let Some(seat) = hear.recv().await {
            heard.push(seat);
        }
        assert_eq!(heard, [0, 1, 2]);
        assert!(watched.lock().is_empty());
    }
}
