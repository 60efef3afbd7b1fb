//! The observer: whatever both sides say, split anywhere, it sees the same.
//!
//! Input: a version, then chunks: who speaks and how much in two bytes, and that.
#![cfg_attr(fuzzing, no_main)]

use xpool::nix::observe::{Event, Observer};
use xpool::nix::wire::Version;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

pub(crate) fn check(data: &[u8]) {
    let Some((minor, chunks)) = data.split_first() else {
        return;
    };
    let version = Version::new(1, 21 + minor % 17);
    let whole = seen(version, chunks, usize::MAX);
    assert_eq!(seen(version, chunks, 1), whole);
    assert_eq!(seen(version, chunks, 13), whole);
}

fn seen(version: Version, mut data: &[u8], size: usize) -> (Vec<Event>, [bool; 3]) {
    let mut observer = Observer::new(version);
    let mut events = Vec::new();
    while let Some((head, rest)) = data.split_first_chunk() {
        let head = u16::from_le_bytes(*head);
        let (chunk, rest) = rest.split_at(usize::from(head >> 1).min(rest.len()));
        data = rest;
        for part in chunk.chunks(size) {
            events.extend(if head % 2 == 0 {
                observer.from_client(part)
            } else {
                observer.from_server(part)
            });
        }
    }
    let state = [
        observer.is_watching(),
        observer.error_can_be_sent(),
        observer.outputs_remain(),
    ];
    (events, state)
}
