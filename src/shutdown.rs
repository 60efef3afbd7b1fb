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
    /// Has it end now, and take nothing on before.
    pub fn end_now(&self) {
        self.drain.cancel();
        self.now.cancel();
    }

    /// Turns SIGTERM, SIGINT and SIGHUP (a closed terminal) into the wishes: the first into one, the second into the other.
    pub fn on_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let shutdown = self.clone();
        tokio::spawn(async move {
            // Not whether it is ending: somebody else may have asked for that, and the first signal lets builds end.
            let mut was_told = false;
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = hangup.recv() => {}
                }
                if std::mem::replace(&mut was_told, true) {
                    shutdown.end_now();
                } else {
                    tracing::info!("ending after the builds that run; a second signal ends them");
                    shutdown.drain.cancel();
                }
            }
        });
        Ok(())
    }
}
