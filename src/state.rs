//! The state folder: private, and of one manager at a time.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use tokio::net::UnixListener;

use crate::paths::Paths;

/// Another manager uses the state folder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("another manager{} uses `{}`", pid.as_ref().map_or(String::new(), |pid| format!(" (pid {pid})")), state.display())]
pub struct StateInUse {
    /// The folder.
    pub state: PathBuf,
    /// The other's process, where it has said so already.
    pub pid: Option<String>,
}

/// The state folder belongs to somebody else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` belongs to user {owner}, not to you", state.display())]
pub struct StateOfOther {
    /// The folder.
    pub state: PathBuf,
    /// The numeric user.
    pub owner: u32,
}

/// Makes the state folder and what is in it, for this user's eyes only.
pub fn prepare(paths: &Paths) -> Result<()> {
    check_name(paths.state(), "state folder", "--state-dir")?;
    for dir in [
        paths.state().to_owned(),
        paths.logs(),
        paths.vms(),
        paths.no_store(),
    ] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("creating `{}`", dir.display()))?;
    }
    let state = paths.state();
    let metadata =
        std::fs::metadata(state).with_context(|| format!("reading `{}`", state.display()))?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(StateOfOther {
            state: state.to_owned(),
            owner: metadata.uid(),
        }
        .into());
    }
    // A group may enter, if a manager has let it; see [`admit`].
    if metadata.mode() & 0o067 != 0 {
        std::fs::set_permissions(state, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("making `{}` private", state.display()))?;
    }
    Ok(())
}

/// Fails if Nix or ssh could not read the name of a folder; `option` names another one.
pub fn check_name(folder: &Path, what: &str, option: &str) -> Result<()> {
    let text = folder.to_string_lossy();
    let Some(character) = text.chars().find(|c| is_unreadable(*c)) else {
        return Ok(());
    };
    let odd = if character.is_whitespace() {
        "white space".to_owned()
    } else {
        format!("`{character}`")
    };
    bail!(
        "the {what} `{text}` has {odd} in its name, which Nix cannot read; name another one with `{option}`"
    );
}

/// The user that a state folder belongs to; none where there is no folder.
pub fn owner(paths: &Paths) -> Option<u32> {
    std::fs::metadata(paths.state())
        .ok()
        .map(|state| state.uid())
}

/// Nix takes machines lines and `NIX_SSHOPTS` apart at white space and, of late, as a shell would; it ends a machine at `;`
/// and begins a comment at `#`; ssh replaces what begins with `%`.
fn is_unreadable(character: char) -> bool {
    character.is_whitespace() || character.is_control() || "#;%\"'\\$`".contains(character)
}

/// The right to be the manager of a state folder, as long as the value lives. The file stays: another process may
/// already have it open.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes the right, or says who has it.
    pub fn take(paths: &Paths) -> Result<Self> {
        let path = paths.lock();
        let mut file = open_lock(&path)?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            // Empty for the moment between the other's locking and its writing.
            file.read_to_string(&mut pid)
                .with_context(|| format!("reading `{}`", path.display()))?;
            let pid = Some(pid.trim().to_owned()).filter(|pid| !pid.is_empty());
            return Err(StateInUse {
                state: paths.state().to_owned(),
                pid,
            }
            .into());
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .with_context(|| format!("writing `{}`", path.display()))?;
        Ok(Self { _file: file })
    }
}

/// A socket that somebody else than a manager listens on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("somebody listens at `{}`, and it is no manager", socket.display())]
pub struct SocketOfOther {
    /// Where.
    pub socket: PathBuf,
}

/// The socket that was given for a place in the state folder, or one that listens there.
pub fn listen_or_take(
    given: Option<std::os::unix::net::UnixListener>,
    socket: &Path,
) -> Result<UnixListener> {
    let Some(given) = given else {
        return listen(socket);
    };
    given
        .set_nonblocking(true)
        .and_then(|()| UnixListener::from_std(given))
        .with_context(|| format!("using the socket given for `{}`", socket.display()))
}

/// Listens on a socket in the state folder. The lock is held, so a socket that is there is a dead manager's; unless a service
/// manager holds it, to start a manager when somebody comes.
pub fn listen(socket: &Path) -> Result<UnixListener> {
    if is_listened_on(socket) {
        let socket = socket.to_owned();
        return Err(SocketOfOther { socket }.into());
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing `{}`", socket.display()));
        }
        _ => {}
    }
    // Only who can enter the folder that it is in can connect. A folder may be a group's, and a socket is not, unless it is given to one.
    let listener = UnixListener::bind(socket)
        .with_context(|| format!("listening on `{}`", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("setting the mode of `{}`", socket.display()))?;
    Ok(listener)
}

/// Whether anybody listens on a socket. Never waits, however long the line of those who have come is.
fn is_listened_on(socket: &Path) -> bool {
    let connect = || {
        let address = SocketAddrUnix::new(socket)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&probe, &address)
    };
    matches!(connect(), Ok(()) | Err(Errno::AGAIN))
}

/// Lets a group enter the state folder, where its members may connect to one socket and see nothing else; or nobody.
pub fn admit(paths: &Paths, group: Option<u32>) -> Result<()> {
    let (state, socket) = (paths.state(), paths.connect_socket());
    let (folder_mode, socket_mode) = match group {
        Some(_) => (0o710, 0o660),
        None => (0o700, 0o600),
    };
    for (path, mode) in [(&socket as &Path, socket_mode), (state, folder_mode)] {
        if group.is_some() {
            std::os::unix::fs::chown(path, None, group)
                .with_context(|| format!("giving `{}` to the group", path.display()))?;
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
            .with_context(|| format!("setting the mode of `{}`", path.display()))?;
    }
    Ok(())
}

/// Makes way for a new log: what is there becomes `<name>.old`.
pub fn set_aside(log: &Path) -> Result<()> {
    let mut old = log.as_os_str().to_owned();
    old.push(".old");
    match std::fs::rename(log, &old) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("renaming `{}`", log.display()))
        }
        _ => Ok(()),
    }
}

/// Waits, off the runtime's threads, until a lock file is free, and takes it.
pub async fn wait_for_lock(path: PathBuf) -> Result<File> {
    tokio::task::spawn_blocking(move || lock(&path)).await?
}

/// Waits on this thread until a lock file is free, and takes it: for one that is held for moments only.
pub fn lock(path: &Path) -> Result<File> {
    let file = open_lock(path)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .with_context(|| format!("locking `{}`", path.display()))?;
    Ok(file)
}

fn open_lock(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("opening `{}`", path.display()))
}

/// Writes a file as a whole or not at all, for this user only.
pub fn write_atomically(path: &Path, content: &str) -> Result<()> {
    write_with_mode(path, content.as_bytes(), 0o600)
}

/// The same, for whom the mode says.
pub fn write_with_mode(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(content)?;
        // Whatever the process's mask is.
        file.as_file()
            .set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("writing `{}`", path.display()))
}

/// Makes a directory, and those above it that are missing, that everybody can enter, whatever the process's mask is.
pub fn make_open_dir(folder: &Path) -> Result<()> {
    let missing: Vec<&Path> = folder
        .ancestors()
        .take_while(|folder| !folder.exists())
        .collect();
    for folder in missing.into_iter().rev() {
        let made = DirBuilder::new().mode(0o755).create(folder);
        match made {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
            made => made.and_then(|()| {
                std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
            }),
        }
        .with_context(|| format!("creating `{}`", folder.display()))?;
    }
    Ok(())
}
