//! A session's inputs: what this machine's store has of them need not be copied into the guest.
//!
//! They are looked for while the session waits for its VM, and registered in the guest before it hears the question which of
//! them it has. Whatever goes wrong here, the client copies what the guest does not know.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::client::Client;
use crate::manager::ticket::{InputsTaker, SessionDesk, SessionRequest};
use crate::nix::queries;
use crate::store::{EarlyPlace, Inputs};

/// Inputs that are being looked for, or will be when it is the session's turn. Dropping it ends that.
pub(super) struct LookUp {
    found: JoinHandle<anyhow::Result<(Inputs, Option<EarlyPlace>)>>,
    /// Told when the session has its VM.
    is_due: Arc<Notify>,
}

impl LookUp {
    /// Begins to look for what a client asks for first, where that is what it asks and it may see what is found.
    pub(super) async fn begin<R, W>(
        client: &mut Client<R, W>,
        number: u64,
        desk: &SessionDesk,
        request: &SessionRequest,
    ) -> Option<Self>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let store = desk.store(request)?;
        if !queries::asks_for_valid_paths(number) {
            return None;
        }
        let version = client.version;
        let read = |held: &[u8]| queries::queried_paths(held, version);
        let paths = client.whole_request(read).await?;
        if paths.is_empty() {
            return None;
        }
        let is_due = Arc::new(Notify::new());
        let due = is_due.clone();
        let found = tokio::spawn(async move {
            // What is found is held by a process of Nix, so those who wait for long have to wait for that as well.
            let place = tokio::select! {
                place = store.early_place() => place,
                () = due.notified() => None,
            };
            Ok((store.look_up(paths).await?, place))
        });
        Some(Self { found, is_due })
    }

    /// Hands over what was found, and waits until the guest has it.
    pub(super) async fn hand_over(mut self, taker: InputsTaker) {
        self.is_due.notify_one();
        match (&mut self.found).await {
            Ok(Ok((inputs, _place))) => taker.take(inputs).await,
            // The store has said so.
            Ok(Err(error)) => debug!(error = format!("{error:#}"), "inputs are copied"),
            Err(error) => warn!(%error, "looking for inputs failed, they are copied"),
        }
    }
}

impl Drop for LookUp {
    fn drop(&mut self) {
        self.found.abort();
    }
}
