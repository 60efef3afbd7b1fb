//! Puts the manager together: state folder, keys, gateway, control server, pools; and takes it apart again.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use russh::keys::HashAlg;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::client_files::ClientFiles;
use crate::config::keys::{ClientKey, LOCAL};
use crate::config::{Config, SystemConfig};
use crate::connect::place::LocalTransport;
use crate::control::{self, Info};
use crate::forecast_file;
use crate::gateway::keys::GatewayKeys;
use crate::gateway::{self, Client, GatewayConfig, Limits, Slot};
use crate::image::Image;
use crate::image::store::{ImageError, ImageStore};
use crate::manager::{Manager, VmFactory};
use crate::nix::System;
use crate::nix::handshake::Promise;
use crate::nix::machines::slot_user;
use crate::open_files;
use crate::paths::Paths;
use crate::pool::policy::{Forecasting, Policy, Share};
use crate::pool::shape::Shape;
use crate::record;
use crate::shell;
use crate::shutdown::Shutdown;
use crate::state::{self, StateLock};
use crate::store::{HostStore, StorePlace};
use crate::vm::host::KnownQemus;
use crate::vm::leftovers::{self, HeldVm};
use crate::vm::template::shelf;
use crate::vm::{Qemu, VmSpec, host};

/// The gateway's address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("the gateway cannot listen on {listen}")]
pub struct CannotListen {
    /// The address.
    pub listen: SocketAddr,
    /// Why not.
    pub source: std::io::Error,
}

/// Somebody else's key is xpool's own one.
#[derive(Debug, thiserror::Error)]
#[error("`keys.{name}` is xpool's own key, `{}`", file.display())]
pub struct OwnKey {
    /// The name it is configured under.
    pub name: String,
    /// Where xpool's own key is.
    pub file: PathBuf,
}

/// How long the last answers of the control API may take.
const CONTROL_END: Duration = Duration::from_secs(5);

/// How long the last lines of a trace, or of what forecasts are made from, may take: a disk that hangs does not keep the manager.
const RECORD_END: Duration = Duration::from_secs(5);

/// Runs the manager until `shutdown`; `ready` is called when it serves.
pub async fn run(
    mut config: Config,
    paths: &Paths,
    shutdown: Shutdown,
    ready: impl FnOnce(&Info),
) -> Result<()> {
    let open_files = open_files::raise_limit().context("raising the limit of open files")?;
    state::prepare(paths)?;
    let _lock = StateLock::take(paths)?;
    let held = clean_up(paths).await?;
    let keys = GatewayKeys::load_or_create(&paths.keys()).context("the gateway's keys")?;
    let gateway_config = gateway_config(&config, &keys, Limits::within(open_files))?;
    let listen = config.listen;
    let tcp = TcpListener::bind(listen)
        .await
        .map_err(|source| CannotListen { listen, source })?;
    // Port 0 is any that is free.
    let listen = tcp.local_addr().context("the gateway's address")?;
    config.listen = listen;
    let unix = state::listen(&paths.control_socket())?;
    let local = LocalTransport::bind(&config, paths)?;
    let shells = state::listen(&paths.shell_socket())?;
    let recording = config.trace.as_deref().map(record::start).transpose()?;
    let files = ClientFiles::write(&config, paths, &keys)?;

    let info = Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        gateway: listen,
    };
    let connections = gateway_config.limits.max_connections;
    info!(state = %paths.state().display(), gateway = %listen, open_files, connections, "serving");
    let factory = factory(&config, paths);
    let (manager, handle) = Manager::new(policies(&config), &factory);
    let mut manager = manager.with_budget(config.budget);
    if let Some((desk, _)) = &recording {
        manager = manager.with_record(desk);
    }
    let forecasts = has_forecast(&config).then(|| forecast_file::start(paths.forecast()));
    if let Some((desk, _)) = &forecasts {
        manager = manager.with_history(desk);
    }
    let files = tokio::spawn(files.follow(handle.changes()));
    let end = CancellationToken::new();
    let slots = systems_by_slot(&gateway_config);
    let shells = tokio::spawn(shell::server::serve(shells, handle.clone(), end.clone()));
    let desk = handle.desk().clone();
    let gateway = tokio::spawn(gateway::serve(tcp, gateway_config, desk, end.clone()));
    let local = tokio::spawn(local.serve(slots, handle.clone(), end.clone()));
    let control = control::server::serve(unix, info.clone(), handle, shutdown.clone(), end.clone());
    let control = tokio::spawn(control);
    let held = tokio::spawn(look_after(held, shutdown.clone()));
    ready(&info);
    manager.run(shutdown).await;
    held.await?;

    info!("every VM is gone");
    if let Some((desk, written)) = recording {
        all_written(desk, written).await;
    }
    if let Some((desk, written)) = forecasts {
        all_written(desk, written).await;
    }
    // They end with the manager, and take away what Nix is told.
    files.await?;
    end.cancel();
    gateway.await?.context("the gateway")?;
    local.await?;
    shells.await?;
    // A caller that does not read what it asked for does not keep the manager alive.
    if let Ok(served) = tokio::time::timeout(CONTROL_END, control).await {
        served?.context("the control API")?;
    }
    remove_sockets(paths);
    Ok(())
}

