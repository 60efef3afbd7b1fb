//! Puts the manager together: state folder, keys, gateway, control server, pools; and takes it apart again.

mod machines;
mod network;
mod servers;
mod sockets;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use russh::keys::HashAlg;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use servers::{Control, Servers};
pub use sockets::CannotListen;
use sockets::Sockets;

use crate::activation::{GivenSockets, Handover};
use crate::client_files::ClientFiles;
use crate::config::keys::{ClientKey, LOCAL};
use crate::config::{Config, SystemConfig};
use crate::control::Info;
use crate::forecast_file;
use crate::gateway::keys::GatewayKeys;
use crate::gateway::{Client, GatewayConfig, Limits, Slot};
use crate::inherited;
use crate::manager::Manager;
use crate::manager::forecast::HistoryDesk;
use crate::manager::worked::WorkedDesk;
use crate::nix::System;
use crate::nix::handshake::Promise;
use crate::nix::machines::slot_user;
use crate::open_files;
use crate::paths::Paths;
use crate::pool::policy::{Forecasting, Policy, Share};
use crate::record;
use crate::shutdown::Shutdown;
use crate::state::{self, StateLock};
use crate::vm::Qemu;
use crate::vm::leftovers::{self, HeldVm};
use crate::vm::template::shelf;

/// Somebody else's key is xpool's own one.
#[derive(Debug, thiserror::Error)]
#[error("`keys.{name}` is xpool's own key, `{}`", file.display())]
pub struct OwnKey {
    /// The name it is configured under.
    pub name: String,
    /// Where xpool's own key is.
    pub file: PathBuf,
}

/// How long the last lines of a trace, or of what forecasts are made from, may take: a disk that hangs does not keep the manager.
const RECORD_END: Duration = Duration::from_secs(5);

/// Runs the manager until `shutdown`, on the sockets that were given and on others of its own; `ready` is called when it serves.
pub async fn run(
    mut config: Config,
    paths: &Paths,
    shutdown: Shutdown,
    given: GivenSockets,
    ready: impl FnOnce(&Info),
) -> Result<()> {
    inherited::keep_descriptors();
    inherited::write_no_cores().context("forbidding core files")?;
    let open_files = open_files::raise_limit().context("raising the limit of open files")?;
    state::prepare(paths)?;
    let _lock = StateLock::take(paths)?;
    let given = given.at(config.is_listen_set.then_some(config.listen));
    let handover = Handover::of(&given, &shutdown);
    // First of all: who may come by them is decided here as well, and somebody may have come already.
    let sockets = Sockets::open(&config, paths, given).await?;
    // The configuration may say any port that is free, and an address that was given is whatever it is.
    config.listen = sockets
        .gateway
        .local_addr()
        .context("the gateway's address")?;
    let held = clean_up(paths).await?;
    let keys = GatewayKeys::load_or_create(&paths.keys()).context("the gateway's keys")?;
    let gateway_config = gateway_config(&config, &keys, Limits::within(open_files))?;
    let records = Records::start(&config, paths)?;
    let files = ClientFiles::write(&config, paths, &keys, handover.clone())?;

    let info = Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        gateway: config.listen,
        is_started_on_demand: handover.is_expected(),
    };
    let connections = gateway_config.limits.max_connections;
    info!(state = %paths.state().display(), gateway = %config.listen, open_files, connections, "serving");
    let factory = machines::factory(&config, paths);
    let (manager, handle) = Manager::new(policies(&config), &factory);
    let manager = manager.with_budget(config.budget).with_handover(&handover);
    let manager = records.told_by(manager);
    let servers = Servers::start(
        sockets,
        gateway_config,
        &handle,
        Control {
            info: info.clone(),
            shutdown: shutdown.clone(),
            handover: handover.clone(),
        },
    );
    let files = tokio::spawn(files.follow(handle.changes()));
    drop(handle);
    let held = tokio::spawn(look_after(held, shutdown.clone()));
    ready(&info);
    manager.run(shutdown.clone()).await;
    if handover.has_begun() && !shutdown.now.is_cancelled() {
        // The next manager looks after them.
        held.abort();
    } else {
        held.await?;
    }

    info!("every VM is gone");
    records.written().await;
    // It ends with the manager, and takes away what Nix is told.
    files.await?;
    servers.end().await
}

/// What is written down of what the manager does.
struct Records {
    trace: Option<(WorkedDesk, JoinHandle<()>)>,
    forecasts: Option<(HistoryDesk, JoinHandle<()>)>,
}

