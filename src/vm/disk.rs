//! The throw-away disk of a VM: a qcow2 overlay over the image's disk.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::Command;

use super::wait::within;

/// `qemu-img` writes 200 KB; when that takes this long the host's storage hangs.
const CREATE_LIMIT: Duration = Duration::from_secs(60);

/// Makes the qcow2 file `overlay`, which holds what differs from the qcow2 file `base`.
pub(super) async fn create_overlay(
    qemu_img: &Path,
    base: &Path,
    overlay: &Path,
) -> anyhow::Result<()> {
    let doing = || {
        format!(
            "making the VM's disk `{}` over `{}`",
            overlay.display(),
            base.display()
        )
    };
    let output = Command::new(qemu_img)
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(base)
        .arg(overlay)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = within("`qemu-img create`", CREATE_LIMIT, output)
        .await
        .with_context(doing)?
        .with_context(|| format!("starting `{}`", qemu_img.display()))
        .with_context(doing)?;
    if output.status.success() {
        return Ok(());
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
        let error = create_overlay(
            Path::new("/none/qemu-img"),
            Path::new("/b"),
            Path::new("/o"),
        )
        .await
        .unwrap_err();
        assert!(format!("{error:#}").contains("/none/qemu-img"), "{error:#}");
    }
}
