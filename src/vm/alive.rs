//! How it is told whether a VM's QEMU still runs, and which process it is, by whoever did not start it: its standard input is a file in
//! the VM's private folder, on which it holds a lock. Nobody else can open that file, and a lock ends with its process.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::process::Pid;

/// The file in a VM's private folder.
const ALIVE: &str = "alive";

/// What is to be the standard input of the QEMU whose private folder this is: empty, and locked.
pub(super) fn input(folder: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // Made anew, so that nobody else holds it.
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(folder.join(ALIVE))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Whether the QEMU of a private folder runs.
pub(super) fn is_alive(folder: &Path) -> io::Result<bool> {
    let file = match File::open(folder.join(ALIVE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        locked => locked.map(|()| false).map_err(io::Error::from),
    }
}

/// Whether it may run: as far as can be told, or it is one of before there was such a file.
pub(super) fn may_be_alive(folder: &Path) -> bool {
    is_alive(folder).unwrap_or(false) || !folder.join(ALIVE).exists()
}

/// The processes that have such a file of this folder, or of one below it, as their standard input, removed or not. Those of other
/// users cannot be seen, and have none.
pub(super) fn processes(folder: &Path) -> io::Result<Vec<Pid>> {
    // As the kernel names it.
    let folder = fs::canonicalize(folder)?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|pid| is_one(*pid, &folder)) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Whether a process is one of a folder's, which the kernel names like this.
pub(super) fn is_one(pid: Pid, folder: &Path) -> bool {
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    // Root can look at those of others.
    let owner = fs::metadata(&process).ok().map(|process| process.uid());
    if owner != Some(rustix::process::geteuid().as_raw()) {
        return false;
    }
    let input = fs::read_link(process + "/fd/0").unwrap_or_default();
    let name = input.file_name().and_then(|name| name.to_str());
    let is_ours = name.is_some_and(|name| name.strip_suffix(" (deleted)").unwrap_or(name) == ALIVE);
    is_ours && input.starts_with(folder)
}
