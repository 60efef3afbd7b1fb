//! The two keys of an installation: the one that the gateway is known by, and the one that Nix logs in with.
//!
//! Made once, then only read. A file that is not as it should be is never overwritten: it may be somebody's only copy.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{PrivateKey, PublicKey, PublicKeyBase64 as _};

/// No key file is larger, in bytes.
const MAX_KEY_FILE: u64 = 16 * 1024;

const HOST_KEY: &str = "host_ed25519";
const CLIENT_KEY: &str = "client_ed25519";

/// The keys of an installation.
#[derive(Clone, Debug)]
pub struct GatewayKeys {
    folder: PathBuf,
    host: PrivateKey,
    client: PrivateKey,
}

impl GatewayKeys {
    /// Reads the keys in `folder`, and makes the folder and the keys that are not there.
    pub fn load_or_create(folder: &Path) -> anyhow::Result<Self> {
        prepare_folder(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            host: load_or_create_key(&folder.join(HOST_KEY), "xpool gateway")?,
            client: load_or_create_key(&folder.join(CLIENT_KEY), "xpool client")?,
        })
    }

    /// Reads the keys of another user's installation. Nothing is read that is not that user's: a link, say.
    pub fn load_of(owner: u32, folder: &Path) -> anyhow::Result<Self> {
        let key = |name: &str| {
            let path = folder.join(name);
            let missing = || {
                format!(
                    "there is no key `{}`: start the manager once",
                    path.display()
                )
            };
            load(&path, owner)?.with_context(missing)
        };
        Ok(Self {
            folder: folder.to_owned(),
            host: key(HOST_KEY)?,
            client: key(CLIENT_KEY)?,
        })
    }

    /// The key that the gateway is known by.
    pub fn host(&self) -> &PrivateKey {
        &self.host
    }

    /// The public half of the key that Nix logs in with.
    pub fn client(&self) -> &PublicKey {
        self.client.public_key()
    }

    /// The key that Nix logs in with, as a file of OpenSSH's has it.
    pub fn client_text(&self) -> anyhow::Result<String> {
        let text = self.client.to_openssh(LineEnding::LF);
        Ok(text.context("cannot write a key")?.to_string())
    }

    /// The file that Nix logs in with: the third field of a machine, or `ssh -i`.
    pub fn client_file(&self) -> PathBuf {
        self.folder.join(CLIENT_KEY)
    }

    /// A line for `known_hosts`; `host` as it stands there: `xpool-riscv64`, `[127.0.0.1]:2222`.
    pub fn known_hosts_line(&self, host: &str) -> String {
        format!("{host} {}", self.host_line())
    }

    /// The host key as the eighth field of a machine wants it: its text in base64.
    pub fn machine_field(&self) -> String {
        base64(self.host_line().as_bytes())
    }

    /// The host key's public half as ssh writes it, without a comment: `ssh-ed25519 AAAA…`.
    fn host_line(&self) -> String {
        let key = self.host.public_key();
        format!("{} {}", key.algorithm(), key.public_key_base64())
    }
}

fn prepare_folder(folder: &Path) -> anyhow::Result<()> {
    let shown = folder.display();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("cannot make the folder {shown} for the gateway's keys"))?;
    let metadata =
        fs::symlink_metadata(folder).with_context(|| format!("cannot look at {shown}"))?;
    ensure!(metadata.is_dir(), "{shown} is not a folder: move it away");
    ensure_private(&metadata, us(), folder, "700")
}

fn us() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Owned by a user and closed to everybody else.
fn ensure_private(
    metadata: &fs::Metadata,
    wanted: u32,
    path: &Path,
    mode: &str,
) -> anyhow::Result<()> {
    let path = path.display();
    let owner = metadata.uid();
    ensure!(
        owner == wanted,
        "{path} belongs to user {owner}, and the manager is that of user {wanted}: change the owner with `chown`, or move it away"
    );
    let open_to = metadata.permissions().mode() & 0o077;
    ensure!(
        open_to == 0,
        "{path} can be used by others than its owner: close it with `chmod {mode} {path}`"
    );
    Ok(())
}

fn load_or_create_key(path: &Path, comment: &str) -> anyhow::Result<PrivateKey> {
    let key = match load(path, us())? {
        Some(key) => key,
        None => match create(path, comment)? {
            Some(key) => key,
            None => {
                load(path, us())?.with_context(|| format!("{} comes and goes", path.display()))?
            }
        },
    };
    write_public_half(path, &key)?;
    Ok(key)
}

/// The key in a file of a user's; `None` if there is no file.
fn load(path: &Path, owner: u32) -> anyhow::Result<Option<PrivateKey>> {
    let shown = path.display();
    // Without following links, and without waiting for the other end of a pipe.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = flags.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot open the key {shown}")),
    };
    let metadata = file
        .metadata()
        .with_context(|| format!("cannot look at {shown}"))?;
    ensure!(
        metadata.is_file(),
        "{shown} is not a file: move it away, and xpool makes a new key"
    );
    ensure_private(&metadata, owner, path, "600")?;
    let mut text = String::new();
    let read = file.take(MAX_KEY_FILE).read_to_string(&mut text);
    read.with_context(|| format!("cannot read the key {shown}"))?;
    let key = PrivateKey::from_openssh(&text).with_context(|| {
        format!("{shown} is not a private key in OpenSSH's format: move it away, and xpool makes a new one")
    })?;
    let is_usable = !key.is_encrypted() && key.algorithm() == russh::keys::Algorithm::Ed25519;
    ensure!(
        is_usable,
        "{shown} has a passphrase or is no Ed25519 key: move it away, and xpool makes a new one"
    );
    Ok(Some(key))
}

/// Makes a key; `None` if somebody else made one meanwhile.
fn create(path: &Path, comment: &str) -> anyhow::Result<Option<PrivateKey>> {
    let shown = path.display();
    let mut seed = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut seed))
        .context("cannot read /dev/urandom")?;
    let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
    let key = PrivateKey::new(pair, comment).context("cannot make a key")?;
    let text = key
        .to_openssh(LineEnding::LF)
        .context("cannot write a key")?;
    let file = written(path, text.as_bytes(), 0o600)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(Some(key)),
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(error.error).with_context(|| format!("cannot make the key {shown}")),
    }
}

fn write_public_half(path: &Path, key: &PrivateKey) -> anyhow::Result<()> {
    let public = path.with_extension("pub");
    let text = key
        .public_key()
        .to_openssh()
        .context("cannot write a public key")?
        + "\n";
    if fs::read_to_string(&public).is_ok_and(|present| present == text) {
        return Ok(());
    }
    let persisted = written(&public, text.as_bytes(), 0o644)?.persist(&public);
    persisted.with_context(|| format!("cannot write {}", public.display()))?;
    Ok(())
}

/// A new file beside `path` with everything in it, which is then put in place at once.
fn written(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<tempfile::NamedTempFile> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || {
        let mut builder = tempfile::Builder::new();
        let builder = builder
            .prefix(".key-")
            .permissions(fs::Permissions::from_mode(mode));
        let mut file = builder.tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        std::io::Result::Ok(file)
    };
    write().with_context(|| format!("cannot write into {}", folder.display()))
}

/// Base64 with padding (RFC 4648), as Nix reads it.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .fold(0, |word, byte| word << 8 | usize::from(*byte));
        let word = word << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let is_padding = digit > chunk.len();
            let value = word >> (18 - 6 * digit) & 63;
            out.push(if is_padding {
                '='
            } else {
                char::from(DIGITS[value])
            });
        }
    }
    out
}

#[cfg(test)]
mod tests;
