//! What one VM was given of the store.

use std::collections::HashSet;

use super::{Inputs, Roots};
use crate::nix::registrations::Registrations;
use crate::nix::store_path::StorePath;

/// The paths that were registered in one VM. They are held as long as this is there, over one connection however many
/// sessions the VM has had.
#[derive(Debug, Default)]
pub struct Given {
    known: HashSet<StorePath>,
    roots: Option<Roots>,
}

impl Given {
    /// Gives a VM what a session asks for. `register` is told what is new to it; when that fails, nothing new was given.
    pub async fn give(
        &mut self,
        inputs: Inputs,
        register: impl AsyncFnOnce(&Registrations) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let new = inputs.beyond(&self.known);
        if new.is_empty() {
            return Ok(());
        }
        let registrations = inputs.registrations(&new);
        // Until its roots are ours, too, `inputs` holds them.
        self.hold(&new, inputs).await?;
        let registered = register(&registrations).await;
        match registered {
            Ok(()) => self.known.extend(new),
            // Perhaps the guest has lost some that it had.
            Err(_) => self.known.clear(),
        }
        registered
    }

    async fn hold(&mut self, new: &[StorePath], inputs: Inputs) -> anyhow::Result<()> {
        if let Some(roots) = &mut self.roots
            && roots.hold(new).await.is_ok()
        {
            return Ok(());
        }
        // The first session's, or a new one after Nix was started anew.
        let mut roots = inputs.roots;
        let known: Vec<StorePath> = self.known.iter().cloned().collect();
        roots.hold(&known).await?;
        self.roots = Some(roots);
        Ok(())
    }
}
