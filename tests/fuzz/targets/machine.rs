//! What comes from a machine and from the cache folder: a monitor's lines, an agent's lines, manifests of images.
//!
//! Input: which of them, then its bytes.
#![cfg_attr(fuzzing, no_main)]

use futures::FutureExt as _;
use xpool::image::manifest::Manifest;
use xpool::vm::{filtered, hear_agent};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

pub(crate) fn check(data: &[u8]) {
    let Some((kind, said)) = data.split_first() else {
        return;
    };
    match kind % 3 {
        0 => monitor(said),
        1 => agent(said),
        _ => {
            let _ = serde_json::from_slice::<Manifest>(said);
        }
    }
}

/// qapi gets lines of JSON, and no events.
fn monitor(said: &[u8]) {
    // Bytes that are all there are never waited for.
    let passed = filtered(said).now_or_never().unwrap();
    let text = std::str::from_utf8(&passed).unwrap();
    for line in text.split_terminator('\n') {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(value.get("event").is_none(), "{value}");
    }
}

/// What is shown of an agent's words, sync and reply, does nothing to a terminal.
fn agent(said: &[u8]) {
    let shown = hear_agent(said, 7).now_or_never().unwrap();
    let harmless = |char: char| matches!(char, '\n' | '\t') || !char.is_control();
    assert!(shown.chars().all(harmless) && shown.chars().count() <= 600);
}
