//! Builders for what one command does: a manager of its own, and what Nix is told of it.

use std::ffi::OsString;

use anyhow::{Result, bail};
use tokio_util::sync::CancellationToken;

use super::attached::{Attached, Place};
use super::{Context, machines, up};
use crate::config::environment;
use crate::nix::System;

/// They are there until [`Self::end`], or until this process ends.
pub(super) struct Builders {
    context: Context,
    systems: Vec<System>,
    manager: Attached,
    place: Place,
}

impl Builders {
    /// Makes images that are missing, and starts the manager.
    pub(super) async fn start(
        context: &Context,
        systems: Vec<System>,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        let place = Place::make(context).await?;
        let context = context.in_state(place.state());
        for system in &systems {
            up::prepare(&context, *system, 1, cancel).await?;
        }
        let manager = tokio::select! {
            started = Attached::start(&context) => started?,
            () = cancel.cancelled() => bail!("interrupted"),
        };
        Ok(Self {
            context,
            systems,
            manager,
            place,
        })
    }

    /// What a command needs in its environment so that its Nix finds them.
    pub(super) async fn environment(&self) -> Result<[(&'static str, OsString); 2]> {
        let lines = machines::local_lines(&self.context, &self.systems).await?;
        let before = environment::nix_config();
        let state = self.context.paths.state().as_os_str().to_owned();
        Ok([
            ("NIX_CONFIG", nix_config(&before, &lines).into()),
            ("XPOOL_STATE_DIR", state),
        ])
    }

    /// Ends them, and says so if their manager had ended already.
    pub(super) async fn end(mut self) -> Result<()> {
        let ended = self.manager.end().await;
        self.place.remove().await?;
        ended
    }
}

/// What Nix is told: what it was told before, and these machines lines.
fn nix_config(before: &str, lines: &str) -> String {
    let machines: Vec<&str> = lines.lines().collect();
    let before = before.trim_end();
    let gap = if before.is_empty() { "" } else { "\n" };
    format!("{before}{gap}builders = {}", machines.join(" ; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nix_is_told_of_the_builders_beside_what_it_was_told() {
        let lines = "ssh-ng://a x - 1\nssh-ng://b y - 1\n";
        assert_eq!(
            nix_config("", lines),
            "builders = ssh-ng://a x - 1 ; ssh-ng://b y - 1"
        );
        assert_eq!(
            nix_config("sandbox = true\n", lines),
            "sandbox = true\nbuilders = ssh-ng://a x - 1 ; ssh-ng://b y - 1"
        );
    }
}