/// Lets what was told to a desk come into its file.
async fn all_written<D>(desk: D, written: JoinHandle<()>) {
    drop(desk);
    let _ = tokio::time::timeout(RECORD_END, written).await;
}

/// Another manager cannot have made them: the lock is still held.
fn remove_sockets(paths: &Paths) {
    for socket in [
        paths.control_socket(),
        paths.connect_socket(),
        paths.shell_socket(),
    ] {
        let _ = std::fs::remove_file(socket);
    }
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

fn systems_by_slot(config: &GatewayConfig) -> BTreeMap<String, System> {
    let slots = config.slots.iter();
    slots
        .map(|(name, slot)| (name.clone(), slot.system))
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
        });
    }
    Ok(clients)
}

fn factory(config: &Config, paths: &Paths) -> VmFactory<Qemu> {
    let store = Arc::new(HostStore::new(StorePlace {
        root: config.store_root.clone(),
        search_path: config.search_path.clone(),
    }));
    let images = VerifiedImages {
        store: ImageStore::new(paths.images()),
        seen: Mutex::default(),
    };
    let qemus = KnownQemus::default();
    let (config, paths) = (config.clone(), paths.clone());
    let log_paths = paths.clone();
    let seen_store = store.clone();
    let spec = move |system: System, name: &str, shape: Shape| -> Result<VmSpec> {
        let pool = config
            .systems
            .get(&system)
            .context("no pool for this system")?;
        let qemu = host::find_program(&pool.profile.qemu, &config.search_path)?;
        // The manager calls this on a thread that may wait.
        let usable = Handle::current().block_on(qemus.check(&qemu))?;
        forget_old_console(&paths, name);
        Ok(VmSpec {
            name: name.to_owned(),
            profile: pool.profile.clone(),
            vcpus: shape.vcpus,
            accel: host::accel_for(system),
            qemu,
            qemu_identity: usable.identity,
            qemu_img: host::find_program("qemu-img", &config.search_path)?,
            image: images.current(system).map_err(with_hint)?,
            slots: pool.policy.slots_per_vm.get(),
            network: pool.network,
            // Where there is no store yet there will be, and templates need not be made anew for that.
            store: match shape.share {
                Share::Host => Some(seen_store.folder().unwrap_or_else(|| paths.no_store())),
                Share::None => None,
            },
            templates: pool.template.then(|| paths.templates()),
            pauses: pool.pause,
            private_parent: paths.vms(),
            console_log: paths.console_log(name),
            boot_timeout: pool.policy.boot_timeout,
            stop_grace: pool.stop_grace,
        })
    };
    VmFactory {
        backend: Arc::new(Qemu::default()),
        store: Some(store),
        spec: Arc::new(spec),
        console_log: Arc::new(move |name| log_paths.console_log(name)),
    }
}

/// An image that cannot be used, with what to do about it: for a session, which sees one text.
fn with_hint(error: anyhow::Error) -> anyhow::Error {
    match error
        .downcast_ref::<ImageError>()
        .and_then(ImageError::hint)
    {
        Some(hint) => anyhow::anyhow!("{error}; {hint}"),
        None => error,
    }
}

/// Removes the console log of the VM that is so far back that nobody looks for it any more, so that there are always few.
fn forget_old_console(paths: &Paths, name: &str) {
    let Some((cpu, number)) = name.rsplit_once('-') else {
        return;
    };
    let old = number
        .parse::<u32>()
        .ok()
        .and_then(|number| number.checked_sub(CONSOLE_LOGS));
    let Some(old) = old else { return };
    let log = paths.console_log(&format!("{cpu}-{old}"));
    // There may be none.
    let _ = std::fs::remove_file(log.with_extension("log.old"));
    let _ = std::fs::remove_file(log);
}

/// Console logs that are kept of a system's VMs.
const CONSOLE_LOGS: u32 = 50;

/// Images, of which every byte is read once per manager and again when a file has changed.
struct VerifiedImages {
    store: ImageStore,
    seen: Mutex<HashMap<PathBuf, Vec<SystemTime>>>,
}

impl VerifiedImages {
    fn current(&self, system: System) -> Result<Image> {
        let image = self.store.current(system)?;
        let files = image
            .manifest
            .files()
            .map(|file| image.dir.join(&file.name));
        let changed: Vec<SystemTime> = files
            .iter()
            .map(|file| std::fs::metadata(file)?.modified())
            .collect::<std::io::Result<_>>()?;
        let is_known = self
            .seen
            .lock()
            .is_ok_and(|seen| seen.get(&image.dir) == Some(&changed));
        if !is_known {
            self.store.verify(&image)?;
            if let Ok(mut seen) = self.seen.lock() {
                seen.insert(image.dir.clone(), changed);
            }
        }
        Ok(image)
    }
}
