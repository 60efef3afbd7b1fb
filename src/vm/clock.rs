//! The guest's clock, set to the host's.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};

use super::agent::Agent;

/// It is set within milliseconds of being read, unless the host is starved meanwhile.
const TOLERANCE: Duration = Duration::from_millis(500);

/// How often it is set on a host that is too busy to do it in time.
const ATTEMPTS: u32 = 20;

/// Sets the guest's clock until it is right.
pub(super) async fn set(agent: &Agent) -> anyhow::Result<()> {
    for _ in 0..ATTEMPTS {
        agent.set_clock(now()?).await?;
        let before = now()?;
        let clock = agent.clock().await?;
        let after = now()?;
        if clock + TOLERANCE > before && clock < after + TOLERANCE {
            return Ok(());
        }
    }
    bail!(
        "the guest's clock does not keep the time it is given, or this machine is too busy to set it"
    )
}

fn now() -> anyhow::Result<Duration> {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .context("the host's clock is before 1970")
}
