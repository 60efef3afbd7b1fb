//! Whether a guest has a port open, as QEMU knows it.

use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;

use super::agent::{Agent, GuestOutput, GuestPid};
use super::guest_text::quoted;
use super::qmp::Qmp;
use super::wait::Pace;

/// For this long after a port's opening its closing is looked for; later, QEMU announces it at once.
const WATCHED_FOR: Duration = Duration::from_secs(2);

/// The state of one port.
pub(super) struct PortState {
    /// Of its chardev.
    id: String,
    qmp: Qmp,
    /// Changes when the guest has opened or closed the port. QEMU sends these events once a second at most, so they
    /// are only a hint to ask what the state is.
    heard: watch::Receiver<u64>,
}

impl PortState {
    pub(super) fn new(id: String, qmp: Qmp, heard: watch::Receiver<u64>) -> Self {
        Self { id, qmp, heard }
    }

    /// Resolves when a program that the agent has started has opened the port, and fails if it ended instead.
    pub(super) async fn opened(&self, agent: &Agent, program: GuestPid) -> anyhow::Result<()> {
        // QEMU is asked, which costs the guest nothing, and somebody waits.
        let mut pace = Pace::new(Duration::from_millis(5), Duration::from_millis(20));
        let (mut news, mut looks) = (self.news(), 0_u32);
        while !self.is_open().await? {
            looks += 1;
            // Asking the agent costs the guest something, and sessions hardly ever fail.
            if looks.is_multiple_of(50)
                && let Some(output) = agent.outcome(program).await?
            {
                return Err(SessionFailed::new(&output).into());
            }
            heard_or(&mut news, &mut pace).await;
        }
        Ok(())
    }

    /// Lets QEMU's main loop have a turn.
    pub(super) async fn turn(&self) {
        // Without a monitor QEMU is gone, and with it what it had to say.
        let _ = self.is_open().await;
    }

    /// Resolves when the guest has closed the port while somebody used it.
    pub(super) async fn closed_by_guest(&self) {
        let mut pace = Pace::new(Duration::from_millis(20), Duration::from_millis(500));
        let mut news = self.news();
        let looking = async {
            while self.is_open_or_unknown().await {
                heard_or(&mut news, &mut pace).await;
            }
        };
        if tokio::time::timeout(WATCHED_FOR, looking).await.is_ok() {
            return;
        }
        while self.is_open_or_unknown().await {
            if news.changed().await.is_err() {
                // No monitor any more, so QEMU ends or is killed, and with it its socket.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Resolves when the port is closed, or nobody can tell.
    pub(super) async fn closed(&self) {
        let mut pace = Pace::new(Duration::from_millis(10), Duration::from_millis(250));
        let mut news = self.news();
        while self.is_open().await.unwrap_or(false) {
            heard_or(&mut news, &mut pace).await;
        }
    }

    /// What is heard of the port from now on. Taken before the first look at its state, so that nothing is missed between
    /// the look and the wait; what was heard before counts as known, or each wait would end at once.
    fn news(&self) -> watch::Receiver<u64> {
        let mut news = self.heard.clone();
        news.mark_unchanged();
        news
    }

    async fn is_open_or_unknown(&self) -> bool {
        self.is_open().await.unwrap_or(true)
    }

    /// Whether the guest has the port open now.
    async fn is_open(&self) -> anyhow::Result<bool> {
        let chardevs = self.qmp.execute(qapi::qmp::query_chardev {}).await?;
        let chardev = chardevs
            .into_iter()
            .find(|chardev| chardev.label == self.id);
        Ok(chardev.context("QEMU has lost the port")?.frontend_open)
    }
}

/// Lets a moment pass, a shorter one if there is news of the port.
async fn heard_or(news: &mut watch::Receiver<u64>, pace: &mut Pace) {
    let heard = async {
        if news.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = heard => {}
        () = pace.pause() => {}
    }
}

/// A program ended before it had opened its port; so does a session that finds no nix-daemon.
#[derive(Debug, thiserror::Error)]
#[error("the session ended in the guest before it began: {said}")]
pub(super) struct SessionFailed {
    said: String,
}

impl SessionFailed {
    fn new(output: &GuestOutput) -> Self {
        Self {
            said: quoted(&output.stderr),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn news_shortens_one_wait_and_not_those_after_it() {
        let (tell, heard) = watch::channel(0);
        let port_news = || {
            let mut news = heard.clone();
            news.mark_unchanged();
            news
        };
        // Heard long before anybody waits.
        tell.send_modify(|count| *count += 1);
        let (mut news, mut pace) = (port_news(), Pace::new(WATCHED_FOR, WATCHED_FOR));
        let since = Instant::now();
        tell.send_modify(|count| *count += 1);
        heard_or(&mut news, &mut pace).await;
        assert_eq!(since.elapsed(), Duration::ZERO);
        heard_or(&mut news, &mut pace).await;
        assert_eq!(since.elapsed(), WATCHED_FOR);
    }
}
