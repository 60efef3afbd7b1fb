//! The pure core of the pool.
