//! The tasks that serve who comes, from the first one to the last answer.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::sockets::Sockets;
use crate::activation::Handover;
use crate::control::{self, Info};
use crate::gateway::{self, GatewayConfig, GatewayError};
use crate::manager::ManagerHandle;
use crate::metrics;
use crate::nix::System;
use crate::shell;
use crate::shutdown::Shutdown;

/// How long the last answers of the control API may take.
const CONTROL_END: Duration = Duration::from_secs(5);

/// What is said of the manager, and how it is told to end.
pub(super) struct Control {
    pub(super) info: Info,
    pub(super) shutdown: Shutdown,
    pub(super) handover: Handover,
}

/// All of them.
pub(super) struct Servers {
    end: CancellationToken,
    gateway: JoinHandle<Result<(), GatewayError>>,
    control: JoinHandle<std::io::Result<()>>,
    others: Vec<JoinHandle<()>>,
    own: Vec<PathBuf>,
}

impl Servers {
    pub(super) fn start(
        sockets: Sockets,
        gateway: GatewayConfig,
        manager: &ManagerHandle,
        control: Control,
    ) -> Self {
        let Sockets {
            gateway: tcp,
            control: unix,
            local,
            shells,
            metrics,
            own,
        } = sockets;
        let Control {
            info,
            shutdown,
            handover,
        } = control;
        let end = CancellationToken::new();
        let (slots, desk) = (systems_by_slot(&gateway), manager.desk().clone());
        let local = local.serve(slots, manager.clone(), handover.clone(), end.clone());
        let shells = shell::server::serve(shells, manager.clone(), end.clone());
        let mut others = vec![tokio::spawn(local), tokio::spawn(shells)];
        if let Some(listener) = metrics {
            let metrics = metrics::server::serve(listener, manager.clone(), end.clone());
            others.push(tokio::spawn(metrics));
        }
        let gateway = gateway::serve(tcp, gateway, desk, handover, end.clone());
        let control = control::server::serve(unix, info, manager.clone(), shutdown, end.clone());
        Self {
            gateway: tokio::spawn(gateway),
            control: tokio::spawn(control),
            others,
            own,
            end,
        }
    }

    /// Answers who is being served, and lets nobody else in. The manager has ended; its state folder is still locked, so
    /// another one cannot have made the sockets that are removed.
    pub(super) async fn end(self) -> Result<()> {
        self.end.cancel();
        self.gateway.await?.context("the gateway")?;
        for other in self.others {
            other.await?;
        }
        // A caller that does not read what it asked for does not keep the manager alive.
        if let Ok(served) = tokio::time::timeout(CONTROL_END, self.control).await {
            served?.context("the control API")?;
        }
        for socket in self.own {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(socket);
        }
        Ok(())
    }
}

fn systems_by_slot(config: &GatewayConfig) -> BTreeMap<String, System> {
    let slots = config.slots.iter();
    slots
        .map(|(name, slot)| (name.clone(), slot.system))
        .collect()
}
