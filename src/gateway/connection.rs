//! One SSH connection: from accept to its end, whoever ends it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use russh::server::RunningSession;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::handler::Handler;
use super::lifeline::Lifeline;
use super::{Room, Shared};

/// How long a peer may leave bytes unacknowledged: as long as it may leave keepalives unanswered.
const UNACKNOWLEDGED: Duration = Duration::from_secs(300);

/// Serves one connection. Cancelling `cut` ends it.
pub(super) async fn run(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    room: Room,
    cut: CancellationToken,
) {
    let Room { connection, login } = room;
    let deadline = Instant::now() + shared.config.limits.login_grace;
    // What the sessions of this connection live on. Ended here or, when russh ends first, by the handler's end.
    let alive = CancellationToken::new();
    let logged_in = CancellationToken::new();
    let handler = Handler::new(
        Arc::clone(&shared),
        peer,
        alive.clone(),
        logged_in.clone(),
        login,
    );
    let starting = start(stream, cut.clone(), &shared, handler);
    let mut running = match timeout_at(deadline, starting).await {
        Ok(Ok(running)) => running,
        Ok(Err(error)) => {
            return tracing::debug!(%peer, %error, "a connection did not get to its login");
        }
        Err(_) => return tracing::debug!(%peer, "a connection sent no SSH greeting in time"),
    };
    let is_over = tokio::select! {
        () = ended(&mut running, peer) => true,
        () = late(deadline, &logged_in) => {
            tracing::debug!(%peer, "a connection did not log in in time");
            false
        }
        () = cut.cancelled() => false,
    };
    alive.cancel();
    if !is_over {
        cut.cancel();
        ended(&mut running, peer).await;
    }
    drop(connection);
}

/// Hands the socket to russh, which returns when it has the client's greeting.
async fn start(
    stream: TcpStream,
    cut: CancellationToken,
    shared: &Shared,
    handler: Handler,
) -> Result<RunningSession<Handler>, russh::Error> {
    stream.set_nodelay(true)?;
    let unacknowledged_ms = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(&stream, unacknowledged_ms)
        .map_err(std::io::Error::from)?;
    let stream = Lifeline::new(stream, cut);
    russh::server::run_stream(Arc::clone(&shared.ssh), stream, handler).await
}

async fn ended(running: &mut RunningSession<Handler>, peer: SocketAddr) {
    if let Err(error) = running.await {
        tracing::debug!(%peer, %error, "a connection ended");
    }
}

/// Resolves at the deadline, unless the client has logged in before.
async fn late(deadline: Instant, logged_in: &CancellationToken) {
    if timeout_at(deadline, logged_in.cancelled()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}
