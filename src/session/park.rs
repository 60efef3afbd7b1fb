//! A session that waits for its VM: tells the person who waits, and notices when the client gives up.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::client::Client;
use crate::manager::ticket::{SessionTicket, SessionUpdate};
use crate::nix::System;
use crate::vm::Hop;

/// How often the person who waits sees that the wait is still on, when nothing changes.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// What the manager no longer answers means for a session.
pub(super) const MANAGER_GONE: &str =
    "xpool: the manager has ended; start it again with `xpool up`, then build again";

/// How a wait ended.
#[derive(Debug)]
pub(super) enum Parked {
    Granted { vm: String, hop: Hop },
    Left,
    Failed(String),
}

enum News {
    Update(Option<SessionUpdate>),
    Left,
    StillWaiting,
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
    let since = Instant::now();
    let mut signs = signs_of_life(since);
    let mut told = false;
    let mut reason = format!("waiting for a {system} VM");
    loop {
        let news = tokio::select! {
            update = ticket.next() => News::Update(update),
            () = client.left() => News::Left,
            _ = signs.tick() => News::StillWaiting,
        };
        match news {
            News::Update(Some(SessionUpdate::Waiting(text))) if text == reason && told => {}
            News::Update(Some(SessionUpdate::Waiting(text))) => {
                client.say(&format!("xpool: {text}")).await;
                reason = text;
                told = true;
                signs.reset();
            }
            News::StillWaiting => {
                let waited_s = since.elapsed().as_secs();
                client.say(&format!("xpool: {reason} ({waited_s} s)")).await;
                told = true;
            }
            News::Update(Some(SessionUpdate::Granted { vm, hop })) => {
                if told {
                    client.say(&format!("xpool: {vm} is ready")).await;
                }
                return Parked::Granted { vm, hop };
            }
            News::Update(Some(SessionUpdate::Rejected(text))) => {
                return Parked::Failed(format!("xpool: {text}"));
            }
            News::Update(Some(SessionUpdate::VmGone { vm, cause, log })) => {
                return Parked::Failed(died_before_use(&vm, &cause, &log));
            }
            News::Update(None) => return Parked::Failed(MANAGER_GONE.to_owned()),
            News::Left => return Parked::Left,
        }
    }
}

/// The text for a session whose VM ended before anything was done in it.
pub(super) fn died_before_use(vm: &str, cause: &str, log: &std::path::Path) -> String {
    let log = log.display();
    format!("xpool: {vm} ended before the build began: {cause}; its console is in {log}")
}

fn signs_of_life(since: Instant) -> Interval {
    let mut signs = interval_at(since + SIGN_OF_LIFE, SIGN_OF_LIFE);
    signs.set_missed_tick_behavior(MissedTickBehavior::Delay);
    signs
}
