//! The places where a manager is come to: made by it, or given to it by who started it.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tokio::net::{TcpListener, UnixListener};
use tracing::warn;

use crate::activation::GivenSockets;
use crate::config::Config;
use crate::connect::place::LocalTransport;
use crate::paths::Paths;
use crate::state::listen_or_take;

/// An address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot listen on {listen}")]
pub struct CannotListen {
    /// For what.
    pub what: &'static str,
    /// The section of xpool.toml that has it.
    pub section: &'static str,
    /// The address.
    pub listen: SocketAddr,
    /// Why not.
    pub source: std::io::Error,
}

/// All of them.
pub(super) struct Sockets {
    pub(super) gateway: TcpListener,
    pub(super) control: UnixListener,
    pub(super) local: LocalTransport,
    pub(super) shells: UnixListener,
    pub(super) metrics: Option<TcpListener>,
    /// Those that the manager has made in the state folder, and removes at its end.
    pub(super) own: Vec<PathBuf>,
}

impl Sockets {
    /// Opens those that were not given. The state folder's lock is held.
    pub(super) async fn open(config: &Config, paths: &Paths, given: GivenSockets) -> Result<Self> {
        let gateway = match given.gateway {
            Some(given) => given
                .set_nonblocking(true)
                .and_then(|()| TcpListener::from_std(given))
                .context("using the socket given for the gateway")?,
            None => bind_gateway(config).await?,
        };
        let metrics = match config.metrics {
            Some(listen) => Some(bind(listen, "what serves metrics", "metrics").await?),
            None => None,
        };
        let own = [
            (given.control.is_none(), paths.control_socket()),
            (given.connect.is_none(), paths.connect_socket()),
            (given.shell.is_none(), paths.shell_socket()),
        ];
        let own = own
            .into_iter()
            .filter_map(|(is_own, path)| is_own.then_some(path));
        Ok(Self {
            own: own.collect(),
            control: listen_or_take(given.control, &paths.control_socket())?,
            local: LocalTransport::bind(config, paths, given.connect)?,
            shells: listen_or_take(given.shell, &paths.shell_socket())?,
            gateway,
            metrics,
        })
    }
}

/// Listens where the configuration says. Where it says nothing, the usual port may be that of another manager on this machine, or of
/// nixpkgs' linux-builder, and any other one will do: clients on this machine are told which it is.
async fn bind_gateway(config: &Config) -> Result<TcpListener> {
    let bound = bind(config.listen, "the gateway", "gateway").await;
    let is_in_use = |error: &CannotListen| error.source.kind() == ErrorKind::AddrInUse;
    match bound {
        Err(error) if !config.is_listen_set && error.downcast_ref().is_some_and(is_in_use) => {
            let any = SocketAddr::new(config.listen.ip(), 0);
            let gateway = bind(any, "the gateway", "gateway").await?;
            warn!(usual = %config.listen, gateway = %gateway.local_addr()?, "the usual port of the gateway is in use, it has another one until it ends");
            Ok(gateway)
        }
        bound => bound,
    }
}

async fn bind(
    listen: SocketAddr,
    what: &'static str,
    section: &'static str,
) -> Result<TcpListener> {
    let bound = TcpListener::bind(listen).await;
    Ok(bound.map_err(|source| CannotListen {
        what,
        section,
        listen,
        source,
    })?)
}
