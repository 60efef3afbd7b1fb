//! The command line of a client's SSH session: what is taken for a wish for nix-daemon asks for nothing beside.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

pub(crate) fn check(data: &[u8]) {
    if xpool::gateway::may_run(data) {
        let text = String::from_utf8_lossy(data);
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        assert!(words.len() <= 3, "{words:?}");
        assert!(
            words[words.len() - 1].trim_matches(['\'', '"']) == "--stdio",
            "{words:?}"
        );
        assert!(
            words[..words.len() - 1].concat().contains("daemon"),
            "{words:?}"
        );
    }
}
