//! What a process has from who started it and should not pass on: descriptors of a script's (a lock, a pipe), and leave to write core files.

use rustix::process::{Resource, Rlimit, setrlimit};

/// Descriptors that are for the standard streams.
const STANDARD: i32 = 3;

/// Programs that are started from now on get none of the descriptors that this process was given, but for the standard streams.
pub fn keep_descriptors() {
    close_fds::set_fds_cloexec(STANDARD, &[]);
}

/// Neither this process nor those that it starts write core files: in a QEMU's is a guest's memory, in the manager's its keys. One byte, not
/// none: where cores are given to a program (core(5)), the kernel asks for none at this limit only.
pub fn write_no_cores() -> std::io::Result<()> {
    let none = Rlimit {
        current: Some(1),
        maximum: Some(1),
    };
    Ok(setrlimit(Resource::Core, none)?)
}
