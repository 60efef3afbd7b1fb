//! What makes a restored guest one of its own: fresh randomness and names. The guest contract's `thaw`.

use std::fmt::Write as _;

use anyhow::{Context as _, ensure};
use rustix::rand::{GetRandomFlags, getrandom};

/// As much as the kernel's generator holds (`BLAKE2S_HASH_SIZE` of random.c).
const ENTROPY_BYTES: usize = 32;

/// What one clone, and no other, is thawed with.
pub(super) struct Thaw {
    /// Its host name.
    pub(super) name: String,
    /// Random bytes from this host in hex, as a line, and what it is told of this machine's network. Text, because that is what a
    /// shell can pass on by itself.
    pub(super) input: String,
}

impl Thaw {
    /// For the clone of this name, which is told these names of the network.
    pub(super) fn new(name: &str, names: &str) -> anyhow::Result<Self> {
        let mut bytes = [0; ENTROPY_BYTES];
        let length =
            getrandom(&mut bytes, GetRandomFlags::empty()).context("asking for randomness")?;
        ensure!(
            length == ENTROPY_BYTES,
            "this host gave too little randomness"
        );
        let mut input = String::new();
        for byte in bytes {
            write!(input, "{byte:02x}")?;
        }
        input.push('\n');
        input.push_str(names);
        Ok(Self {
            name: name.to_owned(),
            input,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_clone_gets_a_line_of_randomness_of_its_own() {
        let [one, two] = ["one", "two"].map(|name| Thaw::new(name, "hosts a\n").unwrap());
        let line = one.input.lines().next().unwrap();
        assert_eq!(line.len(), 2 * ENTROPY_BYTES);
        assert!(one.input.ends_with("\nhosts a\n"));
        assert_ne!(one.input, two.input);
    }
}
