//! Lets a VM rest: its processors stop while no session is in it. One change at a time.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::Mutex;
use tracing::warn;

use super::supervisor::VmNews;
use crate::vm::RunningVm;

/// How long a VM without a session runs on. A client that connects anew for each output does so within milliseconds, and a
/// pause in between would only cost it time.
pub(super) const REST_AFTER: Duration = Duration::from_millis(500);

/// A VM that is paused while nobody is in it.
pub(super) struct RestingVm<V, N> {
    vm: Arc<V>,
    news: N,
    // Held while the monitor is asked, which answers or fails within its own limits. A lock, and not a message to a task of
    // its own: who enters has to wait for a pause that is under way in any case, and the lock is fair.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Whether its processors may stand still: it was paused, or an attempt to do so failed, perhaps only to tell.
    may_be_paused: bool,
    /// Sessions that are in it. Counted under the lock, so that no pause can come after an entry.
    users: usize,
}

impl<V: RunningVm, N: Fn(VmNews)> RestingVm<V, N> {
    /// A VM that runs and that nobody uses.
    pub(super) fn new(vm: Arc<V>, news: N) -> Self {
        let state = Mutex::default();
        Self { vm, news, state }
    }

    /// The VM, for who has entered it.
    pub(super) fn vm(&self) -> &V {
        &self.vm
    }

    /// Makes the VM run and keeps it running until [`Self::leave`]. An error means that it is of no use any more.
    pub(super) async fn enter(&self) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        state.users += 1;
        self.resume(&mut state).await
    }

    /// One user less.
    pub(super) async fn leave(&self) {
        let mut state = self.state.lock().await;
        state.users = state.users.saturating_sub(1);
    }

    /// Pauses the VM unless somebody is in it. One that cannot be paused costs processor time and nothing else.
    pub(super) async fn rest(&self) {
        let mut state = self.state.lock().await;
        if state.may_be_paused || state.users > 0 {
            return;
        }
        state.may_be_paused = true;
        match self.vm.pause().await {
            Ok(()) => (self.news)(VmNews::Paused),
            Err(error) => (self.news)(VmNews::PauseFailed(format!("{error:#}"))),
        }
    }

    /// Sets the guest's clock, unless it is paused: it is set when it goes on.
    pub(super) async fn set_clock(&self) {
        let state = self.state.lock().await;
        if state.may_be_paused {
            return;
        }
        if let Err(error) = self.vm.set_clock().await {
            warn!(
                error = format!("{error:#}"),
                "the clock of a guest could not be set"
            );
        }
    }

    /// Shuts the VM down. A paused guest cannot shut down, so it goes on first; one that does not is killed. One that is
    /// only thrown away ends as it is.
    pub(super) async fn power_down(&self) {
        if self.vm.is_disposable() {
            self.vm.power_down();
            return;
        }
        match self.enter().await {
            Ok(()) => self.vm.power_down(),
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "a VM cannot be shut down and is killed"
                );
                self.vm.kill();
            }
        }
    }

    async fn resume(&self, state: &mut State) -> anyhow::Result<()> {
        if state.may_be_paused {
            self.vm
                .resume()
                .await
                .context("resuming the paused guest")?;
            state.may_be_paused = false;
            (self.news)(VmNews::Resumed);
        }
        Ok(())
    }
}
