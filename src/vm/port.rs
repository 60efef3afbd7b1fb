//! A port `xpool.K`: serves one hop after another, and is free again only when the guest has let go of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::agent::{Agent, GuestPid};
use super::command::port_id;
use super::guest_text::quoted;
use super::hop::{Hop, PortOnRequest, QUIET_TURNS, pump};
use super::machine::EndWatch;
use super::port_state::{PortState, SessionFailed};
use super::qmp::Qmp;
use super::ready;
use super::start::DEATH_LIMIT;
use super::thaw::Thaw;
use super::wait::within;

/// What the agent starts for a hop; part of the guest contract.
pub(super) const GUEST_PROGRAM: &str = "/usr/bin/xpool-guest";

/// The guest starts two programs for a session, and a few more where it is thawed before: 0.1 and 0.4 s, on a starved host a
/// hundred times that.
const OPEN_LIMIT: Duration = Duration::from_secs(60);

/// A hop before this one may still be closing.
const FREE_LIMIT: Duration = Duration::from_secs(30);

/// A slot's port, seen from the host.
pub(super) struct Port {
    slot: u32,
    socket: PathBuf,
    state: PortState,
    agent: Agent,
    end: EndWatch,
    /// One permit: who has it uses the port, until the guest has closed it.
    free: Arc<Semaphore>,
    /// A hop that nobody has asked for yet, over which the nix-daemon has answered. Locked while one is opened, and who wants
    /// one has to wait for that in any case.
    ahead: Mutex<Option<Hop>>,
}

impl Port {
    pub(super) fn new(
        slot: u32,
        socket: PathBuf,
        qmp: Qmp,
        agent: Agent,
        heard: watch::Receiver<u64>,
        end: EndWatch,
    ) -> Self {
        Self {
            slot,
            socket,
            state: PortState::new(port_id(slot), qmp, heard),
            agent,
            end,
            free: Arc::new(Semaphore::new(1)),
            ahead: Mutex::new(None),
        }
    }

    /// The hop that was opened ahead, or else a new one.
    pub(super) async fn take_hop(self: &Arc<Self>) -> anyhow::Result<Hop> {
        let mut ahead = self.ahead.lock().await;
        match ahead.take().filter(Hop::is_quiet) {
            Some(hop) => Ok(hop),
            None => self.open_hop().await,
        }
    }

    /// Keeps an open hop for who asks for one next.
    pub(super) async fn keep(&self, hop: Hop) {
        *self.ahead.lock().await = Some(hop);
    }

    /// Closes the hop that was opened ahead.
    pub(super) async fn drop_kept(&self) {
        self.ahead.lock().await.take();
    }

    /// Opens a hop for who asks for one next, up to the nix-daemon's answer: on an emulated processor that takes as long as a
    /// small build.
    pub(super) async fn open_ahead(self: &Arc<Self>) -> anyhow::Result<()> {
        let mut ahead = self.ahead.lock().await;
        if ahead.is_none() {
            *ahead = Some(ready::daemon_still_answers(self.open_hop()).await?);
        }
        Ok(())
    }

    /// Opens a session into the guest's nix-daemon. Cancel safe: a hop that nobody takes is closed again.
    pub(super) async fn open_hop(self: &Arc<Self>) -> anyhow::Result<Hop> {
        let args = vec!["session".to_owned(), self.slot.to_string()];
        self.open_by(args, None).await
    }

    /// Thaws the guest, which then goes on with the session that was begun in its template: that of this slot, which is the first.
    pub(super) async fn open_hop_thawed(self: &Arc<Self>, thaw: Thaw) -> anyhow::Result<Hop> {
        let args = vec!["thaw".to_owned(), thaw.name];
        self.open_by(args, Some(thaw.input.into_bytes())).await
    }

    async fn open_by(
        self: &Arc<Self>,
        args: Vec<String>,
        input: Option<Vec<u8>>,
    ) -> anyhow::Result<Hop> {
        // In a task of its own: what was started in the guest must be followed to its end.
        let opening = tokio::spawn(Arc::clone(self).open(args, input));
        opening
            .await
            .context("opening a hop")?
            .with_context(|| format!("opening a hop over port xpool.{}", self.slot))
    }

