//! How many files this process may have open: a connection is one, and a session two.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as this process may, and gives what it then is; `None` without any. Shells begin with a low one for
/// the sake of programs that use `select`, which none of ours does.
pub fn raise_limit() -> std::io::Result<Option<u64>> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let current = limit.maximum;
        setrlimit(Resource::Nofile, Rlimit { current, ..limit })?;
    }
    Ok(limit.maximum)
}
