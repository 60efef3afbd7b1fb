//! What a session asked for and the store has.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Roots;
use crate::nix::queries::PathInfo;
use crate::nix::registrations::Registrations;
use crate::nix::store_path::StorePath;

/// Paths of the store with all that they refer to, which are held as long as this is there.
#[derive(Debug)]
pub struct Inputs {
    folder: PathBuf,
    asked: usize,
    shared: usize,
    found: BTreeMap<StorePath, Arc<PathInfo>>,
    pub(super) roots: Roots,
}

impl Inputs {
    /// Of what was asked for, what was found, without what refers to something that was not.
    pub(super) fn new(
        folder: PathBuf,
        asked: &BTreeSet<StorePath>,
        mut found: BTreeMap<StorePath, Arc<PathInfo>>,
        roots: Roots,
    ) -> Self {
        close(&mut found);
        let shared = asked.iter().filter(|path| found.contains_key(path)).count();
        Self {
            folder,
            asked: asked.len(),
            shared,
            found,
            roots,
        }
    }

    /// The store's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How many paths were asked for.
    pub fn asked(&self) -> usize {
        self.asked
    }

    /// How many of these the store has.
    pub fn shared(&self) -> usize {
        self.shared
    }

    /// The paths, beyond those that are known.
    pub(super) fn beyond(&self, known: &HashSet<StorePath>) -> Vec<StorePath> {
        let unknown = self.found.keys().filter(|path| !known.contains(path));
        unknown.cloned().collect()
    }

    /// What registers these paths elsewhere.
    pub(super) fn registrations(&self, paths: &[StorePath]) -> Registrations {
        let mut registrations = Registrations::default();
        for path in paths {
            if let Some(info) = self.found.get(path) {
                registrations.add(path, info);
            }
        }
        registrations
    }
}

/// Leaves out what refers to a path that is not there: it cannot be registered.
fn close(found: &mut BTreeMap<StorePath, Arc<PathInfo>>) {
    loop {
        let is_broken =
            |info: &PathInfo| info.references.iter().any(|path| !found.contains_key(path));
        let broken = found.iter().filter(|(_, info)| is_broken(info));
        let broken: Vec<StorePath> = broken.map(|(path, _)| path.clone()).collect();
        if broken.is_empty() {
            return;
        }
        for path in broken {
            found.remove(&path);
        }
    }
}
