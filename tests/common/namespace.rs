//! Commands in a mount namespace of their own: with another root folder, or with a /nix that this machine does not have.
//!
//! `namespace.sh` makes it. The folder /tmp, where installations are, is the same inside and outside.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/namespace.sh");

/// A command that sees the folders of `system` in its root, and `place/nix` as /nix if there is one.
pub fn command(place: &Path, system: &Path, program: impl AsRef<OsStr>) -> Command {
    fs::create_dir_all(place.join("root")).unwrap();
    let mut command = Command::new(SCRIPT);
    command.arg(place).arg(system).arg(program);
    command
}

/// Says that a test is skipped, where an ordinary user may have no namespaces. For root, that is a failure.
pub fn skipped(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return false;
    }
    let place = tempfile::tempdir_in("/tmp").unwrap();
    let status = command(place.path(), Path::new("/"), "true")
        .stderr(Stdio::null())
        .status();
    let skipped = !status.unwrap().success();
    if skipped {
        super::skip(
            test,
            "an ordinary user may mount nothing here, not even in a namespace of its own",
        );
    }
    skipped
}
