//! xpool: a pool of emulated Nix builders.
//!
//! ARCHITECTURE.md has the way of one build, the code map and the invariants.

pub mod config;
pub mod control;
pub mod gateway;
pub mod image;
pub mod manager;
pub mod nix;
pub mod paths;
pub mod pool;
pub mod session;
pub mod shutdown;
pub mod vm;
