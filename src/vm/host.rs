//! What this machine has to run VMs with: programs, their versions, KVM.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::config::vm::Accel;
use crate::image::digest;
use crate::nix::System;
use crate::package;

/// The oldest QEMU that is known to work: Ubuntu 24.04's.
pub const OLDEST_QEMU: QemuVersion = QemuVersion { major: 8, minor: 2 };

/// `--version` starts a program and prints a line.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// Something that xpool needs is not on this machine.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A program is not in PATH.
    #[error("`{program}` is not in PATH; {remedy}")]
    QemuMissing {
        /// The program.
        program: String,
        /// What to do.
        remedy: String,
    },
    /// QEMU is older than what works.
    #[error("`{}` has version {found} and xpool needs {OLDEST_QEMU} or later; {remedy}", program.display())]
    QemuTooOld {
        /// The program.
        program: PathBuf,
        /// Its version.
        found: QemuVersion,
        /// What to do.
        remedy: String,
    },
    /// QEMU was started and did not tell its version.
    #[error("`{} --version` failed: {cause}", program.display())]
    QemuBroken {
        /// The program.
        program: PathBuf,
        /// What happened instead.
        cause: String,
    },
}

/// A version of QEMU, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion {
    /// 10 of 10.0.2.
    pub major: u32,
    /// 0 of 10.0.2.
    pub minor: u32,
}

impl std::fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What to run guests of `system` with on this machine.
pub fn accel_for(system: System) -> Accel {
    let is_native = system.cpu() == std::env::consts::ARCH;
    choose_accel(is_native && kvm_opens(Path::new("/dev/kvm")), is_native)
}

/// KVM runs only the host's own instructions.
fn choose_accel(kvm_opens: bool, is_native: bool) -> Accel {
    if is_native && kvm_opens {
        Accel::Kvm
    } else {
        Accel::Tcg
    }
}

/// A device file that is there proves little: its module may be missing, or the user not in its group.
fn kvm_opens(device: &Path) -> bool {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .is_ok()
}

/// Finds a program of QEMU in `search_path` (the value of PATH), or at an absolute path.
pub fn find_program(program: &str, search_path: &OsStr) -> Result<PathBuf, HostError> {
    // Joining an absolute path gives that path.
    std::env::split_paths(search_path)
        .chain([PathBuf::from("/")])
        .map(|dir| dir.join(program))
        .filter(|path| path.is_absolute())
        .find(|path| is_program(path))
        .ok_or_else(|| HostError::QemuMissing {
            program: program.to_owned(),
            remedy: package::THIS.remedy(package_of(program), "qemu"),
        })
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn package_of(program: &str) -> &'static str {
    match program.rsplit('/').next() {
        Some("qemu-img") => "qemu-utils",
        Some("qemu-system-aarch64") => "qemu-system-arm",
        // `qemu-system-riscv` in newer releases, which this one depends on.
        _ => "qemu-system-misc",
    }
}

/// A QEMU that xpool can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsableQemu {
    /// Its version.
    pub version: QemuVersion,
    /// What tells it from any other: what it says its version is, and SHA-256 of its program, which may be a wrapper.
    pub identity: String,
}

/// The QEMUs that were looked at, each until its program changes: asking takes longer than restoring a guest.
#[derive(Debug, Default)]
pub struct KnownQemus {
    seen: Mutex<HashMap<PathBuf, (FileStamp, UsableQemu)>>,
}

/// Size, time of change in seconds and nanoseconds, inode.
type FileStamp = (u64, i64, i64, u64);

impl KnownQemus {
    /// Asks a QEMU for its version, and refuses one that is too old.
    pub async fn check(&self, program: &Path) -> Result<UsableQemu, HostError> {
        let stamp = std::fs::metadata(program)
            .map(|meta| (meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ino()))
            .map_err(|error| broken(program, error.to_string()))?;
        let seen = || self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, qemu)) = seen().get(program)
            && *then == stamp
        {
            return Ok(qemu.clone());
        }
        let qemu = check_qemu(program).await?;
        seen().insert(program.to_owned(), (stamp, qemu.clone()));
        Ok(qemu)
    }
}

fn broken(program: &Path, cause: String) -> HostError {
    HostError::QemuBroken {
        program: program.to_owned(),
        cause,
    }
}

