//! Set-up of the log: what happens, for operators; on stderr.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging at a level; `RUST_LOG` overrides it.
pub fn start(level: &str, no_colour: bool) {
    // Only xpool's own words: its libraries talk about their insides.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("warn,xpool={level}")));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && !no_colour)
        .with_target(false)
        .init();
}
