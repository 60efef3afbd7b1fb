//! Where a store is, and how its Nix is reached.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::nix::store_path::STORE_DIR;

/// Where a store is.
#[derive(Clone, Debug)]
pub struct StorePlace {
    /// The folder that has this store's `/nix`, where that is not the root: what is given to Nix as `--store`.
    pub root: Option<PathBuf>,
    /// Where `nix-daemon` is looked for: the value of PATH.
    pub search_path: OsString,
}

impl StorePlace {
    /// The folder that has the paths.
    pub(super) fn folder(&self) -> PathBuf {
        self.below_root(STORE_DIR)
    }

    /// The socket of a Nix daemon that serves the store, if there is one.
    pub(super) fn socket(&self) -> PathBuf {
        self.below_root("/nix/var/nix/daemon-socket/socket")
    }

    /// What Nix calls the store, to be reached without a daemon.
    pub(super) fn uri(&self) -> OsString {
        match &self.root {
            Some(root) => root.into(),
            None => "local".into(),
        }
    }

    fn below_root(&self, path: &str) -> PathBuf {
        match &self.root {
            Some(root) => root.join(path.trim_start_matches('/')),
            None => Path::new(path).to_owned(),
        }
    }
}
