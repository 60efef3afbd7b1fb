//! What others have put into this process's environment. xpool's own variables are read with what they stand for.

/// Whether a variable says `true`, as a CI's do.
pub fn says_true(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| value == "true")
}

/// A variable that others than xpool have a use for, such as `http_proxy`.
pub fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}

/// What Nix is told beside its files; mostly nothing.
pub fn nix_config() -> String {
    std::env::var("NIX_CONFIG").unwrap_or_default()
}
