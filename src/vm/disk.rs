//! The throw-away disk of a VM: a qcow2 overlay over the image's disk.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::Command;

use super::wait::within;

/// `qemu-img` writes 200 KB; when that takes this long the host's storage hangs.
const CREATE_LIMIT: Duration = Duration::from_secs(60);

/// A VM's disk, as it grows.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) overlay: PathBuf,
    /// Of what the guest sees, in bytes.
    pub(super) size: u64,
}

impl Disk {
    /// Whether so much was written that another build may not find enough room. What is deleted in the guest is given back to its
    /// file system, and not to this machine's.
    pub(super) fn is_worn(&self) -> bool {
        let Ok(overlay) = self.overlay.metadata() else {
            return false;
        };
        // Unknown is as good as endless.
        let left = rustix::fs::statvfs(&self.overlay)
            .map_or(u64::MAX, |host| host.f_bavail.saturating_mul(host.f_frsize));
        is_worn(overlay.blocks() * 512, self.size, left)
    }
}

/// Half of the disk is written, or more than what this machine's disk has left.
fn is_worn(written: u64, size: u64, left: u64) -> bool {
    written > (size / 2).min(left)
}

fn bytes(gib: u32) -> u64 {
    u64::from(gib) << 30
}

/// The size of the disk in a qcow2 file, in bytes: 8 bytes of its header (docs/interop/qcow2.rst of QEMU).
fn size_of(file: &Path) -> io::Result<u64> {
    let mut header = [0; 32];
    File::open(file)?.read_exact(&mut header)?;
    let (_, size) = header.split_at(24);
    Ok(size.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

/// Makes the qcow2 file `overlay`, which holds what differs from the qcow2 file `base`. Its disk has so many GiB, and as many as that of
/// `base` at the least; the guest makes its file system as large. Gives its size in bytes.
pub(super) async fn create_overlay(
    qemu_img: &Path,
    base: &Path,
    overlay: &Path,
    gib: u32,
) -> anyhow::Result<u64> {
    let doing = || {
        format!(
            "making the VM's disk `{}` over `{}`",
            overlay.display(),
            base.display()
        )
    };
    let base_size = size_of(base).with_context(|| format!("reading `{}`", base.display()));
    let size = base_size.with_context(doing)?.max(bytes(gib));
    let output = Command::new(qemu_img)
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(base)
        .arg(overlay)
        .arg(size.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = within("`qemu-img create`", CREATE_LIMIT, output)
        .await
        .with_context(doing)?
        .with_context(|| format!("starting `{}`", qemu_img.display()))
        .with_context(doing)?;
    if output.status.success() {
        return Ok(size);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(anyhow::anyhow!("{}", failure(&said, overlay))).with_context(doing)
}

/// What `qemu-img` said, and what to do where that is known.
fn failure(said: &str, overlay: &Path) -> String {
    let said = said.trim();
    if said.contains("No space left on device") || said.contains("Disk quota exceeded") {
        let place = overlay.parent().unwrap_or(overlay).display();
        return format!(
            "{said}; free some space where `{place}` lies, or set XPOOL_STATE_DIR to another disk"
        );
    }
    format!("`qemu-img create` failed: {said}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_reported_with_the_place_and_what_to_do() {
        let said = "qemu-img: /s/vm1/disk: Could not write qcow2 header: No space left on device\n";
        insta::assert_snapshot!(
            failure(said, Path::new("/s/vm1/disk")),
            @"qemu-img: /s/vm1/disk: Could not write qcow2 header: No space left on device; free some space where `/s/vm1` lies, or set XPOOL_STATE_DIR to another disk"
        );
    }

    #[tokio::test]
    async fn a_missing_qemu_img_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        std::fs::write(&base, [0; 32]).unwrap();
        let overlay = Path::new("/o");
        let error = create_overlay(Path::new("/none/qemu-img"), &base, overlay, 16).await;
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("/none/qemu-img"), "{error}");
    }

    #[test]
    fn the_size_of_a_disk_is_read_from_its_header() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        let mut header = b"QFI\xfb".to_vec();
        header.resize(24, 0);
        header.extend_from_slice(&(40_u64 << 30).to_be_bytes());
        std::fs::write(&file, &header).unwrap();
        assert_eq!(size_of(&file).unwrap(), 40 << 30);
        std::fs::write(&file, "short").unwrap();
        size_of(&file).unwrap_err();
    }

    #[test]
    fn a_disk_is_worn_when_half_of_it_is_written_or_this_machines_is_nearly_full() {
        let gib = |n: u64| n << 30;
        assert!(!is_worn(gib(8), gib(16), gib(100)));
        assert!(is_worn(gib(8) + 1, gib(16), gib(100)));
        assert!(is_worn(gib(3), gib(16), gib(2)));
        assert!(!is_worn(gib(2), gib(16), gib(2)));
    }
}
