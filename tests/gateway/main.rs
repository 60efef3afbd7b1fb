//! The SSH gateway against real clients: OpenSSH, russh's client for what OpenSSH never sends, and Nix.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod apart;
#[path = "../captures/capture.rs"]
mod capture;
mod crowd;
mod fake;
mod flow;
mod login;
mod nix;
mod refusals;
mod replay;
mod rig;
mod rude;
mod sessions;
mod slow;
#[path = "../common/tier.rs"]
mod tier;
mod trusting;
