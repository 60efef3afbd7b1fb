//! One channel's session: runs it, then tells the client's `ssh` how it ended.

use std::time::Duration;

use russh::ChannelWriteHalf;
use russh::server::Msg;
use tokio::time::timeout;

use super::channels::Begun;
use crate::manager::ticket::{SessionDesk, SessionRequest};
use crate::nix::handshake::Promise;
use crate::session::account::Charge;
use crate::session::{self, Outcome};

/// The extended data that `ssh` writes to its standard error (RFC 4254, 5.2).
pub(super) const STDERR: u32 = 1;

/// The exit status of what failed.
pub(super) const FAILED: u32 = 1;

/// How long a client may take to let itself be told. One that reads nothing is not told.
const TELLING: Duration = Duration::from_secs(2);

/// Serves a session on a channel until it ends or the client has closed it. What the session holds beside is charged.
pub(super) async fn run(
    channel: Begun,
    charge: Charge,
    desk: SessionDesk,
    request: SessionRequest,
    promise: Promise,
) {
    let Begun {
        reader,
        writer,
        closed,
        place: _place,
    } = channel;
    let (slot, client) = (request.slot.clone(), request.client.clone());
    let session = session::serve(
        reader,
        writer.make_writer(),
        charge,
        &desk,
        request,
        &promise,
    );
    let served = closed.run_until_cancelled(session).await;
    tracing::debug!(slot, client, outcome = ?served, "session ended");
    let Some(outcome) = served else {
        return;
    };
    let told = timeout(TELLING, finish(&writer, &outcome));
    // Fails when the client has gone, which is as good.
    let _ = closed.run_until_cancelled(told).await;
}

async fn finish(channel: &ChannelWriteHalf<Msg>, outcome: &Outcome) -> Result<(), russh::Error> {
    if let Some(lines) = outcome.stderr_lines() {
        channel
            .extended_data_bytes(STDERR, lines.into_bytes())
            .await?;
    }
    let status = if outcome.has_failed() { FAILED } else { 0 };
    channel.exit_status(status).await?;
    channel.eof().await?;
    channel.close().await
}
