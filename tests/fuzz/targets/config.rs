//! xpool.toml and the layout of VMs: what is accepted keeps its promises, what is not says why in words.
#![cfg_attr(fuzzing, no_main)]

use xpool::config::vm::VmProfile;
use xpool::config::{Config, Host};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

pub(crate) fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let host = Host {
        cpus: 4,
        memory_mib: 8192,
        search_path: "/bin".into(),
    };
    match Config::of_text(text, &host) {
        Ok(config) => {
            assert_ne!(config.listen.port(), 0);
            assert!(config.store_root.is_none_or(|root| root.is_absolute()));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let _ = toml::from_str::<VmProfile>(text);
}
