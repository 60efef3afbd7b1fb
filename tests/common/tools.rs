//! The tools of builds. A guest's sandbox has a shell and nothing else, as on NixOS, so a builder that calls anything needs it as an
//! input.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use xpool::nix::System;

use super::vm::image;

/// What builders of tests call.
const TOOLS: [&str; 33] = [
    "awk",
    "cat",
    "chmod",
    "cp",
    "dd",
    "df",
    "grep",
    "head",
    "id",
    "ln",
    "ls",
    "mkdir",
    "mkfifo",
    "mv",
    "nslookup",
    "readlink",
    "rm",
    "sed",
    "seq",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "tail",
    "touch",
    "tr",
    "truncate",
    "uname",
    "uniq",
    "unshare",
    "wc",
    "wget",
    "yes",
];

/// Makes a folder `tools` in `place`, where evaluations take place: for each system one with a `bin` as of a package. It has the busybox
/// that is in the initial RAM disk of the portable guest, and links to it.
pub fn put_into(place: &Path) {
    for system in System::ALL {
        let bin = place.join("tools").join(system.name()).join("bin");
        fs::create_dir_all(&bin).unwrap();
        let initrd = fs::File::open(image(system).dir.join("initrd")).unwrap();
        let mut cpio = Command::new("cpio");
        let cpio = cpio.args(["--extract", "--quiet", "--to-stdout", "bin/busybox"]);
        let output = cpio.stdin(initrd).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty());
        let busybox = bin.join("busybox");
        fs::write(&busybox, output.stdout).unwrap();
        fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755)).unwrap();
        for tool in TOOLS {
            symlink("busybox", bin.join(tool)).unwrap();
        }
    }
}
