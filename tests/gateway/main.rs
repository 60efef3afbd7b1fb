//! The SSH gateway against real clients: OpenSSH, russh's client for what OpenSSH never sends, and Nix.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../captures/capture.rs"]
mod capture;
mod login;
mod nix;
mod refusals;
mod replay;
mod rig;
mod sessions;
