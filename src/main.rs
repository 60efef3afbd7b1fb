//! The `xpool` binary.
fn main() {}
