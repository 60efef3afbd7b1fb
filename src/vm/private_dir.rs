//! A VM's private folder: what lies in it and under which names. Gone when the VM is.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;

/// What the kernel takes as the path of a Unix socket, in bytes, without the final zero.
const LONGEST_SOCKET_PATH: usize = 107;

/// Where things are in the private folder of a VM.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    dir: PathBuf,
    overlay: PathBuf,
}

impl Layout {
    /// The layout of the folder `dir`.
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            overlay: dir.join("disk"),
        }
    }

    /// The same, with the VM's disk elsewhere: one that outlives the VM.
    pub(super) fn with_overlay(self, overlay: PathBuf) -> Self {
        Self { overlay, ..self }
    }

    /// The VM's own disk.
    pub(super) fn overlay(&self) -> &Path {
        &self.overlay
    }

    /// QEMU's port for a debugger.
    pub(super) fn debugger(&self) -> PathBuf {
        self.dir.join("debugger")
    }

    /// QEMU's monitor.
    pub(super) fn qmp(&self) -> PathBuf {
        self.dir.join("qmp")
    }

    /// The guest agent's port.
    pub(super) fn agent(&self) -> PathBuf {
        self.dir.join("agent")
    }

    /// The port that registrations of store paths go through.
    pub(super) fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// A file for the guest.
    pub(super) fn given(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The port of a slot.
    pub(super) fn port(&self, slot: u32) -> PathBuf {
        self.dir.join(format!("port{slot}"))
    }

    /// The port of one of a shell's streams.
    pub(super) fn shell(&self, stream: usize) -> PathBuf {
        self.dir.join(format!("shell{stream}"))
    }

    fn check_lengths(&self, slots: u32) -> anyhow::Result<()> {
        let longest = [
            self.agent(),
            self.debugger(),
            self.store(),
            self.port(slots),
        ]
        .into_iter()
        .max_by_key(|path| path.as_os_str().len())
        .unwrap_or_default();
        let length = longest.as_os_str().len();
        anyhow::ensure!(
            length <= LONGEST_SOCKET_PATH,
            "the path `{}` has {length} bytes and that of a Unix socket may have {LONGEST_SOCKET_PATH}; \
             set XPOOL_STATE_DIR to a shorter one",
            longest.display(),
        );
        Ok(())
    }
}

/// Makes the private folder of a VM, readable to its owner alone, and says where things are in it.
pub(super) fn create(parent: &Path, slots: u32) -> anyhow::Result<(TempDir, Layout)> {
    // Six characters: socket paths must stay short, and the VM's name is on QEMU's command line anyway.
    let dir = tempfile::Builder::new()
        .prefix("vm")
        .rand_bytes(6)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .with_context(|| format!("making a folder for the VM in `{}`", parent.display()))?;
    let layout = Layout::new(dir.path());
    layout.check_lengths(slots)?;
    Ok((dir, layout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_for_its_owner_alone() {
        let parent = TempDir::new().unwrap();
        let (dir, _) = create(parent.path(), 1).unwrap();
        let mode = std::fs::metadata(dir.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_parent_that_is_too_deep_for_sockets_is_refused_with_what_to_do() {
        let parent = TempDir::new().unwrap();
        let deep = parent.path().join("d".repeat(100));
        std::fs::create_dir(&deep).unwrap();
        let error = create(&deep, 1).unwrap_err().to_string();
        assert!(error.contains("XPOOL_STATE_DIR"), "{error}");
        assert_eq!(std::fs::read_dir(&deep).unwrap().count(), 0);
    }
}
