//! Requests and replies, byte by byte.

use super::*;
use crate::nix::wire::put_strings;

const A: &str = "/nix/store/b0a26ff37b0c5c35c34c0d4d0cb00b18-a";
const B: &str = "/nix/store/b0a26ff37b0c5c35c34c0d4d0cb00b18-b";
const NEW: Version = Version::PROMISED;
const HASH: &str = "f3fd5d95ca4e8bf91713e86c1fedf1bde75566e5558973a311963f2b5da4bf25";

fn path(text: &str) -> StorePath {
    StorePath::parse(text.as_bytes()).unwrap()
}

fn info_reply(valid: bool) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, stderr::LAST);
    put_number(&mut out, u64::from(valid));
    if valid {
        put_string(&mut out, b"");
        put_string(&mut out, HASH.as_bytes());
        put_strings(&mut out, &[A, B]);
        put_number(&mut out, 1_700_000_000);
        put_number(&mut out, 4096);
        put_number(&mut out, 1);
        put_strings(&mut out, &["key:signature"]);
        put_string(&mut out, b"");
    }
    out
}

/// Reads a reply from every prefix of its bytes, only the last of which is enough.
fn read<T: std::fmt::Debug>(
    bytes: &[u8],
    read: impl Fn(&mut Reader<'_>) -> Result<T, ReplyError>,
) -> Result<T, ReplyError> {
    for end in 0..bytes.len() {
        let incomplete = read(&mut Reader::new(&bytes[..end])).unwrap_err();
        assert_eq!(incomplete, ReplyError::Wire(WireError::Incomplete), "{end}");
    }
    let mut reader = Reader::new(bytes);
    let outcome = read(&mut reader);
    if outcome.is_ok() {
        assert_eq!(reader.position(), bytes.len());
    }
    outcome
}

#[test]
fn what_is_known_of_a_path_is_read() {
    let info = read(&info_reply(true), |reader| read_path_info(reader, NEW));
    let expected = PathInfo {
        deriver: None,
        nar_hash: HASH.to_owned(),
        references: vec![path(A), path(B)],
        nar_size: 4096,
        content_address: None,
    };
    assert_eq!(info, Ok(Some(expected)));
    let none = read(&info_reply(false), |reader| read_path_info(reader, NEW));
    assert_eq!(none, Ok(None));
}

#[test]
fn what_a_daemon_says_before_its_reply_is_skipped() {
    let mut out = Vec::new();
    put_number(&mut out, stderr::NEXT);
    put_string(&mut out, b"warning: something\n");
    put_number(&mut out, stderr::START_ACTIVITY);
    for number in [7, 3, 100] {
        put_number(&mut out, number);
    }
    put_string(&mut out, b"looking");
    put_number(&mut out, 2);
    put_number(&mut out, 0);
    put_number(&mut out, 5);
    put_number(&mut out, 1);
    put_string(&mut out, b"field");
    put_number(&mut out, 0);
    put_number(&mut out, stderr::RESULT);
    for number in [7, 105, 0] {
        put_number(&mut out, number);
    }
    put_number(&mut out, stderr::STOP_ACTIVITY);
    put_number(&mut out, 7);
    put_number(&mut out, stderr::LAST);
    put_strings(&mut out, &[B]);
    let valid = read(&out, |reader| read_valid_paths(reader, NEW));
    assert_eq!(valid, Ok(vec![path(B)]));
}

#[test]
fn a_daemons_error_is_its_message() {
    for version in [NEW, Version::OLDEST] {
        let refusal = read(&stderr::error(version, "no such thing"), |reader| {
            read_add_temp_root(reader, version)
        });
        assert_eq!(
            refusal,
            Err(ReplyError::Refused("no such thing".to_owned()))
        );
    }
}

#[test]
fn what_is_no_reply_is_odd() {
    let mut nonsense = Vec::new();
    put_number(&mut nonsense, 5);
    let mut elsewhere = Vec::new();
    put_number(&mut elsewhere, stderr::LAST);
    put_strings(&mut elsewhere, &["/etc/passwd"]);
    for bytes in [nonsense, elsewhere] {
        let outcome = read_valid_paths(&mut Reader::new(&bytes), NEW);
        assert!(matches!(outcome, Err(ReplyError::Odd(_))), "{outcome:?}");
    }
}

#[test]
fn a_clients_question_is_the_one_that_we_ask() {
    for version in [NEW, Version::OLDEST] {
        let mut request = Vec::new();
        put_query_valid_paths(&mut request, version, &[path(A), path(B)]);
        assert_eq!(queried_paths(&request, version), Ok(vec![path(A), path(B)]));
        for end in 0..request.len() {
            let part = queried_paths(&request[..end], version);
            assert_eq!(part, Err(WireError::Incomplete));
        }
    }
}

#[test]
fn of_a_clients_paths_those_of_another_store_are_left_out() {
    let mut request = Vec::new();
    put_number(&mut request, QUERY_VALID_PATHS);
    put_strings(&mut request, &["/gnu/store/x-a", A, "\n"]);
    put_number(&mut request, 1);
    assert_eq!(queried_paths(&request, NEW), Ok(vec![path(A)]));
}
