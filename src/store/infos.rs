//! What is known of paths already, so that Nix is asked once.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;

use crate::nix::queries::PathInfo;
use crate::nix::store_path::StorePath;

/// Paths that are remembered; a large system has some ten thousand. Beyond that all are forgotten.
const MOST: usize = 100_000;

/// What tells a path from one that was made anew under the same name: device, inode, and when that last changed (seconds and
/// nanoseconds).
pub(super) type Stamp = (u64, u64, i64, i64);

/// What is known of paths.
#[derive(Debug, Default)]
pub(super) struct Infos {
    known: Mutex<HashMap<StorePath, (Stamp, Arc<PathInfo>)>>,
}

/// Those of some paths that are known, and the others with their stamps.
type Known = (BTreeMap<StorePath, Arc<PathInfo>>, Vec<(StorePath, Stamp)>);

impl Infos {
    /// Looks at valid paths in the store's folder. Those that are not there are damaged, and left out.
    pub(super) async fn known(
        &self,
        folder: &Path,
        valid: Vec<StorePath>,
    ) -> anyhow::Result<Known> {
        let folder = folder.to_owned();
        let looking = tokio::task::spawn_blocking(move || {
            let stamped = |path: StorePath| Some((stamp(&folder.join(path.base_name()))?, path));
            valid.into_iter().filter_map(stamped).collect::<Vec<_>>()
        });
        let stamped = looking.await.context("looking at the store")?;
        let (mut infos, mut unknown) = (BTreeMap::new(), Vec::new());
        let known = self.lock();
        for (stamp, path) in stamped {
            match known.get(&path) {
                Some((then, info)) if *then == stamp => drop(infos.insert(path, info.clone())),
                _ => unknown.push((path, stamp)),
            }
        }
        Ok((infos, unknown))
    }

    /// Remembers a path.
    pub(super) fn learn(&self, path: StorePath, stamp: Stamp, info: Arc<PathInfo>) {
        let mut known = self.lock();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(path, (stamp, info));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StorePath, (Stamp, Arc<PathInfo>)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamp(file: &Path) -> Option<Stamp> {
    let metadata = file.symlink_metadata().ok()?;
    Some((
        metadata.dev(),
        metadata.ino(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ))
}
