//! A session's inputs: what this machine's store has of them need not be copied into the guest.
//!
//! They are looked for while the session waits for its VM, and registered in the guest before it hears the question which of
//! them it has. Whatever goes wrong here, the client copies what the guest does not know.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::ticket::{InputsOnTheirWay, InputsTaker};
use crate::nix::store_path::StorePath;
use crate::store::{EarlyPlace, HostStore, Inputs};

/// Inputs that are being looked for, or will be when it is the session's turn. Dropping it ends that.
#[derive(Debug)]
pub struct LookUp {
    found: JoinHandle<anyhow::Result<(Inputs, Option<EarlyPlace>)>>,
    /// Told when the session has its VM.
    is_due: Arc<Notify>,
}

impl LookUp {
    /// Begins to look for these paths.
    pub fn begin(store: Arc<HostStore>, paths: Vec<StorePath>) -> Self {
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
        Self { found, is_due }
    }

    /// Hands over what is found.
    pub fn hand_over(self, taker: InputsTaker) -> InputsOnTheirWay {
        let (mut arrived, on_their_way) = InputsOnTheirWay::channel();
        tokio::spawn(async move {
            // A session that has gone waits for nothing.
            tokio::select! {
                () = self.hand_over_to(taker) => {}
                () = arrived.closed() => return,
            }
            let _ = arrived.send(());
        });
        on_their_way
    }

    async fn hand_over_to(mut self, taker: InputsTaker) {
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
