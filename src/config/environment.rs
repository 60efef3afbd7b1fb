//! What others have put into this process's environment. xpool's own variables are read with what they stand for.

/// Whether a variable says `true`, as a CI's do.
pub fn says_true(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| value == "true")
}

/// What Nix is told beside its files; mostly nothing.
pub fn nix_config() -> String {
    std::env::var("NIX_CONFIG").unwrap_or_default()
}
