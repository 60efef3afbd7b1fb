//! What xpool itself asks a Nix daemon: requests, and their replies from bytes that may not all be there yet.
//!
//! Source: `daemon.cc` (`performOp`), `remote-store.cc` and `worker-protocol.cc` of Nix 2.3 to 2.34, protocols 1.21 to 1.37.

use super::stderr;
use super::store_path::StorePath;
use super::wire::{Reader, Version, WireError, put_number, put_string};

const ADD_TEMP_ROOT: u64 = 11;
const QUERY_PATH_INFO: u64 = 26;
const QUERY_VALID_PATHS: u64 = 31;

/// Texts and names in replies are shorter, in bytes.
const LONGEST_TEXT: usize = 64 * 1024;
/// A path has fewer references and signatures, and a request fewer paths.
pub const MOST_PATHS: usize = 100_000;
/// Activities have fewer fields, and errors fewer traces.
const MOST_PARTS: u64 = 10_000;

/// What a store knows of a valid path, as far as registering it elsewhere needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathInfo {
    /// The derivation that made it, if that is known.
    pub deriver: Option<StorePath>,
    /// SHA-256 of its NAR, in hex.
    pub nar_hash: String,
    /// Paths that it refers to, itself perhaps among them.
    pub references: Vec<StorePath>,
    /// Size of its NAR in bytes; 0 where the store does not know.
    pub nar_size: u64,
    /// What its content says its path is, of a path that is made of its content: `text:sha256:…`.
    pub content_address: Option<String>,
}

/// Why a reply is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// Its end is not there yet, or it is not what it should be.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The daemon says no.
    #[error("{0}")]
    Refused(String),
    /// It is no reply to what was asked.
    #[error("not understood: {0}")]
    Odd(&'static str),
}

/// Asks that a path be kept as long as the connection is there. Said before it is asked whether the path is there, so that
/// what is found stays.
pub fn put_add_temp_root(out: &mut Vec<u8>, path: &StorePath) {
    put_number(out, ADD_TEMP_ROOT);
    put_string(out, path.as_str().as_bytes());
}

/// Asks which of these paths are valid; without looking for substitutes.
pub fn put_query_valid_paths(out: &mut Vec<u8>, version: Version, paths: &[StorePath]) {
    put_number(out, QUERY_VALID_PATHS);
    put_number(out, paths.len() as u64);
    for path in paths {
        put_string(out, path.as_str().as_bytes());
    }
    if version.has(27) {
        put_number(out, 0);
    }
}

/// Asks what is known of a path.
pub fn put_query_path_info(out: &mut Vec<u8>, path: &StorePath) {
    put_number(out, QUERY_PATH_INFO);
    put_string(out, path.as_str().as_bytes());
}

/// The one path that a client asks about or for, where that is what its first request does: its bytes from the operation's
/// number on. `None` for what is no path of this store.
pub fn asked_path(request: &[u8]) -> Result<Option<StorePath>, WireError> {
    let mut reader = Reader::new(request);
    reader.number()?;
    Ok(StorePath::parse(reader.string(LONGEST_TEXT)?))
}

/// The paths that a client asks about, where that is what its first request does: its bytes from the operation's number on.
/// What is no path of this store is left out.
pub fn queried_paths(request: &[u8], version: Version) -> Result<Vec<StorePath>, WireError> {
    let mut reader = Reader::new(request);
    reader.number()?;
    let paths = reader.strings(MOST_PATHS, LONGEST_TEXT)?;
    if version.has(27) {
        reader.number()?;
    }
    Ok(paths.into_iter().filter_map(StorePath::parse).collect())
}

/// The reply to [`put_add_temp_root`].
pub fn read_add_temp_root(reader: &mut Reader<'_>, version: Version) -> Result<(), ReplyError> {
    skip_to_reply(reader, version)?;
    reader.number()?;
    Ok(())
}

/// The reply to [`put_query_valid_paths`].
pub fn read_valid_paths(
    reader: &mut Reader<'_>,
    version: Version,
) -> Result<Vec<StorePath>, ReplyError> {
    skip_to_reply(reader, version)?;
    read_paths(reader)
}

