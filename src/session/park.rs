//! A session that waits for its VM: tells the person who waits, and notices when the client gives up.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};

use super::client::Client;
use crate::manager::ticket::{Grant, SessionTicket, SessionUpdate};
use crate::nix::System;

/// How often the person who waits sees that the wait is still on, when nothing changes.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// A shorter wait is not worth a line: most clones are there before.
const SILENCE: Duration = Duration::from_secs(1);

/// A start has many stages and a queue moves often, and a person reads one line at a time.
const BETWEEN_LINES: Duration = Duration::from_secs(2);

/// What the manager no longer answers means for a session.
pub(super) fn manager_gone(vm: Option<&str>) -> String {
    let vm = vm.map_or(String::new(), |vm| format!(", and {vm} with it"));
    format!(
        "xpool: the manager has ended{vm}: `xpool logs` shows what it said; start it again with `xpool up`, then build again"
    )
}

/// How a wait ended.
#[derive(Debug)]
pub(super) enum Parked {
    Granted(Grant),
    Left,
    Failed(String),
}

enum News {
    Update(Option<SessionUpdate>),
    Left,
    LineIsDue,
}

/// Waits until the session has a VM, is refused one, or the client leaves.
pub(super) async fn park<R, W>(
    client: &mut Client<R, W>,
    ticket: &mut SessionTicket,
    system: System,
) -> Parked
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut wait = Wait::new(format!("waiting for a {system} VM"));
    loop {
        let news = tokio::select! {
            update = ticket.next() => News::Update(update),
            () = client.left() => News::Left,
            () = sleep_until(wait.next_line) => News::LineIsDue,
        };
        match news {
            News::Update(Some(SessionUpdate::Waiting(text))) => wait.is_for(text),
            // Of a VM that it has no use of yet.
            News::Update(Some(SessionUpdate::Note(_))) => {}
            News::LineIsDue => client.say(&wait.line()).await,
            News::Update(Some(SessionUpdate::Granted(grant))) => {
                if wait.said.is_some() {
                    client.say(&format!("xpool: {} is ready", grant.vm)).await;
                }
                return Parked::Granted(grant);
            }
            News::Update(Some(SessionUpdate::Rejected(text))) => {
                return Parked::Failed(format!("xpool: {text}"));
            }
            News::Update(Some(SessionUpdate::VmGone { vm, cause, log })) => {
                return Parked::Failed(died_before_use(&vm, &cause, &log));
            }
            News::Update(None) => return Parked::Failed(manager_gone(None)),
            News::Left => return Parked::Left,
        }
    }
}

/// What the person who waits is told, and when.
struct Wait {
    since: Instant,
    /// What it waits for now.
    reason: String,
    /// What was said last, if anything.
    said: Option<String>,
    last_line: Instant,
    next_line: Instant,
}

impl Wait {
    fn new(reason: String) -> Self {
        let since = Instant::now();
        Self {
            since,
            reason,
            said: None,
            last_line: since,
            next_line: since + SILENCE,
        }
    }

    /// Takes note of what it waits for. Where something was said before, the news is said soon.
    fn is_for(&mut self, reason: String) {
        self.reason = reason;
        if self.said.as_ref().is_some_and(|said| *said != self.reason) {
            self.next_line = self.next_line.min(self.last_line + BETWEEN_LINES);
        }
    }

    /// The line that is due.
    fn line(&mut self) -> String {
        let now = Instant::now();
        let waited_s = now.duration_since(self.since).as_secs();
        let is_news = self.said.as_ref() != Some(&self.reason);
        self.said = Some(self.reason.clone());
        self.last_line = now;
        self.next_line = now + SIGN_OF_LIFE;
        let reason = &self.reason;
        if is_news {
            format!("xpool: {reason}")
        } else {
            format!("xpool: {reason} ({waited_s} s)")
        }
    }
}

/// The text for a session whose VM ended before anything was done in it.
pub(super) fn died_before_use(vm: &str, cause: &str, log: &std::path::Path) -> String {
    let log = log.display();
    format!("xpool: {vm} ended before the build began: {cause}; its console is in {log}")
}
