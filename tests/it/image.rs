//! What a person is told when an image cannot be made. The tools are stand-ins: no package is fetched, and no VM runs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::common::{Installation, Said};
use insta::assert_snapshot;
use tempfile::TempDir;

/// What images/portable/build.sh looks for before it begins.
const TOOLS: [&str; 10] = [
    "apt-get",
    "cpio",
    "depmod",
    "dpkg-deb",
    "fakeroot",
    "mke2fs",
    "mmdebstrap",
    "modprobe",
    "qemu-img",
    "xz",
];

/// As mmdebstrap and apt say it where a mirror does not answer.
const NO_ANSWER: &str = "W: running chrootless mode as root might damage the host system
I: running apt-get update...
Ign:1 http://mirror.example/debian trixie InRelease
Err:1 http://mirror.example/debian trixie InRelease
  Could not connect to mirror.example:80 (192.0.2.1). - connect (111: Connection refused)
Reading package lists...
E: Failed to fetch http://mirror.example/debian/dists/trixie/InRelease  Could not connect to mirror.example:80 (192.0.2.1).
E: Some index files failed to download. They have been ignored, or old ones used instead.
I: main() received signal PIPE: waiting for setup...
E: mmdebstrap failed to run
";

/// An installation with stand-ins for the tools, of which mmdebstrap says something and fails.
struct Failing {
    installation: Installation,
    /// Where there is space, which an image needs before it is begun.
    cache: TempDir,
}

impl Failing {
    fn new(says: &str) -> Self {
        let installation = Installation::new("");
        let tools = installation.path().join("tools");
        fs::create_dir(&tools).unwrap();
        for tool in TOOLS {
            put(&tools, tool, "exit 1");
        }
        put(
            &tools,
            "qemu-system-riscv64",
            "echo QEMU emulator version 9.2.0",
        );
        put(&tools, "fakeroot", r#"shift; exec "$@""#);
        fs::write(tools.join("says"), says).unwrap();
        put(&tools, "mmdebstrap", r#"cat "${0%/*}/says" >&2; exit 1"#);
        fs::write(tools.join("debian-archive-keyring.gpg"), "").unwrap();
        Self {
            installation,
            cache: TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
        }
    }

    fn run(&self, args: &[&str]) -> Said {
        let tools = self.installation.path().join("tools");
        let path = std::env::var("PATH").unwrap();
        let mut command = self.installation.command(args);
        command
            .env("PATH", format!("{}:{path}", tools.display()))
            .env("XPOOL_DEBIAN_KEYRINGS", &tools)
            .env("XPOOL_CACHE_DIR", self.cache.path());
        self.installation.said(command.output().unwrap())
    }
}

fn put(dir: &Path, program: &str, script: &str) {
    let path = dir.join(program);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn an_error_has_what_the_package_manager_complained_of() {
    let failing = Failing::new(NO_ANSWER);
    let said = failing.run(&["image", "build", "riscv64"]);
    assert_eq!(said.code, Some(69));
    assert_snapshot!(said.stderr, @r"
        Building image riscv64-linux: checking tools and space
        Building image riscv64-linux: fetching and unpacking packages
    error: building the image for riscv64-linux: the Debian packages could not be fetched; the tools said:
    E: Failed to fetch http://mirror.example/debian/dists/trixie/InRelease  Could not connect to mirror.example:80 (192.0.2.1).
    E: Some index files failed to download. They have been ignored, or old ones used instead.
    E: mmdebstrap failed to run
    all of it is in `[DIR]/state/logs/image-riscv64-linux.log`

    hint: check the network, or name a mirror in XPOOL_DEBIAN_MIRROR
    ");
    let up = failing.run(&["up", "riscv64"]);
    assert_eq!((up.code, up.stderr), (said.code, said.stderr));
}

#[test]
fn a_failure_without_a_name_has_the_last_words() {
    let says = "I: running apt-get update...\nE: The mirror has no Release file.\n";
    let said = Failing::new(says).run(&["image", "build", "riscv64"]);
    assert_eq!(said.code, Some(1));
    assert_snapshot!(said.stderr, @r"
        Building image riscv64-linux: checking tools and space
        Building image riscv64-linux: fetching and unpacking packages
    error: building the image for riscv64-linux: exit status: 1; its last words:
    I: running apt-get update...
    E: The mirror has no Release file.
    error: mmdebstrap failed
    all of them are in `[DIR]/state/logs/image-riscv64-linux.log`
    ");
}

#[test]
fn with_v_everything_is_shown_as_it_comes() {
    let said = Failing::new(NO_ANSWER).run(&["-v", "image", "build", "riscv64"]);
    let before = said.stderr.split("error: ").next().unwrap();
    let (_, shown) = before
        .split_once("fetching and unpacking packages\n")
        .unwrap();
    assert_eq!(shown, NO_ANSWER);
}

#[test]
fn the_log_has_everything_and_no_file_of_the_build_is_left() {
    let failing = Failing::new(NO_ANSWER);
    failing.run(&["image", "build", "riscv64"]);
    let log = failing
        .installation
        .state()
        .join("logs/image-riscv64-linux.log");
    assert!(fs::read_to_string(log).unwrap().starts_with(NO_ANSWER));
    let left = fs::read_dir(failing.cache.path().join("images")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".riscv64-linux.lock"]);
}
