//! The one task that owns the pools, and what its callers hold.

pub mod ticket;
