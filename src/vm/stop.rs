//! The stop ladder: each step is tried when the one before it has not ended the VM in its time.

use std::sync::Arc;
use std::time::Duration;

use super::agent::Agent;
use super::machine::{Machine, Wish};
use super::qmp::Qmp;

/// The agent refuses a shutdown at once, if it does.
const REFUSAL_LIMIT: Duration = Duration::from_secs(2);

/// `quit` ends QEMU within milliseconds, unless the host's disk hangs.
const QUIT_LIMIT: Duration = Duration::from_secs(5);

/// Stops a VM: shutdown by its agent for two thirds of `grace`, its power button for the rest, `quit`, kill.
pub(super) async fn power_down(machine: Arc<Machine>, agent: Agent, qmp: Qmp, grace: Duration) {
    let third = grace / 3;
    let by_agent = shut_down(&agent);
    if ended_within(&machine, third * 2, by_agent).await {
        return;
    }
    let button = qmp.execute(qapi::qmp::system_powerdown {});
    if ended_within(&machine, third, button).await {
        return;
    }
    tracing::debug!("the guest does not shut down, ending QEMU");
    quit(&machine, &qmp).await;
}

/// Ends QEMU without asking its guest.
pub(super) async fn quit(machine: &Machine, qmp: &Qmp) {
    let quit = async {
        // QEMU may be gone before its answer is read.
        let _ = qmp.execute(qapi::qmp::quit {}).await;
        Ok(())
    };
    if ended_within(machine, QUIT_LIMIT, quit).await {
        return;
    }
    tracing::warn!("QEMU does not quit, killing it");
    machine.wish(Wish::Kill);
}

async fn shut_down(agent: &Agent) -> anyhow::Result<()> {
    agent.shut_down(REFUSAL_LIMIT).await
}

/// Takes a step, and says whether the VM has ended within `limit`. A step that fails leaves its time to the next one.
async fn ended_within(
    machine: &Machine,
    limit: Duration,
    step: impl Future<Output = anyhow::Result<impl Sized>>,
) -> bool {
    let waiting = async {
        tokio::select! {
            _ = machine.ended() => return true,
            outcome = step => if let Err(error) = outcome {
                tracing::debug!(error = format!("{error:#}"), "step of the stop ladder failed");
                return false;
            },
        }
        machine.ended().await;
        true
    };
    tokio::time::timeout(limit, waiting).await.unwrap_or(false)
}
