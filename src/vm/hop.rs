//! A hop: an open session into a guest's nix-daemon.

use tokio::net::UnixStream;

/// A byte stream to the nix-daemon of a guest. Closing it fully (dropping it) ends what the guest does for it.
#[derive(Debug)]
pub struct Hop {
    /// Bytes to and from the nix-daemon. Reads end when the guest has closed its side.
    pub stream: UnixStream,
}
