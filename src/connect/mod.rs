//! The local transport: a helper that Nix starts in place of `ssh`, and the manager's end of it.
//!
//! The helper runs the session itself. The manager gives it a place in the queue and then the port of a guest, as a
//! descriptor: from there on the bytes pass from Nix to QEMU by the helper alone, and a manager that ends, or is killed, does
//! not end a build.

pub mod helper;
mod hook;
pub mod place;
pub mod server;
mod session;
pub mod stdio;
mod users;
pub(crate) mod wire;

#[cfg(test)]
mod tests;
