//! The manager's end of the control API.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::owners::Owners;
use super::{Drain, Info, TakeDown, Up};
use crate::manager::status::Status;
use crate::manager::ticket::ManagerGone;
use crate::manager::{Downed, ManagerHandle};
use crate::metrics;
use crate::nix::System;
use crate::pool::Down;
use crate::shutdown::Shutdown;

struct Api {
    info: Info,
    manager: ManagerHandle,
    shutdown: Shutdown,
}

type Failure = (StatusCode, String);

/// Serves the API until `end` is cancelled; requests that are being answered are answered first.
pub async fn serve(
    listener: UnixListener,
    info: Info,
    manager: ManagerHandle,
    shutdown: Shutdown,
    end: CancellationToken,
) -> std::io::Result<()> {
    let api = Arc::new(Api {
        info,
        manager,
        shutdown,
    });
    let router = Router::new()
        .route(
            "/v1/info",
            get(async |State(api): State<Arc<Api>>| Json(api.info.clone())),
        )
        .route("/v1/status", get(status))
        .route("/metrics", get(metrics))
        .route("/v1/watch", get(watch))
        .route("/v1/events", get(events))
        .route("/v1/up", post(up))
        .route("/v1/drain", post(drain))
        .route("/v1/down", post(down))
        .with_state(api);
    axum::serve(Owners(listener), router)
        .with_graceful_shutdown(end.cancelled_owned())
        .await
}

async fn status(State(api): State<Arc<Api>>) -> Result<Json<Status>, Failure> {
    let status = api.manager.measured_status().await;
    status.map(Json).map_err(gone)
}

async fn metrics(State(api): State<Arc<Api>>) -> impl IntoResponse {
    metrics::server::answer(State(api.manager.clone())).await
}

async fn watch(State(api): State<Arc<Api>>) -> Body {
    let changes = api.manager.changes();
    let lines = futures::stream::unfold((changes, true), async |(mut changes, first)| {
        if !first {
            // Ends with the manager.
            changes.changed().await.ok()?;
        }
        let line = line(&*changes.borrow_and_update())?;
        Some((Ok::<_, Infallible>(Bytes::from(line)), (changes, false)))
    });
    Body::from_stream(lines)
}

async fn events(State(api): State<Arc<Api>>) -> Result<Body, Failure> {
    let events = api.manager.events().map_err(gone)?;
    let lines = futures::stream::unfold(events, async |mut events| {
        // Ends with the manager. While the caller does not read, nothing is taken; what it misses that way it is told.
        let event = events.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(line(&*event)?)), events))
    });
    Ok(Body::from_stream(lines))
}

/// JSON on one line.
fn line(value: &impl Serialize) -> Option<Vec<u8>> {
    let mut line = serde_json::to_vec(value).ok()?;
    line.push(b'\n');
    Some(line)
}

async fn up(State(api): State<Arc<Api>>, Json(up): Json<Up>) -> Result<(), Failure> {
    if api.shutdown.drain.is_cancelled() {
        return Err(gone(ManagerGone));
    }
    api.manager.up(up.system, up.count).await.map_err(gone)
}

async fn drain(State(api): State<Arc<Api>>, Json(drain): Json<Drain>) -> Result<(), Failure> {
    let drained = api.manager.drain(&drain.vm).await.map_err(gone)?;
    drained.map_err(|error| (StatusCode::NOT_FOUND, error.to_string()))
}

async fn down(State(api): State<Arc<Api>>, Json(down): Json<TakeDown>) -> Result<(), Failure> {
    if let Some(system) = down.system {
        let downed = api
            .manager
            .down(vec![system], down.how)
            .await
            .map_err(gone)?;
        return match downed {
            Downed::Down => Ok(()),
            Downed::BroughtUp => Err((
                StatusCode::CONFLICT,
                format!("somebody wanted {system} up again"),
            )),
        };
    }
    match down.how {
        Down::Drain => api.shutdown.drain.cancel(),
        Down::Now => api.shutdown.end_now(),
    }
    // A manager that has gone meanwhile has done what was wanted.
    let _ = api.manager.down(System::ALL.to_vec(), down.how).await;
    Ok(())
}

fn gone(error: ManagerGone) -> Failure {
    (StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}
