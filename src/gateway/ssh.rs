//! How the gateway speaks SSH: russh's configuration, and why it is not the default.

use std::borrow::Cow;
use std::time::Duration;

use super::channels::WINDOW;
use crate::config::keys::KEY_KINDS;
use russh::keys::PrivateKey;
use russh::server::Config;
use russh::{MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex, mac};

/// How many signs of life may be missing. russh counts before it sends, so the tenth silence ends the connection: after
/// five minutes where one is of 30 s.
const MAX_MISSED_KEEPALIVES: u32 = 9;

/// How long every refused login takes, so that the time says nothing about the reason.
const REFUSAL: Duration = Duration::from_millis(100);

/// How long the refusal of `none` takes, with which OpenSSH asks what there is: every build would wait for it.
const FIRST_REFUSAL: Duration = Duration::from_millis(5);

/// How long a client may be silent where it is asked for a sign of life after each `keepalive`.
pub(super) fn longest_silence(keepalive: Duration) -> Duration {
    keepalive * (MAX_MISSED_KEEPALIVES + 1)
}

/// The server's configuration.
pub(super) fn config(host_key: &PrivateKey, keepalive: Duration) -> Config {
    Config {
        server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-xpool")),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: REFUSAL,
        auth_rejection_time_initial: Some(FIRST_REFUSAL),
        max_auth_attempts: 6,
        window_size: WINDOW,
        // What a session may write before the connection's task has its turn, in packets of at most 32 KiB.
        event_buffer_size: 32,
        keys: vec![host_key.clone()],
        preferred: preferred(),
        // A build may be silent for hours.
        inactivity_timeout: None,
        keepalive_interval: Some(keepalive),
        keepalive_max: MAX_MISSED_KEEPALIVES as usize,
        nodelay: true,
        ..Config::default()
    }
}

/// Only what every OpenSSH since 7.4 (2016) and no known attack shares. No compression: builders' traffic stays on this
/// machine, and decompressing before the login has been exploited.
fn preferred() -> Preferred {
    Preferred {
        kex: Cow::Borrowed(&[
            kex::MLKEM768X25519_SHA256,
            kex::CURVE25519,
            kex::CURVE25519_PRE_RFC_8731,
            kex::EXTENSION_SUPPORT_AS_SERVER,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
        ]),
        // Also what clients may sign with; of host keys there is only the Ed25519 one.
        key: Cow::Borrowed(&KEY_KINDS),
        host_key_certificates: Cow::Borrowed(&[]),
        cipher: Cow::Borrowed(&[
            cipher::AES_256_GCM,
            cipher::AES_128_GCM,
            cipher::CHACHA20_POLY1305,
        ]),
        // For form's sake: the ciphers above authenticate by themselves.
        mac: Cow::Borrowed(&[mac::HMAC_SHA512_ETM, mac::HMAC_SHA256_ETM]),
        compression: Cow::Borrowed(&[compression::NONE]),
    }
}