impl Records {
    fn start(config: &Config, paths: &Paths) -> Result<Self> {
        Ok(Self {
            trace: config.trace.as_deref().map(record::start).transpose()?,
            forecasts: has_forecast(config).then(|| forecast_file::start(paths.forecast())),
        })
    }

    /// Has the manager tell them.
    fn told_by(&self, mut manager: Manager<Qemu>) -> Manager<Qemu> {
        if let Some((desk, _)) = &self.trace {
            manager = manager.with_record(desk);
        }
        if let Some((desk, _)) = &self.forecasts {
            manager = manager.with_history(desk);
        }
        manager
    }

    /// Lets what they were told come into their files.
    async fn written(self) {
        if let Some((desk, written)) = self.trace {
            all_written(desk, written).await;
        }
        if let Some((desk, written)) = self.forecasts {
            all_written(desk, written).await;
        }
    }
}

async fn all_written<D>(desk: D, written: JoinHandle<()>) {
    drop(desk);
    let _ = tokio::time::timeout(RECORD_END, written).await;
}

fn has_forecast(config: &Config) -> bool {
    let mut systems = config.systems.values();
    systems.any(|system| system.policy.forecast != Forecasting::Off)
}

/// Ends what an earlier manager has left, but for VMs that other processes still use.
async fn clean_up(paths: &Paths) -> Result<Vec<HeldVm>> {
    let left = leftovers::clean(&paths.vms())
        .await
        .context("ending what an earlier manager left")?;
    for unfinished in shelf::clean(&paths.templates())? {
        warn!(
            unfinished,
            "removed a template that an earlier manager has not finished"
        );
    }
    Ok(left.held)
}

/// Each system's policy, which knows clients as their sessions name them.
fn policies(config: &Config) -> BTreeMap<System, Policy> {
    let client = |key: &ClientKey| key.public_key.fingerprint(HashAlg::Sha256).to_string();
    let keys = config.keys.iter();
    let priorities: BTreeMap<String, i32> = keys.map(|key| (client(key), key.priority)).collect();
    let policy = |config: &SystemConfig| Policy {
        priorities: priorities.clone(),
        ..config.policy.clone()
    };
    let systems = config.systems.iter();
    systems
        .map(|(system, config)| (*system, policy(config)))
        .collect()
}

/// Looks after the VMs of an earlier manager that other processes still use: they end when they are not used, or when
/// nothing is to go on.
async fn look_after(held: Vec<HeldVm>, shutdown: Shutdown) {
    let one = async |vm: HeldVm| {
        let unused = tokio::select! {
            unused = vm.unused() => unused,
            () = shutdown.now.cancelled() => Ok(()),
        };
        let ended = match unused {
            Ok(()) => vm.end().await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) => info!("a VM of an earlier manager has ended"),
            Err(error) => warn!(
                error = format!("{error:#}"),
                "a VM of an earlier manager stays"
            ),
        }
    };
    futures::future::join_all(held.into_iter().map(one)).await;
}

fn gateway_config(
    config: &Config,
    keys: &GatewayKeys,
    limits: Limits,
) -> Result<GatewayConfig, OwnKey> {
    let mut slots = BTreeMap::new();
    for (system, config) in &config.systems {
        for slot in 0..config.slots() {
            let slot_of = Slot {
                system: *system,
                promise: Promise::of_xpool(),
            };
            slots.insert(slot_user(*system, slot), slot_of);
        }
    }
    Ok(GatewayConfig {
        host_key: keys.host().clone(),
        clients: clients(config, keys)?,
        slots,
        limits,
    })
}

/// Who may log in: who can read the state folder, and with it this machine's files, and the keys that are configured.
fn clients(config: &Config, keys: &GatewayKeys) -> Result<Vec<Client>, OwnKey> {
    let mut clients = vec![Client {
        name: LOCAL.to_owned(),
        key: keys.client().clone(),
        share: Share::Host,
        secrets: true,
    }];
    for key in &config.keys {
        // It would see this machine's store, whatever is configured for it.
        if key.public_key.key_data() == keys.client().key_data() {
            let (name, file) = (key.name.clone(), keys.client_file());
            return Err(OwnKey { name, file });
        }
        clients.push(Client {
            name: key.name.clone(),
            key: key.public_key.clone(),
            share: key.share,
            secrets: key.secrets,
        });
    }
    Ok(clients)
}
