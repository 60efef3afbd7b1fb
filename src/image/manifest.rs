//! `manifest.json`: what an image consists of and how to boot it, so that nothing else needs to know how it was made.

use serde::{Deserialize, Serialize};

use crate::nix::System;

/// The version of the guest contract (images/README.md) that this xpool speaks.
pub const CONTRACT: u32 = 6;

/// A file of an image: its name in the image's folder, size in bytes, and SHA-256 in lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFile {
    /// The file's name; never a path.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of its content, 64 lower-case hex digits.
    pub sha256: String,
}

/// How an image was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageKind {
    /// Made of a distribution's packages.
    Portable,
    /// NixOS, built from images/.
    Nixos,
}

/// The manifest of one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Manifest {
    /// The guest contract that the image keeps; see [`CONTRACT`].
    pub contract: u32,
    /// The platform it builds for.
    pub system: System,
    /// How it was made.
    pub kind: ImageKind,
    /// What it was made by: SHA-256 of the recipe's files. Another one does not harm; a build makes the image anew.
    pub recipe: String,
    /// Version of the nix-daemon inside.
    pub nix_version: String,
    /// Version of the kernel inside, as `uname -r` prints it.
    pub kernel_version: String,
    /// Kernel command line without the console, which the VM profile adds.
    pub cmdline: String,
    /// The kernel, booted directly.
    pub kernel: ImageFile,
    /// The initial RAM disk.
    pub initrd: ImageFile,
    /// The root disk, qcow2; never written: each VM has an overlay of its own.
    pub disk: ImageFile,
}

impl Manifest {
    /// The image's files.
    pub fn files(&self) -> [&ImageFile; 3] {
        [&self.kernel, &self.initrd, &self.disk]
    }
}
