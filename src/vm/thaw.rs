//! Makes a restored guest one of its own: fresh randomness, its own names, the time of day.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::rand::{GetRandomFlags, getrandom};

use super::agent::Agent;
use super::clock;
use super::guest_text::quoted;
use super::port::GUEST_PROGRAM;
use super::wait::within;

/// Twice what the kernel's generator holds (`BLAKE2S_HASH_SIZE` of random.c).
const ENTROPY_BYTES: usize = 64;

/// A few processes in the guest: 0.2 s on a quiet machine.
const THAW_LIMIT: Duration = Duration::from_secs(60);

/// Thaws a guest that was just restored and runs. No session may be let in before.
pub(super) async fn thaw(agent: &Agent, name: &str) -> anyhow::Result<()> {
    let entropy = entropy()?;
    let args = ["thaw", name];
    let program = agent
        .start_with_input(GUEST_PROGRAM, &args, Some(&entropy))
        .await?;
    // Beside it: the guest has a processor to spare.
    clock::set(agent).await?;
    let output = within(
        "the guest to thaw",
        THAW_LIMIT,
        agent.finished_soon(program),
    )
    .await??;
    ensure!(
        output.status == Some(0),
        "`{GUEST_PROGRAM} thaw` failed in the guest: {}",
        quoted(&output.stderr)
    );
    Ok(())
}

/// Random bytes that no other guest gets.
fn entropy() -> anyhow::Result<[u8; ENTROPY_BYTES]> {
    let mut bytes = [0; ENTROPY_BYTES];
    let length = getrandom(&mut bytes, GetRandomFlags::empty()).context("asking for entropy")?;
    ensure!(length == ENTROPY_BYTES, "the host gave too little entropy");
    Ok(bytes)
}
