//! Keys that may log in beside xpool's own, and what each may see of this machine's store.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};

use russh::keys::{Algorithm, EcdsaCurve, PublicKey};

use super::ConfigError;
use super::raw::RawKey;
use crate::pool::policy::Share;

/// The kinds of keys that the gateway takes: those that no known attack is against, and that it can verify.
pub static KEY_KINDS: [Algorithm; 5] = [
    Algorithm::Ed25519,
    Algorithm::SkEd25519,
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP256,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP384,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP521,
    },
];

/// The name that xpool's own key goes by.
pub const LOCAL: &str = "local";

/// The longest name of a key, in characters: it stands in one line with an address and a fingerprint.
const LONGEST_NAME: usize = 32;

/// What a key's priority may be.
const PRIORITIES: RangeInclusive<i32> = -100..=100;

/// A key that may log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientKey {
    /// What it is called where people see it.
    pub name: String,
    /// The key.
    pub public_key: PublicKey,
    /// What the VMs of its sessions see of this machine's store, where their pool allows it.
    pub share: Share,
    /// Whether its builds may know private names of this machine's network, and passwords.
    pub secrets: bool,
    /// Whether its sessions are served before those of others: the higher, the sooner. xpool's own key and local users have 0.
    pub priority: i32,
}

/// Checks all keys; `error` says where a value stands.
pub(super) fn check(
    raw: &BTreeMap<toml::Spanned<String>, RawKey>,
    error: impl Fn(Range<usize>, String) -> ConfigError,
) -> Result<Vec<ClientKey>, ConfigError> {
    let mut keys: Vec<ClientKey> = Vec::new();
    for (name, raw) in raw {
        check_name(name.get_ref()).map_err(|message| error(name.span(), message))?;
        let name = (name.get_ref().as_str(), name.span());
        let key = client_key(name, raw, &error)?;
        let is_same = |other: &&ClientKey| other.public_key.key_data() == key.public_key.key_data();
        if let Some(other) = keys.iter().find(is_same) {
            let message = format!("`{}` has the same key as `{}`", key.name, other.name);
            let hint = "a key is told from others by itself: leave one of the two out";
            return Err(error(public_key_span(raw), message).with_hint(hint));
        }
        keys.push(key);
    }
    Ok(keys)
}

fn check_name(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(is_plain) {
        return Err(format!(
            "`{name}` cannot be a key's name: letters, digits, - and _ can, at most {LONGEST_NAME} of them"
        ));
    }
    if name == LOCAL {
        return Err(format!(
            "`{LOCAL}` is the name of xpool's own key: give this one another"
        ));
    }
    Ok(())
}

fn client_key(
    (name, name_span): (&str, Range<usize>),
    raw: &RawKey,
    error: impl Fn(Range<usize>, String) -> ConfigError,
) -> Result<ClientKey, ConfigError> {
    let hint = "it is the one line of a file such as `~/.ssh/id_ed25519.pub`";
    let Some(text) = &raw.public_key else {
        let message = format!("`{name}` has no `public-key`");
        return Err(error(name_span, message).with_hint(hint));
    };
    let public_key = PublicKey::from_openssh(text.get_ref()).map_err(|_| {
        let message = format!("`public-key` of `{name}` is not a public key as OpenSSH writes it");
        error(text.span(), message).with_hint(hint)
    })?;
    let kind = public_key.algorithm();
    if !KEY_KINDS.contains(&kind) {
        let message = format!("`{name}` has a key of the kind `{kind}`, which xpool cannot verify");
        let hint = "`ssh-keygen -t ed25519` makes one that it can";
        return Err(error(text.span(), message).with_hint(hint));
    }
    let priority = match &raw.priority {
        Some(given) if !PRIORITIES.contains(given.get_ref()) => {
            let (least, most) = PRIORITIES.into_inner();
            let given_is = given.get_ref();
            let message = format!("`priority` is {given_is} but must be from {least} to {most}");
            return Err(error(given.span(), message));
        }
        given => given.as_ref().map_or(0, |given| *given.get_ref()),
    };
    Ok(ClientKey {
        priority,
        name: name.to_owned(),
        public_key,
        // A key from elsewhere sees nothing of this machine unless somebody says so.
        share: raw.store.share.unwrap_or(Share::None),
        secrets: raw.secrets.unwrap_or(false),
    })
}

fn public_key_span(raw: &RawKey) -> Range<usize> {
    raw.public_key.as_ref().map_or(0..0, toml::Spanned::span)
}
