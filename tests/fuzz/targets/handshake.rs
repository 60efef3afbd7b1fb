//! Both sides of a handshake: any bytes, whole and split anywhere, come to the same end.
//!
//! Input: which side and version, where to cut, then what the peer says.
#![cfg_attr(fuzzing, no_main)]

use xpool::nix::handshake::{ClientProgress, ClientSide, Promise, ServerProgress, ServerSide};
use xpool::nix::wire::Version;

/// Versions that are spoken begin here.
const OLDEST_MINOR: u8 = 21;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

pub(crate) fn check(data: &[u8]) {
    let [choice, cut, said @ ..] = data else {
        return;
    };
    let (first, second) = said.split_at(usize::from(*cut).min(said.len()));
    let version = Version::new(1, OLDEST_MINOR + choice % 18);
    if *choice < 128 {
        let whole = as_server(version, &[said]);
        assert_eq!(as_server(version, &[first, second]), whole);
        assert_eq!(
            as_server(version, &said.chunks(1).collect::<Vec<_>>()),
            whole
        );
    } else {
        let whole = as_client(version, &[said]);
        assert_eq!(as_client(version, &[first, second]), whole);
    }
}

/// How it ended: an error, or the version and the rest.
type Served = Result<(Version, Vec<u8>), String>;

/// The replies, and the end if there is one.
fn as_server(version: Version, parts: &[&[u8]]) -> (Vec<u8>, Option<Served>) {
    let nix = "2.26.3".to_owned();
    let mut side = ServerSide::new(Promise { version, nix });
    let mut replies = Vec::new();
    for (n, part) in parts.iter().enumerate() {
        match side.receive(part) {
            // What was to be said before is not said with an error.
            Err(error) => return (Vec::new(), Some(Err(error.to_string()))),
            Ok(ServerProgress::More { reply }) => replies.extend(reply),
            Ok(ServerProgress::Done {
                reply,
                version,
                rest,
            }) => {
                replies.extend(reply);
                let rest = [rest, parts[n + 1..].concat()].concat();
                return (replies, Some(Ok((version, rest))));
            }
        }
    }
    (replies, None)
}

type Greeted = Option<Result<(Version, Option<String>, Vec<u8>), String>>;

fn as_client(version: Version, parts: &[&[u8]]) -> Greeted {
    let mut side = ClientSide::new(version);
    for (n, part) in parts.iter().enumerate() {
        match side.receive(part) {
            Err(error) => return Some(Err(error.to_string())),
            Ok(ClientProgress::More) => {}
            Ok(ClientProgress::Done { version, nix, rest }) => {
                let rest = [rest, parts[n + 1..].concat()].concat();
                return Some(Ok((version, nix, rest)));
            }
        }
    }
    None
}
