//! Accepting connections, however often that fails, and from whom.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use tracing::warn;

/// How long to wait after a failed accept: out of file descriptors is what fails, and only time helps.
const PAUSE: Duration = Duration::from_millis(500);

/// The next connection to what is named so, from a listener's `poll_accept`. Cancel safe.
pub async fn next<T>(
    what: &str,
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
) -> T {
    loop {
        match poll_fn(&mut accept).await {
            Ok(accepted) => return accepted,
            // The client gave up while it waited: not worth a pause.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                warn!(%error, "{what} cannot accept connections");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whether a peer is this process's user or root.
pub fn is_owner(user: u32) -> bool {
    user == 0 || user == rustix::process::geteuid().as_raw()
}
