//! images/xpool-guest on its own, in each shell that a guest may have as /bin/sh: no machine, no Nix.
//!
//! It runs in a root folder and namespaces of its own. Ports are terminals in raw mode, nix-daemon is the test, and programs
//! that would do something to the machine, or need a Nix store, are stand-ins that write down how they were called.

mod calls;
mod copies;
mod port;
mod root;
mod sessions;
mod shells;
mod store;
