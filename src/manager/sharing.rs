//! What the sessions of one VM are given of this machine's store.

use std::path::PathBuf;

use tokio::sync::Mutex;
use tracing::warn;

use super::status::InputsView;
use crate::store::{Given, Inputs};
use crate::vm::RunningVm;

/// The store as one VM sees it.
pub(super) struct Sharing {
    /// The folder that the guest sees, if it sees one.
    folder: Option<PathBuf>,
    /// One session after another: what the first one was given, the next one need not be.
    given: Mutex<Given>,
}

impl Sharing {
    /// For a VM that has such a folder, or none.
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self {
            folder,
            given: Mutex::default(),
        }
    }

    /// Whether anything can be given.
    pub(super) fn is_possible(&self) -> bool {
        self.folder.is_some()
    }

    /// Registers a session's inputs in the guest, and says which of them the client need not copy.
    pub(super) async fn give(&self, vm: &impl RunningVm, inputs: Inputs) -> InputsView {
        let asked = inputs.asked();
        let shared = inputs.shared();
        if self.folder.as_deref() != Some(inputs.folder()) {
            // There was no store yet when the VM was started.
            return InputsView { asked, shared: 0 };
        }
        let mut given = self.given.lock().await;
        match given
            .give(inputs, async |text| vm.register(text).await)
            .await
        {
            Ok(()) => InputsView { asked, shared },
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "inputs cannot be shared and are copied"
                );
                InputsView { asked, shared: 0 }
            }
        }
    }
}
