//! How the manager makes VMs: from this machine's QEMU, images, and store.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use anyhow::{Context, Result};
use tokio::runtime::Handle;
use tracing::warn;

use crate::config::vm::Network;
use crate::config::{Config, SystemConfig};
use crate::image::Image;
use crate::image::store::{ImageError, ImageStore};
use crate::manager::VmFactory;
use crate::nix::System;
use crate::paths::Paths;
use crate::pool::policy::Share;
use crate::pool::shape::Shape;
use crate::store::{HostStore, StorePlace};
use crate::vm::host::KnownQemus;
use crate::vm::{GivenFile, Qemu, VmSpec, host};

use super::network::HostNetwork;

/// What this machine has, for what is configured.
pub(super) fn factory(config: &Config, paths: &Paths) -> VmFactory<Qemu> {
    let network = HostNetwork::of(config);
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
            memory_mib: pool.policy.memory_mib,
            accel: host::accel_for(system),
            qemu,
            qemu_identity: usable.identity,
            qemu_img: host::find_program("qemu-img", &config.search_path)?,
            image: images.current(system).map_err(with_hint)?,
            slots: pool.policy.slots_per_vm.get(),
            network: pool.network,
            given: given(&network, pool),
            names: (pool.network == Network::Nat)
                .then(|| network.names(shape.share, pool.policy.share)),
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

/// What a guest finds when it boots.
fn given(network: &HostNetwork, pool: &SystemConfig) -> Vec<GivenFile> {
    let mut conf = pool.abilities.guest_conf();
    if pool.policy.keep_failed.is_some() {
        conf += "keep-failed = true\n";
    }
    let mut given = vec![GivenFile::text("nix.conf", conf)];
    if pool.network == Network::Nat {
        given.push(GivenFile::secret(
            "environment",
            network.environment.clone(),
        ));
        let bundle = network.ca_file.as_deref();
        match bundle
            .map(|file| GivenFile::file("ca-bundle.crt", file))
            .transpose()
        {
            Ok(bundle) => given.extend(bundle),
            // It was there when the manager started.
            Err(error) => warn!(
                error = format!("{error:#}"),
                "guests use the certificates of their image"
            ),
        }
    }
    let is_empty = |file: &GivenFile| file.is_empty();
    given.retain(|file| !is_empty(file));
    given
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
