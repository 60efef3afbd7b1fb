//! How the manager is told to end: once to let builds finish, twice to end now.

use tokio_util::sync::CancellationToken;

/// The two wishes; clones are the same wishes.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Let what runs end first.
    pub drain: CancellationToken,
    /// End now.
    pub now: CancellationToken,
}

impl Shutdown {
    /// Turns SIGTERM, SIGINT and SIGHUP (a closed terminal) into the wishes: the first into one, the second into the other.
    pub fn on_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let shutdown = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = hangup.recv() => {}
                }
                if shutdown.drain.is_cancelled() {
                    shutdown.now.cancel();
                } else {
                    tracing::info!("ending after the builds that run; a second signal ends them");
                    shutdown.drain.cancel();
                }
            }
        });
        Ok(())
    }
}
