//! When a VM can serve: a list of requirements, met in this order, each with a name and a hint.

use std::time::Duration;

use anyhow::Context as _;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::hop::Hop;
use super::port_state::SessionFailed;
use super::wait::{Pace, within};
use crate::nix::handshake::{CLIENT_MAGIC, SERVER_MAGIC};

/// A daemon that runs answers at once; its first start reads a few MB from the disk.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(30);

/// Something that a VM needs before it can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Requirement {
    QemuAnswers,
    StateIsRestored,
    AgentAnswers,
    ClockIsSet,
    IsThawed,
    DaemonAnswers,
    StoreIsThere,
}

impl Requirement {
    /// What is going on while it is not met.
    pub(super) fn stage(self) -> &'static str {
        match self {
            Self::QemuAnswers => "starting QEMU",
            Self::StateIsRestored => "restoring the guest",
            Self::AgentAnswers => "waiting for the guest agent",
            Self::ClockIsSet => "setting the guest's clock",
            Self::IsThawed => "thawing the guest",
            Self::DaemonAnswers => "waiting for the nix-daemon",
            Self::StoreIsThere => "sharing the store with the guest",
        }
    }

    /// What to look at when it is not met.
    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::QemuAnswers => "is this machine out of memory or processor time?",
            Self::AgentAnswers => {
                "the console shows how far the guest got; a slow machine needs a longer boot timeout"
            }
            Self::StateIsRestored => {
                "`template = false` in xpool.toml boots every VM from its image"
            }
            Self::ClockIsSet => "the guest's agent must allow `guest-set-time`",
            Self::StoreIsThere => {
                "the image may be damaged: `xpool image verify`; `store.share = \"none\"` in xpool.toml does without"
            }
            Self::IsThawed => {
                "the image may be older than this xpool, or damaged: `xpool image verify`"
            }
            Self::DaemonAnswers => {
                "the console shows what nix-daemon says; the image may be damaged: `xpool image verify`"
            }
        }
    }
}

/// How far a boot has come.
#[derive(Clone, Debug)]
pub(super) struct Unmet {
    /// What is waited for.
    pub(super) requirement: Requirement,
    /// Why the last attempt at it failed.
    pub(super) last_failure: Option<String>,
}

impl Unmet {
    /// Nothing was tried yet.
    pub(super) fn new(requirement: Requirement) -> Self {
        Self {
            requirement,
            last_failure: None,
        }
    }
}

/// Waits until the guest's nix-daemon has answered the greeting of its protocol over a hop, and gives that hop; `failed` is
/// told of each attempt in vain.
pub(super) async fn daemon_answers<H>(
    open_hop: impl Fn() -> H,
    failed: impl Fn(String),
) -> anyhow::Result<Hop>
where
    H: Future<Output = anyhow::Result<Hop>>,
{
    // The agent may be up before the daemon listens, and a session that finds no daemon ends at once.
    let mut pace = Pace::new(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        let failure = match open_hop().await {
            Ok(hop) => match within("the nix-daemon's answer", HANDSHAKE_LIMIT, greet(hop)).await {
                Ok(Ok(hop)) => return Ok(hop),
                Ok(Err(error)) => format!("no answer: {error}"),
                Err(error) => error.to_string(),
            },
            Err(error) if error.is::<SessionFailed>() => format!("{error:#}"),
            Err(error) => return Err(error),
        };
        tracing::debug!(error = failure, "no nix-daemon yet");
        failed(failure);
        pace.pause().await;
    }
}

/// The same with one attempt, for a daemon that was there when its guest was saved.
pub(super) async fn daemon_still_answers(
    hop: impl Future<Output = anyhow::Result<Hop>>,
) -> anyhow::Result<Hop> {
    let answered = within(
        "the nix-daemon's answer",
        HANDSHAKE_LIMIT,
        greet(hop.await?),
    );
    answered.await?.context("asking the nix-daemon")
}

async fn greet(mut hop: Hop) -> std::io::Result<Hop> {
    let mut answer = [0; 16];
    hop.stream.write_all(&CLIENT_MAGIC.to_le_bytes()).await?;
    hop.stream.read_exact(&mut answer).await?;
    if !answer.starts_with(&SERVER_MAGIC.to_le_bytes()) {
        return Err(std::io::Error::other(format!("it answered {answer:x?}")));
    }
    // Its version is for who uses the hop.
    hop.greeted = answer.to_vec();
    Ok(hop)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn attempts_in_vain_are_told_until_the_daemon_answers() {
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..2).map(|_| UnixStream::pair().unwrap()).unzip();
        for (guest, magic) in theirs.iter().zip([7_u64, SERVER_MAGIC]) {
            let answer = [magic, 0x126].map(u64::to_le_bytes).concat();
            assert_eq!(guest.try_write(&answer).unwrap(), answer.len());
        }
        let hops = RefCell::new(ours.into_iter());
        let open_hop = async || {
            let stream = hops.borrow_mut().next().context("no more hops")?;
            Ok(Hop::new(stream))
        };
        let told = RefCell::new(Vec::new());
        let answered = daemon_answers(open_hop, |failure| told.borrow_mut().push(failure)).await;
        assert_eq!(answered.unwrap().greeted[8..], 0x126_u64.to_le_bytes());
        assert_eq!(
            told.into_inner(),
            ["no answer: it answered [7, 0, 0, 0, 0, 0, 0, 0, 26, 1, 0, 0, 0, 0, 0, 0]"]
        );
    }
}
