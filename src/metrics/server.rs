//! Metrics for Prometheus, which comes by HTTP over TCP. Whoever can connect may read them, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::accept;
use crate::manager::ManagerHandle;
use crate::manager::ticket::ManagerGone;

/// Connections at a time; further ones wait. Prometheus has one.
const MOST_CONNECTIONS: usize = 8;

/// How long a connection may be there, whatever it does: Prometheus gives up after ten seconds by default.
const LONGEST: Duration = Duration::from_secs(30);

/// How long a connection may take to ask: less than Prometheus waits, however many say nothing.
const ASKING: Duration = Duration::from_secs(3);

/// The manager's metrics of this moment.
pub async fn of(manager: &ManagerHandle) -> Result<String, ManagerGone> {
    let status = manager.measured_status().await?;
    Ok(super::text(env!("CARGO_PKG_VERSION"), status))
}

/// Serves `/metrics` until `end` is cancelled.
pub async fn serve(listener: TcpListener, manager: ManagerHandle, end: CancellationToken) {
    let router = Router::new()
        .route("/metrics", get(answer))
        .with_state(manager);
    tokio::select! {
        () = end.cancelled() => {}
        () = accept_forever(&listener, &router) => {}
    }
}

/// The answer to a request for metrics.
pub async fn answer(State(manager): State<ManagerHandle>) -> impl IntoResponse {
    match of(&manager).await {
        Ok(text) => Ok(([(header::CONTENT_TYPE, super::CONTENT_TYPE)], text)),
        Err(gone) => Err((StatusCode::SERVICE_UNAVAILABLE, gone.to_string())),
    }
}

async fn accept_forever(listener: &TcpListener, router: &Router) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    while let Ok(place) = room.clone().acquire_owned().await {
        let (stream, _) = accept::next("metrics", |cx| listener.poll_accept(cx)).await;
        let router = router.clone();
        tokio::spawn(async move {
            serve_one(stream, router).await;
            drop(place);
        });
    }
}

async fn serve_one(stream: TcpStream, router: Router) {
    let service = TowerToHyperService::new(router);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(ASKING);
    let served = http.serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(LONGEST, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection for metrics broke"),
        Err(_) => debug!("a connection for metrics was there for too long"),
    }
}
