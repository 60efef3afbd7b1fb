//! Where helpers find the manager, and who may come there.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use unix::unistd::Group;

use super::server::{self, Allowed};
use crate::activation::Handover;
use crate::config::Config;
use crate::manager::ManagerHandle;
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
    /// Takes its place in the state folder, or that of the socket which was given.
    pub fn bind(
        config: &Config,
        paths: &Paths,
        given: Option<std::os::unix::net::UnixListener>,
    ) -> Result<Self> {
        let group = config.local_group.as_deref().map(find_group).transpose()?;
        let listener = state::listen_or_take(given, &paths.connect_socket())?;
        state::admit(paths, group)?;
        let owner = rustix::process::geteuid().as_raw();
        let allowed = Allowed { owner, group };
        Ok(Self { listener, allowed })
    }

    /// Serves helpers until `stop` is cancelled.
    pub async fn serve(
        self,
        slots: BTreeMap<String, System>,
        manager: ManagerHandle,
        handover: Handover,
        stop: CancellationToken,
    ) {
        let desk = manager.desk().clone();
        let seat_gone = move |system, key, seat| {
            let manager = manager.clone();
            tokio::spawn(async move {
                // Without a manager nothing is kept.
                let _ = manager.seat_gone(system, key, seat).await;
            });
        };
        let seat_gone = Arc::new(seat_gone);
        server::serve(
            self.listener,
            self.allowed,
            slots,
            desk,
            seat_gone,
            handover,
            stop,
        )
        .await;
    }
}

fn find_group(name: &str) -> Result<u32> {
    let found = Group::from_name(name).with_context(|| format!("looking for group `{name}`"))?;
    let group = found.ok_or_else(|| NoSuchGroup(name.to_owned()))?;
    Ok(group.gid.as_raw())
}
