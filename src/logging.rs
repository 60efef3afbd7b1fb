//! Set-up of the log: what happens, for operators.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Result, ensure};
use tracing::warn;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{fmt, registry};

use crate::bounded_log::BoundedLog;

/// A manager in the background says a few lines per session; this holds some ten thousand sessions.
const LOG_LIMIT: u64 = 4 << 20;

/// Starts logging at a level, or as `RUST_LOG` wants it: to a bounded file, or to stderr.
pub fn start(level: &str, wanted: Option<&str>, no_colour: bool, file: Option<&Path>) {
    let (filter, unread) = match wanted.map(parse).transpose() {
        Ok(wanted) => (wanted, None),
        Err(error) => (None, Some(error)),
    };
    // Only xpool's own words: its libraries talk about their insides.
    let filter = filter
        .or_else(|| parse(&format!("warn,xpool={level}")).ok())
        .unwrap_or_default();
    let log = fmt::layer().with_target(false);
    // Where there is no such file, the reason will be said on stderr too.
    if let Some(file) = file.and_then(|path| BoundedLog::append(path, LOG_LIMIT).ok()) {
        let log = log.with_ansi(false).with_writer(Mutex::new(file));
        registry().with(log).with(filter).init();
    } else {
        let colour = std::io::stderr().is_terminal() && !no_colour;
        let log = log.with_ansi(colour).with_writer(std::io::stderr);
        registry().with(log).with(filter).init();
    }
    if let Some(error) = unread {
        warn!("RUST_LOG has no effect: {error}");
    }
}

/// Takes targets and levels, as in `warn,xpool=debug`.
fn parse(wanted: &str) -> Result<Targets> {
    // As a part of a target they would match nothing.
    ensure!(
        !wanted.contains('['),
        "filters for spans and fields are not supported"
    );
    let directives: Vec<&str> = wanted
        .split(',')
        .map(str::trim)
        .filter(|directive| !directive.is_empty())
        .collect();
    Ok(directives.join(",").parse()?)
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    fn says(wanted: &str, target: &str) -> Option<Level> {
        let filter = parse(wanted).unwrap();
        let levels = [
            Level::TRACE,
            Level::DEBUG,
            Level::INFO,
            Level::WARN,
            Level::ERROR,
        ];
        levels
            .into_iter()
            .find(|level| filter.would_enable(target, level))
    }

    #[test]
    fn the_most_exact_target_counts() {
        let wanted = "warn, xpool=debug,xpool::vm=off,";
        assert_eq!(says(wanted, "russh::server"), Some(Level::WARN));
        assert_eq!(says(wanted, "xpool::pool"), Some(Level::DEBUG));
        assert_eq!(says(wanted, "xpool::vm::qmp"), None);
    }

    #[test]
    fn a_level_or_a_target_may_stand_alone() {
        assert_eq!(says("INFO", "xpool"), Some(Level::INFO));
        assert_eq!(says("xpool", "xpool"), Some(Level::TRACE));
        assert_eq!(says("xpool", "russh"), None);
        assert_eq!(says("", "xpool"), Some(Level::ERROR));
    }

    #[test]
    fn what_cannot_be_filtered_by_is_refused() {
        for wanted in ["xpool=loud", "a=b=c", "[session]=debug", "xpool[{vm}]=info"] {
            assert!(parse(wanted).is_err(), "{wanted}");
        }
    }
}
