//! Files that a guest finds when it boots, before its services start. They are part of what a saved guest depends on.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::private_dir::Layout;
use crate::image::digest;
use crate::state::write_atomically;

/// A file for a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenFile {
    pub(super) name: &'static str,
    pub(super) content: GivenContent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum GivenContent {
    /// This, which anybody on this machine may see.
    Text(String),
    /// This, which nobody else may see.
    Secret(String),
    /// That of a file of this machine.
    File {
        path: PathBuf,
        /// SHA-256 of what is in it.
        sha256: String,
    },
}

impl GivenFile {
    /// A file with this in it.
    pub fn text(name: &'static str, text: String) -> Self {
        let content = GivenContent::Text(text);
        Self { name, content }
    }

    /// The same, where others on this machine must not see it: QEMU's command line is for everybody.
    pub fn secret(name: &'static str, text: String) -> Self {
        let content = GivenContent::Secret(text);
        Self { name, content }
    }

    /// A file of this machine's, as it is now.
    pub fn file(name: &'static str, path: &Path) -> anyhow::Result<Self> {
        let sha256 = of_file(path).with_context(|| format!("reading `{}`", path.display()))?;
        let path = path.to_owned();
        let content = GivenContent::File { path, sha256 };
        Ok(Self { name, content })
    }

    /// Whether it is a text of no length.
    pub fn is_empty(&self) -> bool {
        matches!(&self.content, GivenContent::Text(text) | GivenContent::Secret(text) if text.is_empty())
    }

    /// Writes what is secret into a VM's private folder, where QEMU finds it.
    pub(super) fn write(&self, layout: &Layout) -> anyhow::Result<()> {
        match &self.content {
            GivenContent::Secret(text) => write_atomically(&layout.given(self.name), text),
            GivenContent::Text(_) | GivenContent::File { .. } => Ok(()),
        }
    }

    /// What stands for a file's content.
    pub(super) fn sha256(&self) -> Option<String> {
        match &self.content {
            GivenContent::Text(_) => None,
            GivenContent::Secret(text) => Some(digest::of_bytes(text.as_bytes())),
            GivenContent::File { sha256, .. } => Some(sha256.clone()),
        }
    }
}

fn of_file(path: &Path) -> io::Result<String> {
    Ok(digest::of_file(path)?.0)
}
