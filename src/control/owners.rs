//! A Unix socket on which nobody is heard but this process's user and root, whoever else can reach it.

use axum::serve::Listener;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tracing::info;

use crate::accept;

/// The connections of this process's user and of root.
#[derive(Debug)]
pub(super) struct Owners(pub(super) UnixListener);

impl Listener for Owners {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            let accepted = accept::next("the control socket", |cx| self.0.poll_accept(cx)).await;
            match accepted.0.peer_cred() {
                Ok(peer) if accept::is_owner(peer.uid()) => return accepted,
                Ok(peer) => info!(
                    uid = peer.uid(),
                    "refused somebody else at the control socket"
                ),
                // Who has gone already asks for nothing.
                Err(_) => {}
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
