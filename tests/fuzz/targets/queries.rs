//! First requests, and a daemon's replies to what xpool asks: a part is incomplete or comes to the same as the whole.
//!
//! Input: what it is and in which version, where to cut, then what was said.
#![cfg_attr(fuzzing, no_main)]

use xpool::nix::queries::{
    ReplyError, queried_paths, read_add_temp_root, read_path_info, read_valid_paths,
};
use xpool::nix::store_path::StorePath;
use xpool::nix::wire::{Reader, Version, WireError};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

pub(crate) fn check(data: &[u8]) {
    let [kind, cut, said @ ..] = data else { return };
    let version = Version::new(1, 21 + (kind >> 2) % 17);
    let part = &said[..usize::from(*cut).min(said.len())];
    let (whole, beginning) = (read(kind % 4, version, said), read(kind % 4, version, part));
    if !matches!(beginning, Err(ReplyError::Wire(WireError::Incomplete))) {
        assert_eq!(beginning, whole);
    }
}

/// What was read, as text, and how many bytes that took.
fn read(kind: u8, version: Version, said: &[u8]) -> Result<(String, usize), ReplyError> {
    let mut reader = Reader::new(said);
    let value = match kind {
        0 => {
            let paths = queried_paths(said, version)?;
            are_paths(&paths);
            format!("{paths:?}")
        }
        1 => format!("{:?}", read_add_temp_root(&mut reader, version)?),
        2 => format!("{:?}", read_valid_paths(&mut reader, version)?),
        _ => format!("{:?}", read_path_info(&mut reader, version)?),
    };
    Ok((value, reader.position()))
}

/// They are given to a guest as lines, and are names in a folder.
fn are_paths(paths: &[StorePath]) {
    for path in paths {
        let name = path.base_name();
        assert!(
            !name.contains(['/', '\n', ' ', '\0']) && name != "." && name != "..",
            "{path}"
        );
        assert_eq!(
            StorePath::parse(path.as_str().as_bytes()).as_ref(),
            Some(path)
        );
    }
}
