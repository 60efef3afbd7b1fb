//! What makes paths of one store valid in another one.

use std::io::Write as _;

use super::queries::PathInfo;
use super::store_path::StorePath;

/// What a guest's registrar is told of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registrations {
    /// In the format of `nix-store --load-db` (`decodeValidPathInfo` of Nix).
    pub paths: Vec<u8>,
    /// A line for each path that has a content address: the path, a blank, the address. The format above has no place for it, and
    /// what a build is told of its inputs names it (`exportReferencesGraph`).
    pub addresses: Vec<u8>,
}

impl Registrations {
    /// Adds a path. What it refers to has to be among them, or to be there.
    pub fn add(&mut self, path: &StorePath, info: &PathInfo) {
        let deriver = info.deriver.as_ref().map_or("", StorePath::as_str);
        let n_references = info.references.len();
        let PathInfo {
            nar_hash, nar_size, ..
        } = info;
        // Writing into memory cannot fail.
        let _ = writeln!(
            self.paths,
            "{path}\n{nar_hash}\n{nar_size}\n{deriver}\n{n_references}"
        );
        for reference in &info.references {
            let _ = writeln!(self.paths, "{reference}");
        }
        if let Some(address) = &info.content_address {
            let _ = writeln!(self.addresses, "{path} {address}");
        }
    }
}
