//! Guest images: what they consist of, where they lie, how they are made and checked.

pub mod build;
pub(crate) mod digest;
pub mod import;
pub mod manifest;
pub mod script;
pub mod store;

use std::path::PathBuf;

use manifest::Manifest;

/// An image on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The folder that holds the manifest and the files it names.
    pub dir: PathBuf,
    /// What the image consists of.
    pub manifest: Manifest,
}

impl Image {
    /// The kernel, for `-kernel`.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join(&self.manifest.kernel.name)
    }

    /// The initial RAM disk, for `-initrd`.
    pub fn initrd(&self) -> PathBuf {
        self.dir.join(&self.manifest.initrd.name)
    }

    /// The root disk (qcow2) that overlays start from.
    pub fn disk(&self) -> PathBuf {
        self.dir.join(&self.manifest.disk.name)
    }
}