/// Asks a QEMU for its version, and refuses one that is too old.
pub async fn check_qemu(program: &Path) -> Result<UsableQemu, HostError> {
    let (version, line) = qemu_version(program)
        .await
        .map_err(|cause| broken(program, cause))?;
    if version < OLDEST_QEMU {
        return Err(HostError::QemuTooOld {
            program: program.to_owned(),
            found: version,
            remedy: package::THIS.newer(package_of(&program.to_string_lossy()), "qemu"),
        });
    }
    let reading = program.to_owned();
    let digest = tokio::task::spawn_blocking(move || digest::of_file(&reading))
        .await
        .map_err(io::Error::from)
        .flatten()
        .map_err(|error| broken(program, error.to_string()))?;
    let identity = format!("{line}, {}", digest.0);
    Ok(UsableQemu { version, identity })
}

/// The version, and the line that says so.
async fn qemu_version(program: &Path) -> Result<(QemuVersion, String), String> {
    let output = tokio::process::Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = super::wait::within("it", VERSION_LIMIT, output)
        .await
        .map_err(|timed_out| timed_out.to_string())?
        .map_err(|error| error.to_string())?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let line = printed.lines().next().unwrap_or_default();
    let version = parse_version(line).ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!("{}: {}{}", output.status, printed.trim(), said.trim())
    })?;
    Ok((version, line.to_owned()))
}

/// The version in `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)`.
fn parse_version(printed: &str) -> Option<QemuVersion> {
    let mut numbers = printed
        .strip_prefix("QEMU emulator version ")?
        .split(|c: char| !c.is_ascii_digit());
    Some(QemuVersion {
        major: numbers.next()?.parse().ok()?,
        minor: numbers.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of a test that prints `text`.
    fn program(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho '{text}'\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn kvm_runs_native_guests_where_it_opens() {
        assert_eq!(choose_accel(true, true), Accel::Kvm);
        assert_eq!(choose_accel(true, false), Accel::Tcg);
        assert_eq!(choose_accel(false, true), Accel::Tcg);
        assert!(!kvm_opens(Path::new("/none/kvm")));
    }

    #[test]
    fn a_program_is_found_in_the_search_path_or_where_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "qemu-img", "");
        let search_path = std::env::join_paths([Path::new("/none"), dir.path()]).unwrap();
        assert_eq!(find_program("qemu-img", &search_path).unwrap(), path);
        let absolute = path.to_str().unwrap();
        assert_eq!(find_program(absolute, OsStr::new("")).unwrap(), path);
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = find_program("qemu-system-aarch64", OsStr::new("/none")).unwrap_err();
        insta::assert_snapshot!(error, @"`qemu-system-aarch64` is not in PATH; install it with `apt-get install qemu-system-arm`");
    }

    #[test]
    fn versions_are_read_as_qemu_prints_them() {
        let version = |major, minor| Some(QemuVersion { major, minor });
        assert_eq!(
            parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright"),
            version(10, 0)
        );
        assert_eq!(parse_version("QEMU emulator version 8.2.2"), version(8, 2));
        assert_eq!(parse_version("bash: 8.2"), None);
    }

    #[tokio::test]
    async fn an_old_qemu_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let old = program(
            dir.path(),
            "qemu-system-riscv64",
            "QEMU emulator version 7.2.9 (Debian)",
        );
        let qemus = KnownQemus::default();
        let error = qemus.check(&old).await.unwrap_err().to_string();
        assert!(
            error.contains("has version 7.2 and xpool needs 8.2"),
            "{error}"
        );
        let new = program(dir.path(), "qemu", "QEMU emulator version 8.2.0");
        let usable = qemus.check(&new).await.unwrap();
        assert_eq!(usable.version, OLDEST_QEMU);
        let broken = program(dir.path(), "broken", "oh");
        assert!(qemus.check(&broken).await.is_err());
    }

    #[tokio::test]
    async fn a_qemu_that_was_replaced_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let qemus = KnownQemus::default();
        let path = program(dir.path(), "qemu", "QEMU emulator version 10.0.2");
        let before = qemus.check(&path).await.unwrap();
        assert_eq!(qemus.check(&path).await.unwrap(), before);
        program(dir.path(), "qemu", "QEMU emulator version 10.0.2 (patched)");
        let after = qemus.check(&path).await.unwrap();
        assert_eq!(after.version, before.version);
        assert_ne!(after.identity, before.identity);
    }
}