/// The reply to [`put_query_path_info`]; `None` for a path that is not valid.
pub fn read_path_info(
    reader: &mut Reader<'_>,
    version: Version,
) -> Result<Option<PathInfo>, ReplyError> {
    skip_to_reply(reader, version)?;
    if reader.number()? == 0 {
        return Ok(None);
    }
    let deriver = StorePath::parse(reader.string(LONGEST_TEXT)?);
    let nar_hash = std::str::from_utf8(reader.string(LONGEST_TEXT)?)
        .ok()
        .filter(|hash| hash.len() == 64 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()))
        .ok_or(ReplyError::Odd("a hash that is not SHA-256 in hex"))?
        .to_owned();
    let references = read_paths(reader)?;
    reader.number()?; // when it was registered
    let nar_size = reader.number()?;
    reader.number()?; // whether it was built here
    reader.strings(MOST_PATHS, LONGEST_TEXT)?; // signatures
    let content_address = content_address(reader.string(LONGEST_TEXT)?)?;
    Ok(Some(PathInfo {
        deriver,
        nar_hash,
        references,
        nar_size,
        content_address,
    }))
}

/// Words with colons between them, and a digest in one of Nix's forms.
fn content_address(text: &[u8]) -> Result<Option<String>, ReplyError> {
    let is_expected = |byte: &u8| byte.is_ascii_alphanumeric() || b":+/=-".contains(byte);
    if !text.iter().all(is_expected) {
        return Err(ReplyError::Odd("a content address that is none"));
    }
    let text = String::from_utf8_lossy(text).into_owned();
    Ok(Some(text).filter(|text| !text.is_empty()))
}

fn read_paths(reader: &mut Reader<'_>) -> Result<Vec<StorePath>, ReplyError> {
    let paths = reader.strings(MOST_PATHS, LONGEST_TEXT)?.into_iter();
    paths
        .map(|path| {
            StorePath::parse(path).ok_or(ReplyError::Odd("a path that is not in the store"))
        })
        .collect()
}

/// Reads what a daemon says while it works, up to the reply.
fn skip_to_reply(reader: &mut Reader<'_>, version: Version) -> Result<(), ReplyError> {
    loop {
        match reader.number()? {
            stderr::LAST => return Ok(()),
            stderr::NEXT => drop(reader.string(LONGEST_TEXT)?),
            stderr::START_ACTIVITY => {
                for _ in 0..3 {
                    reader.number()?;
                }
                reader.string(LONGEST_TEXT)?;
                skip_fields(reader)?;
                reader.number()?;
            }
            stderr::STOP_ACTIVITY => drop(reader.number()?),
            stderr::RESULT => {
                reader.number()?;
                reader.number()?;
                skip_fields(reader)?;
            }
            stderr::ERROR => return Err(ReplyError::Refused(read_error(reader, version)?)),
            _ => return Err(ReplyError::Odd("a frame of another kind")),
        }
    }
}

fn skip_fields(reader: &mut Reader<'_>) -> Result<(), ReplyError> {
    for _ in 0..parts(reader)? {
        match reader.number()? {
            0 => drop(reader.number()?),
            1 => drop(reader.string(LONGEST_TEXT)?),
            _ => return Err(ReplyError::Odd("a field of another kind")),
        }
    }
    Ok(())
}

fn read_error(reader: &mut Reader<'_>, version: Version) -> Result<String, ReplyError> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !version.has(26) {
        let message = text(reader.string(LONGEST_TEXT)?);
        reader.number()?; // exit status
        return Ok(message);
    }
    reader.string(LONGEST_TEXT)?; // kind
    reader.number()?; // level
    reader.string(LONGEST_TEXT)?; // name
    let message = text(reader.string(LONGEST_TEXT)?);
    reader.number()?; // position
    for _ in 0..parts(reader)? {
        reader.number()?;
        reader.string(LONGEST_TEXT)?;
    }
    Ok(message)
}

fn parts(reader: &mut Reader<'_>) -> Result<u64, ReplyError> {
    let count = reader.number()?;
    if count > MOST_PARTS {
        return Err(ReplyError::Odd("too many parts"));
    }
    Ok(count)
}

#[cfg(test)]
mod tests;
