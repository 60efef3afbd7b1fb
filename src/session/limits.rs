//! How long a build may take. The client's own limits do not reach a build machine (ssh-ng sends no options), and the client
//! does not apply them to remote builds either.

use std::time::Duration;

use tokio::time::Instant;

/// A limit of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// From the build's begin to its end.
    Timeout(Duration),
    /// Since the build's last sign of life.
    Silence(Duration),
}

impl Limit {
    pub(super) fn duration(self) -> Duration {
        match self {
            Self::Timeout(time) | Self::Silence(time) => time,
        }
    }

    /// What became of the build: `it was silent for 10m`.
    fn what(self) -> String {
        let time = humantime::format_duration(self.duration());
        match self {
            Self::Timeout(_) => format!("it took longer than {time}"),
            Self::Silence(_) => format!("it was silent for {time}"),
        }
    }

    /// As it is called in the configuration.
    fn key(self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::Silence(_) => "max-silent-time",
        }
    }
}

/// A limit and when it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) at: Instant,
    pub(super) limit: Limit,
    /// The name of the derivation that is built.
    pub(super) derivation: String,
}

impl Reached {
    /// The result of the build.
    pub(super) fn result(&self) -> String {
        format!("{} ({})", self.limit.what(), self.limit.key())
    }

    /// What the client is told.
    pub(super) fn text(&self, vm: &str) -> String {
        let Self {
            limit, derivation, ..
        } = self;
        format!(
            "xpool: {vm}: building {derivation} was ended: {} ({} of the pool; set it in xpool.toml); \
             `xpool logs {derivation}` shows its last lines",
            limit.what(),
            limit.key()
        )
    }
}
