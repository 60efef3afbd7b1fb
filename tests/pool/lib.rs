//! The pool's core and what it knows of Nix, as they are in src, without the rest of xpool.

#[path = "../../src/pool/mod.rs"]
pub mod pool;

/// What the core knows of Nix.
#[path = "../../src/nix"]
pub mod nix {
    pub mod store_path;
}
