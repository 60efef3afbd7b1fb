//! Configuration: xpool.toml and vm-configs, raw and then checked.

pub mod vm;
