//! One SSH connection: from accept to its end, whoever ends it.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use russh::server::RunningSession;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::handler::Handler;
use super::lifeline::Lifeline;
use super::lobby::Place;
use super::{Shared, ssh};

/// The time for a login passes in steps of this. Each ends when this process gets its turn, however late that is, so that
/// many logins at once on a busy machine do not run out of time together.
const STEP: Duration = Duration::from_millis(250);

/// Serves one connection. Cancelling `cut` ends it.
pub(super) async fn run(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    place: Place,
    cut: CancellationToken,
) {
    // What the sessions of this connection live on. Ended here or, when russh ends first, by the handler's end.
    let alive = CancellationToken::new();
    let logged_in = CancellationToken::new();
    let place = Arc::new(place);
    let handler = Handler::new(
        Arc::clone(&shared),
        peer,
        alive.clone(),
        logged_in.clone(),
        Arc::clone(&place),
    );
    let mut late = pin!(late(shared.config.limits.login_grace, &logged_in));
    let starting = start(stream, cut.clone(), &shared, handler);
    let started = tokio::select! {
        started = starting => started,
        () = &mut late => return tracing::debug!(%peer, "a connection sent no SSH greeting in time"),
    };
    let mut running = match started {
        Ok(running) => running,
        Err(error) => {
            return tracing::debug!(%peer, %error, "a connection did not get to its login");
        }
    };
    place.got_further();
    let is_over = tokio::select! {
        () = ended(&mut running, peer) => true,
        () = &mut late => {
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
}

/// Hands the socket to russh, which returns when it has the client's greeting.
async fn start(
    stream: TcpStream,
    cut: CancellationToken,
    shared: &Shared,
    handler: Handler,
) -> Result<RunningSession<Handler>, russh::Error> {
    stream.set_nodelay(true)?;
    // A peer may leave bytes unacknowledged for as long as keepalives unanswered: nothing is asked while bytes are stuck.
    let silence = ssh::longest_silence(shared.config.limits.keepalive);
    let unacknowledged_ms = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
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

/// Resolves when the time for a login has passed, unless the client has logged in before.
async fn late(grace: Duration, logged_in: &CancellationToken) {
    let mut left = grace;
    while !left.is_zero() {
        let step = left.min(STEP);
        if timeout(step, logged_in.cancelled()).await.is_ok() {
            std::future::pending::<()>().await;
        }
        left -= step;
    }
}
