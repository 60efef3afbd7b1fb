//! The `xpool` binary: what it does is in the library, and is compiled there only.

use std::process::ExitCode;

fn main() -> ExitCode {
    xpool::program::main()
}
