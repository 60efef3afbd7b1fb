//! Tests without VMs, of the program as a user runs it and of what is beside it: scripts, units, what is written in Nix's language. One
//! program: each links all of xpool.

#![allow(clippy::unwrap_used, reason = "tests: a panic is a failure")]

#[path = "../common/mod.rs"]
mod common;

mod activated;
mod captures;
mod cli;
mod control;
mod flake;
mod fuzz;
mod guest;
mod image;
mod install;
mod install_root;
mod installed;
mod layers;
mod machines;
mod metrics;
mod nix;
mod run;
mod simulate;
mod units;
