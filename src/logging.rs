//! Set-up of the log: what happens, for operators.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

use crate::bounded_log::BoundedLog;

/// A manager in the background says a few lines per session; this holds some ten thousand sessions.
const LOG_LIMIT: u64 = 4 << 20;

/// Starts logging at a level, which `RUST_LOG` overrides: to a bounded file, or to stderr.
pub fn start(level: &str, no_colour: bool, file: Option<&Path>) {
    // Only xpool's own words: its libraries talk about their insides.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("warn,xpool={level}")));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false);
    // Where there is no such file, the reason will be said on stderr too.
    if let Some(file) = file.and_then(|path| BoundedLog::append(path, LOG_LIMIT).ok()) {
        log.with_ansi(false).with_writer(Mutex::new(file)).init();
    } else {
        let colour = std::io::stderr().is_terminal() && !no_colour;
        log.with_ansi(colour).with_writer(std::io::stderr).init();
    }
}