    /// Waits until the port can serve a hop, which is when the guest has let go of it.
    pub(super) async fn released(&self) -> anyhow::Result<()> {
        tokio::select! {
            permit = self.free.acquire() => permit.map(drop).context("the guest's agent has lost the port"),
            end = self.end.ended() => Err(anyhow::anyhow!("the VM is gone: {}", end.exit.in_words())),
        }
    }

    async fn open(
        self: Arc<Self>,
        args: Vec<String>,
        input: Option<Vec<u8>>,
    ) -> anyhow::Result<Hop> {
        let free = Arc::clone(&self.free).acquire_owned();
        let permit = within("the hop before it to close", FREE_LIMIT, free).await??;
        // Connected first: a guest that opens a port without a host reads its end at once.
        let stream = UnixStream::connect(&self.socket)
            .await
            .with_context(|| format!("connecting to `{}`", self.socket.display()))?;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let session = self
            .agent
            .start_with_input(GUEST_PROGRAM, &args, input.as_deref())
            .await?;
        let opened = within(
            "the guest to open the port",
            OPEN_LIMIT,
            self.state.opened(&self.agent, session),
        )
        .await;
        match opened.map_err(anyhow::Error::from).flatten() {
            Ok(()) => {
                let (user, far) = UnixStream::pair().context("making a pair of sockets")?;
                let folder = self.socket.parent().context("the port is in no folder")?;
                let (port, wanted) = PortOnRequest::channel(folder.to_owned(), self.slot);
                tokio::spawn(self.carry(far, stream, wanted, session, permit));
                Ok(Hop::of_port(user, port))
            }
            // The agent has told how it ended, and forgotten it.
            Err(error) if error.is::<SessionFailed>() => Err(error),
            Err(error) => {
                drop(stream);
                tokio::spawn(async move { self.follow_to_the_end(session, permit).await });
                Err(error)
            }
        }
    }

    /// A hop's life after its opening.
    async fn carry(
        self: Arc<Self>,
        mut far: UnixStream,
        mut stream: UnixStream,
        wanted: oneshot::Receiver<oneshot::Sender<UnixStream>>,
        session: GuestPid,
        permit: OwnedSemaphorePermit,
    ) {
        let wanted = tokio::select! {
            () = pump(&mut far, &mut stream, self.state.closed_by_guest(), || self.state.turn()) => None,
            Ok(by) = wanted => Some(by),
        };
        match wanted {
            Some(by) => {
                // Whoever wanted it may have gone, and then the port is closed here.
                let _ = by.send(stream);
                self.watch_detached(far).await;
            }
            None => drop((far, stream)),
        }
        self.follow_to_the_end(session, permit).await;
    }

    /// Returns, and ends the hop, when the guest has closed a port that somebody else reads, or that one has let go of it.
    async fn watch_detached(&self, mut far: UnixStream) {
        let mut nothing = [0];
        tokio::select! {
            // Nothing is ever written to it.
            _ = far.read(&mut nothing) => {}
            () = self.state.closed_by_guest() => for _ in 0..QUIET_TURNS {
                self.state.turn().await;
            },
        }
    }

    /// Gives the port back once the guest's session has ended.
    async fn follow_to_the_end(&self, session: GuestPid, permit: OwnedSemaphorePermit) {
        self.state.closed().await;
        // Ended or about to: it may have been on its way to open the port. Asked also because the agent keeps a
        // program's output until somebody has.
        let end = tokio::select! {
            output = self.agent.finished(session) => output,
            _ = self.end.ended() => return,
        };
        match end {
            Ok(output) => {
                let stderr = quoted(&output.stderr);
                tracing::debug!(slot = self.slot, status = output.status, %stderr, "session ended");
                drop(permit);
            }
            Err(error) => {
                // An agent goes before its VM's end is known.
                let end = within("QEMU's death", DEATH_LIMIT, self.end.ended());
                if end.await.is_ok() {
                    return;
                }
                // Whoever waits for this slot is told, and gives the VM up.
                tracing::warn!(slot = self.slot, error = format!("{error:#}"), "slot lost");
                self.free.close();
            }
        }
    }
}
