//! When a VM can serve: a list of requirements, met in this order, each with a name and a hint.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::agent::Agent;
use super::hop::Hop;
use super::port::SessionFailed;
use super::wait::{Pace, within};
use crate::nix::handshake::{CLIENT_MAGIC, SERVER_MAGIC};

/// A daemon that runs answers at once; its first start reads a few MB from the disk.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(30);

/// Something that a VM needs before it can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Requirement {
    QemuAnswers,
    AgentAnswers,
    ClockIsSet,
    DaemonAnswers,
}

impl Requirement {
    /// What is going on while it is not met.
    pub(super) fn stage(self) -> &'static str {
        match self {
            Self::QemuAnswers => "starting QEMU",
            Self::AgentAnswers => "waiting for the guest agent",
            Self::ClockIsSet => "setting the guest's clock",
            Self::DaemonAnswers => "waiting for the nix-daemon",
        }
    }

    /// What to look at when it is not met.
    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::QemuAnswers => "is this machine out of memory or processor time?",
            Self::AgentAnswers => {
                "the console shows how far the guest got; a slow machine needs a longer boot timeout"
            }
            Self::ClockIsSet => "the guest's agent must allow `guest-set-time`",
            Self::DaemonAnswers => {
                "the console shows what nix-daemon says; the image may be damaged: `xpool image verify`"
            }
        }
    }
}

/// Sets the guest's clock to the host's.
pub(super) async fn set_clock(agent: &Agent) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    agent
        .set_clock(now.context("the host's clock is before 1970")?)
        .await
}

/// Waits until the guest's nix-daemon has answered the greeting of its protocol over a hop.
pub(super) async fn daemon_answers<H>(open_hop: impl Fn() -> H) -> anyhow::Result<()>
where
    H: Future<Output = anyhow::Result<Hop>>,
{
    // The agent may be up before the daemon listens, and a session that finds no daemon ends at once.
    let mut pace = Pace::new(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        match open_hop().await {
            Ok(hop) => match within("the nix-daemon's answer", HANDSHAKE_LIMIT, greet(hop)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => tracing::debug!(%error, "no answer from the nix-daemon yet"),
                Err(error) => tracing::debug!(%error, "no answer from the nix-daemon yet"),
            },
            Err(error) if error.is::<SessionFailed>() => {
                tracing::debug!(error = format!("{error:#}"), "no nix-daemon yet");
            }
            Err(error) => return Err(error),
        }
        pace.pause().await;
    }
}

async fn greet(hop: Hop) -> std::io::Result<()> {
    let mut stream = hop.stream;
    stream.write_all(&CLIENT_MAGIC.to_le_bytes()).await?;
    let magic = stream.read_u64_le().await?;
    if magic != SERVER_MAGIC {
        return Err(std::io::Error::other(format!("it answered {magic:#x}")));
    }
    stream.read_u64_le().await.map(drop)
}
