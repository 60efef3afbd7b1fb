//! xpool: a pool of emulated Nix builders.
//!
//! ARCHITECTURE.md has the way of one build, the code map and the invariants.

pub mod accept;
pub mod activation;
pub mod bounded_log;
pub mod cgroup;
pub mod cli;
pub mod client_files;
pub mod config;
pub mod connect;
pub mod control;
pub mod fixed_files;
pub mod forecast;
pub mod forecast_file;
pub mod gateway;
pub mod guarded;
pub mod image;
pub mod inherited;
pub mod install;
pub mod logging;
pub mod manager;
pub mod metrics;
pub mod nix;
pub mod open_files;
pub mod output;
pub mod package;
pub mod paths;
pub mod pool;
pub mod program;
pub mod record;
pub mod serve;
pub mod session;
pub mod shell;
pub mod shutdown;
pub mod simulate;
pub mod slot_links;
pub mod state;
pub mod store;
pub mod vm;
