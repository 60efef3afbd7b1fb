//! The store of this machine, as far as VMs see it: which paths are valid, what is known of them, and that they stay.

mod connection;
mod given;
mod infos;
mod inputs;
mod place;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{info, warn};

pub use given::Given;
pub use inputs::Inputs;
pub use place::StorePlace;

use crate::nix::queries::PathInfo;
use crate::nix::store_path::StorePath;
use connection::Connection;
use infos::Infos;

/// A daemon that has to be started, and a thousand questions: 50 ms, on a starved machine a hundred times that.
const LIMIT: Duration = Duration::from_secs(20);

/// How many sessions that wait for a VM may have their inputs found and held: those that come next.
const EARLY_PLACES: usize = 8;

/// A place among those whose inputs are found before they have a VM.
#[derive(Debug)]
pub struct EarlyPlace {
    _permit: OwnedSemaphorePermit,
}

/// The store of this machine.
#[derive(Debug)]
pub struct HostStore {
    place: StorePlace,
    infos: Infos,
    /// Why the last look-up failed, if it did.
    trouble: Mutex<Option<String>>,
    early: Arc<Semaphore>,
}

/// A connection to Nix that holds paths: they are not deleted as long as it is there.
#[derive(Debug)]
struct Roots {
    connection: Connection,
}

impl HostStore {
    /// The store at a place.
    pub fn new(place: StorePlace) -> Self {
        Self {
            place,
            infos: Infos::default(),
            trouble: Mutex::default(),
            early: Arc::new(Semaphore::new(EARLY_PLACES)),
        }
    }

    /// The folder that has the paths, where there is one.
    pub fn folder(&self) -> Option<PathBuf> {
        Some(self.place.folder()).filter(|folder| folder.is_dir())
    }

    /// Why inputs are copied although they might be shared; `None` when all is well, as far as that is known.
    pub fn trouble(&self) -> Option<String> {
        match self.folder() {
            None => Some(format!("there is no {}", self.place.folder().display())),
            Some(_) => self.lock_trouble().clone(),
        }
    }

    /// Waits, in the order of arrival, until inputs may be looked for before there is a VM for them.
    pub async fn early_place(&self) -> Option<EarlyPlace> {
        let permit = self.early.clone().acquire_owned().await.ok()?;
        Some(EarlyPlace { _permit: permit })
    }

    /// Finds out which of these paths the store has, with all that they refer to, and holds them. Bounded in time.
    pub async fn look_up(&self, asked: Vec<StorePath>) -> anyhow::Result<Inputs> {
        let looked = tokio::time::timeout(LIMIT, self.find(asked)).await;
        let found = looked
            .map_err(|_| {
                anyhow::anyhow!(
                    "this machine's Nix did not answer within {} s",
                    LIMIT.as_secs()
                )
            })
            .flatten();
        self.note(found.as_ref().err().map(|error| format!("{error:#}")));
        found
    }

    async fn find(&self, asked: Vec<StorePath>) -> anyhow::Result<Inputs> {
        let folder = self.folder();
        let folder =
            folder.with_context(|| format!("there is no {}", self.place.folder().display()))?;
        let mut roots = Roots {
            connection: Connection::open(&self.place).await?,
        };
        let asked: BTreeSet<StorePath> = asked.into_iter().collect();
        let mut seen = asked.clone();
        let mut found = BTreeMap::new();
        let mut wanted: Vec<StorePath> = asked.iter().cloned().collect();
        // What a valid path refers to is valid too, but may be nothing that was asked for.
        while !wanted.is_empty() {
            let infos = self.infos_of(&mut roots, &wanted).await?;
            wanted = infos
                .values()
                .flat_map(|info| &info.references)
                .filter(|path| seen.insert((*path).clone()))
                .cloned()
                .collect();
            found.extend(infos);
        }
        Ok(Inputs::new(folder, &asked, found, roots))
    }

    /// What is known of those of these paths that are valid and there. They are held from now on.
    async fn infos_of(
        &self,
        roots: &mut Roots,
        paths: &[StorePath],
    ) -> anyhow::Result<BTreeMap<StorePath, Arc<PathInfo>>> {
        let valid = roots.hold(paths).await?;
        let (mut infos, unknown) = self.infos.known(&self.place.folder(), valid).await?;
        let paths: Vec<StorePath> = unknown.iter().map(|(path, _)| path.clone()).collect();
        let learnt = roots.connection.path_infos(&paths).await?;
        for ((path, stamp), info) in unknown.into_iter().zip(learnt) {
            if let Some(info) = info.map(Arc::new) {
                self.infos.learn(path.clone(), stamp, info.clone());
                infos.insert(path, info);
            }
        }
        Ok(infos)
    }

    /// Notes why a look-up failed, or that it did not. Said once: sessions are many.
    fn note(&self, trouble: Option<String>) {
        let mut last = self.lock_trouble();
        match &trouble {
            Some(because) if *last != trouble => warn!(because, "inputs are copied"),
            None if last.is_some() => info!("inputs are shared again"),
            _ => {}
        }
        *last = trouble;
    }

    fn lock_trouble(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Roots {
    /// Holds paths, and says which of them are valid. In this order: what is valid afterwards stays.
    async fn hold(&mut self, paths: &[StorePath]) -> anyhow::Result<Vec<StorePath>> {
        self.connection.add_temp_roots(paths).await?;
        self.connection.valid_paths(paths).await
    }
}
