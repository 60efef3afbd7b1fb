//! Where helpers find the manager, and who may come there.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use unix::unistd::Group;

use super::server::{self, Allowed};
use crate::config::Config;
use crate::manager::ticket::SessionDesk;
use crate::nix::System;
use crate::paths::Paths;
use crate::state;

/// The group in the configuration is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no group `{0}`, which section `[local]` of xpool.toml names")]
pub struct NoSuchGroup(String);

/// The local transport, before it serves.
#[derive(Debug)]
pub struct LocalTransport {
    listener: UnixListener,
    allowed: Allowed,
}

impl LocalTransport {
    /// Takes its place in the state folder.
    pub fn bind(config: &Config, paths: &Paths) -> Result<Self> {
        let group = config.local_group.as_deref().map(find_group).transpose()?;
        let listener = state::listen(&paths.connect_socket())?;
        state::admit(paths, group)?;
        let owner = rustix::process::geteuid().as_raw();
        let allowed = Allowed { owner, group };
        Ok(Self { listener, allowed })
    }

    /// Serves helpers until `stop` is cancelled.
    pub async fn serve(
        self,
        slots: BTreeMap<String, System>,
        desk: SessionDesk,
        stop: CancellationToken,
    ) {
        server::serve(self.listener, self.allowed, slots, desk, stop).await;
    }
}

fn find_group(name: &str) -> Result<u32> {
    let found = Group::from_name(name).with_context(|| format!("looking for group `{name}`"))?;
    let group = found.ok_or_else(|| NoSuchGroup(name.to_owned()))?;
    Ok(group.gid.as_raw())
}
