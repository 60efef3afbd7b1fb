//! The frames that a Nix server sends while it works on an operation, and writing the two that xpool says itself.
//!
//! Source: `worker-protocol.hh` and `daemon.cc` (`TunnelLogger`) of Nix 2.3 to 2.34; frames go on until `LAST` or `ERROR`.

use super::wire::{Version, put_number, put_string};

/// A line for the person who waits. Followed by a string.
pub const NEXT: u64 = 0x6f6c_6d67;
/// The server wants bytes from the client. Followed by their number.
pub const READ: u64 = 0x6461_7461;
/// Bytes for the client. Followed by a string.
pub const WRITE: u64 = 0x6461_7416;
/// The operation worked; its reply follows.
pub const LAST: u64 = 0x616c_7473;
/// The operation failed; there is no reply.
pub const ERROR: u64 = 0x6378_7470;
/// Something begins: number, level, kind, text, fields, parent.
pub const START_ACTIVITY: u64 = 0x5354_5254;
/// Something ends: its number.
pub const STOP_ACTIVITY: u64 = 0x5354_4f50;
/// News of something: its number, kind, fields.
pub const RESULT: u64 = 0x5253_4c54;

/// Nix's verbosity level of an error.
const LEVEL_ERROR: u64 = 0;
/// The exit status in an error to a client before 1.26.
const STATUS_FAILED: u64 = 1;

/// A line that `nix build` shows to the person who waits. A line break is added.
pub fn line(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, NEXT);
    put_string(&mut out, format!("{text}\n").as_bytes());
    out
}

/// An error that ends the operation; what a client of `version` shows after `error: `.
pub fn error(version: Version, message: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, ERROR);
    if version.has(26) {
        put_string(&mut out, b"Error");
        put_number(&mut out, LEVEL_ERROR);
        put_string(&mut out, b"Error");
        put_string(&mut out, message.as_bytes());
        put_number(&mut out, 0); // no position
        put_number(&mut out, 0); // no traces
    } else {
        put_string(&mut out, message.as_bytes());
        put_number(&mut out, STATUS_FAILED);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nix::observe::{Event, Observer, Operation};
    use crate::nix::queries::{ReplyError, read_add_temp_root};
    use crate::nix::wire::Reader;

    proptest! {
        #[test]
        fn who_reads_replies_understands_both_frames(text: String, minor in 21..=38_u8) {
            let version = Version::new(1, minor);
            let said = [line(&text), error(version, &text)].concat();
            let mut reader = Reader::new(&said);
            let refused = read_add_temp_root(&mut reader, version);
            prop_assert_eq!(refused, Err(ReplyError::Refused(text)));
            prop_assert_eq!(reader.position(), said.len());
        }

        #[test]
        fn the_observer_sees_a_line_and_then_an_error(text: String, minor in 21..=38_u8) {
            let version = Version::new(1, minor);
            let mut observer = Observer::new(version);
            let mut request = Vec::new();
            put_number(&mut request, 26);
            put_string(&mut request, b"/nix/store/a");
            observer.from_client(&request);
            let seen = observer.from_server(&line(&text));
            prop_assert!(seen.is_empty());
            prop_assert!(observer.error_can_be_sent());
            let seen = observer.from_server(&error(version, &text));
            prop_assert_eq!(seen, [Event::Ended(Operation::QueryPathInfo)]);
            prop_assert!(observer.is_watching());
        }
    }

    #[test]
    fn a_line_is_a_frame_with_a_string() {
        assert_eq!(line("hello"), b"gmlo\0\0\0\0\x06\0\0\0\0\0\0\0hello\n\0\0");
    }

    #[test]
    fn an_error_has_parts_since_1_26() {
        let new = error(Version::new(1, 26), "why");
        let expected = b"ptxc\0\0\0\0\x05\0\0\0\0\0\0\0Error\0\0\0\0\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0Error\0\0\0\
            \x03\0\0\0\0\0\0\0why\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(new, expected);
        let old = error(Version::new(1, 25), "why");
        assert_eq!(
            old,
            b"ptxc\0\0\0\0\x03\0\0\0\0\0\0\0why\0\0\0\0\0\x01\0\0\0\0\0\0\0"
        );
    }
}
