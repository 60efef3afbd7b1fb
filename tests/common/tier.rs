//! What the two tiers of tests differ in: how much, how often, and for which clients. Nothing else asks which of them runs.
//!
//! The short tier runs for each change (`scripts/test`), the full one before a release (`scripts/test --full`). A test is in both: the
//! full one has it with larger volumes, more repetitions, and every client by every transport. What the full tier has beyond the short
//! one must not be the only thing that finds a fault: the short one's volumes are above every buffer and bound that they are about,
//! and its clients cover each version and each transport.

use super::nix::{Transport, Version};

/// One client: a version of Nix, by a way to the pool.
pub type Kind = (Transport, Version);

/// Every version by every transport.
const EVERY: [Kind; 6] = [
    (Transport::Ssh, Version::Own),
    (Transport::Local, Version::Newer),
    (Transport::Ssh, Version::Newest),
    (Transport::Local, Version::Own),
    (Transport::Ssh, Version::Newer),
    (Transport::Local, Version::Newest),
];

/// How many clients a test of the short tier has, if not every one.
const SOME: usize = EVERY.len() / 2;

/// The clients that a test of the short tier has: each version and each transport is among some of them. The full tier has them all.
#[derive(Clone, Copy, Debug)]
pub enum Clients {
    Every,
    /// Three, and the three others: tests that look at similar things take turns.
    Some,
    Others,
}

impl Clients {
    pub fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Some if !is_full() => &EVERY[..SOME],
            Self::Others if !is_full() => &EVERY[SOME..],
            _ => &EVERY,
        }
    }
}

/// A number of bytes, lines, repetitions or seconds.
pub fn volume<T>(short: T, full: T) -> T {
    if is_full() { full } else { short }
}

/// Whether `scripts/test --full` runs.
fn is_full() -> bool {
    std::env::var_os("XPOOL_TEST_FULL").is_some()
}
