//! Tests that boot real guests in QEMU and build with real Nixes, one file for each thing that is looked at. One program, since each
//! takes as long to compile as all of them.

#![allow(clippy::unwrap_used, reason = "tests: a panic is a failure")]

#[path = "../common/mod.rs"]
mod common;

mod builder;
mod builds;
mod contract;
mod features;
mod fetch;
mod fresh;
mod image;
mod inputs;
mod inputs_apart;
mod inputs_held;
mod installed;
mod local;
mod matrix;
mod matrix_interrupt;
mod matrix_large;
mod nix;
mod packages;
mod pinned;
mod run;
mod scaling;
mod service;
mod shell;
mod store;
mod store_shared;
mod template;
mod up;
mod vm;
