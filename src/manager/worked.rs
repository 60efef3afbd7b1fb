//! What sessions have had built, told to whoever keeps a record of it (`xpool simulate` reads such records).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use tracing::warn;

use super::session::ManagedSession;
use crate::nix::System;
use crate::pool::claim::Purpose;

/// How many wait to be recorded: more than can end at a time, so that only a disk that hangs loses any.
const MAX_WAITING: usize = 2048;

/// A session that has had something built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worked {
    /// When it wanted a VM.
    pub wanted: SystemTime,
    /// Of which system.
    pub system: System,
    /// What tells its client from others.
    pub client: String,
    /// How long it had the VM.
    pub work: Duration,
}

/// Where it is told. Never waits.
#[derive(Clone, Debug)]
pub struct WorkedDesk {
    worked: mpsc::Sender<Worked>,
    has_warned: Arc<AtomicBool>,
}

impl WorkedDesk {
    /// One, and where to receive what is told.
    pub fn channel() -> (Self, mpsc::Receiver<Worked>) {
        let (worked, receiver) = mpsc::channel(MAX_WAITING);
        let has_warned = Arc::default();
        (Self { worked, has_warned }, receiver)
    }

    /// Tells of a session at its end, if it has had something built on a VM that the pool had chosen.
    pub(super) fn note(&self, now: Instant, system: System, session: &ManagedSession) {
        let Some(granted) = session.granted else {
            return;
        };
        if !session.has_built || session.purpose() != Purpose::Build {
            return;
        }
        let since = now.saturating_duration_since(session.opened);
        let wanted = SystemTime::now().checked_sub(since);
        let worked = self.worked.try_send(Worked {
            wanted: wanted.unwrap_or(SystemTime::UNIX_EPOCH),
            system,
            client: session.request.key.clone(),
            work: now.saturating_duration_since(granted),
        });
        if worked.is_err() && !self.has_warned.swap(true, Ordering::Relaxed) {
            warn!("builds are missing in the trace: they cannot be written as fast as they end");
        }
    }
}
