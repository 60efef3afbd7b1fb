//! images/xpool-guest on its own, in each shell that a guest may have as /bin/sh: no machine, no Nix.
//!
//! It runs in a root folder and namespaces of its own. Ports are terminals in raw mode, nix-daemon is the test, and programs
//! that would do something to the machine, or need a Nix store, are stand-ins that write down how they were called.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod calls;
#[path = "../common/mod.rs"]
mod common;
mod copies;
mod port;
mod root;
mod sessions;
mod shells;
mod store;
