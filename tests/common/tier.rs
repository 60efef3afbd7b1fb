//! What the two tiers of tests differ in: how much, how often, and for which clients. Nothing else asks which of them runs.
//!
//! The short tier runs for each change (`scripts/test`), the full one before a release (`scripts/test --full`). A test is in both: the
//! full one has it with larger volumes, more repetitions, and every client by every transport. What the full tier has beyond the short
//! one must not be the only thing that finds a fault: the short one's volumes are above every buffer and bound that they are about,
//! and its clients (`matrix::Clients`) cover each version and each transport.

/// A number of bytes, lines, repetitions or seconds.
pub(crate) fn volume<T>(short: T, full: T) -> T {
    // Of scripts/test.
    match std::env::var_os("XPOOL_TEST_FULL") {
        Some(_) => full,
        None => short,
    }
}
