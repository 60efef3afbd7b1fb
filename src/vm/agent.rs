//! The guest agent: one connection, one request at a time, brought into step again after any trouble.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use qapi::qga::{
    GuestExecCaptureOutput, GuestShutdownMode, QgaCommand, guest_exec, guest_exec_status,
    guest_get_time, guest_set_time, guest_shutdown,
};
use tokio::sync::Mutex;

use channel::{AgentError, Channel};

use super::wait::{Pace, within};

mod channel;

#[doc(hidden)]
pub use channel::hear_agent;

/// An agent that runs answers in tens of milliseconds, on a starved host in seconds.
const REPLY_LIMIT: Duration = Duration::from_secs(30);

/// How long one attempt at getting into step may take; the next one starts with a new connection.
const SYNC_LIMIT: Duration = Duration::from_secs(10);

/// How a program in the guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestOutput {
    /// Its exit status; `None` if a signal ended it.
    pub status: Option<i64>,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// A program started in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GuestPid(i64);

/// A guest's agent. Clones share the connection.
#[derive(Clone)]
pub(super) struct Agent {
    // A lock rather than a task with messages: there are as many types of replies as there are commands. tokio's lock
    // is fair, so requests are served in order.
    connection: Arc<Mutex<Connection>>,
}

struct Connection {
    socket: PathBuf,
    /// In step with the agent; `None` before the first request and after a failed one.
    channel: Option<Channel>,
    syncs: i64,
}

impl Agent {
    /// The agent behind a socket, to which nothing is said yet.
    pub(super) fn new(socket: PathBuf) -> Self {
        let connection = Connection {
            socket,
            channel: None,
            syncs: 0,
        };
        Self {
            connection: Arc::new(Mutex::new(connection)),
        }
    }

    /// Waits until the agent answers, for as long as the caller likes. Cancel safe.
    pub(super) async fn answers(&self) -> anyhow::Result<()> {
        let mut connection = self.connection.lock().await;
        loop {
            // What is said before the agent has opened its port waits for it, so most boots need one attempt.
            match within("the guest agent", SYNC_LIMIT, connection.in_step()).await {
                Ok(outcome) => return outcome.map(drop),
                Err(_) => connection.channel = None,
            }
        }
    }

    /// Sets the guest's clock.
    pub(super) async fn set_clock(&self, since_epoch: Duration) -> anyhow::Result<()> {
        let time = i64::try_from(since_epoch.as_nanos()).context("the clock is beyond 2262")?;
        match self.execute(guest_set_time { time: Some(time) }).await {
            // The system's clock was set before this, and the hardware's lasts no longer than the VM.
            Err(error) if format!("{error:#}").contains("failed to set hardware clock") => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// The guest's clock.
    pub(super) async fn clock(&self) -> anyhow::Result<Duration> {
        let nanoseconds = self.execute(guest_get_time {}).await?;
        let nanoseconds = u64::try_from(nanoseconds).context("the guest's clock is before 1970")?;
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Starts a program in the guest.
    pub(super) async fn start(&self, program: &str, args: &[&str]) -> anyhow::Result<GuestPid> {
        self.start_with_input(program, args, None).await
    }

    /// Starts a program in the guest with something to read.
    pub(super) async fn start_with_input(
        &self,
        program: &str,
        args: &[&str],
        input: Option<&[u8]>,
    ) -> anyhow::Result<GuestPid> {
        let command = guest_exec {
            path: program.to_owned(),
            arg: Some(args.iter().map(ToString::to_string).collect()),
            env: None,
            input_data: input.map(<[u8]>::to_vec),
            capture_output: Some(GuestExecCaptureOutput::flag(true)),
        };
        let started = self
            .execute(command)
            .await
            .with_context(|| format!("starting `{program}` in the guest"))?;
        Ok(GuestPid(started.pid))
    }

    /// How a program in the guest ended, `None` while it runs. The agent forgets the program once it has told.
    pub(super) async fn outcome(&self, pid: GuestPid) -> anyhow::Result<Option<GuestOutput>> {
        let status = self.execute(guest_exec_status { pid: pid.0 }).await?;
        Ok(status.exited.then(|| GuestOutput {
            status: status.exitcode.filter(|_| status.signal.is_none()),
            stdout: status.out_data.unwrap_or_default(),
            stderr: status.err_data.unwrap_or_default(),
        }))
    }

    /// Waits until a program in the guest has ended.
    pub(super) async fn finished(&self, pid: GuestPid) -> anyhow::Result<GuestOutput> {
        // The agent does not announce the end of a program, so it is asked, less and less often.
        let mut pace = Pace::new(Duration::from_millis(20), Duration::from_secs(1));
        loop {
            if let Some(output) = self.outcome(pid).await? {
                return Ok(output);
            }
            pace.pause().await;
        }
    }

    /// Lets go of the agent, so that the guest knows of nobody. The next request connects anew.
    pub(super) async fn hang_up(&self) {
        self.connection.lock().await.channel = None;
    }

    /// Has the guest shut itself down. Returns when the agent has refused, or has taken it silently for `patience`.
    pub(super) async fn shut_down(&self, patience: Duration) -> anyhow::Result<()> {
        let command = guest_shutdown {
            mode: Some(GuestShutdownMode::Powerdown),
        };
        // Success has no reply, so the reply's absence is the success.
        match self.execute_within(command, patience).await {
            Err(error) if error.is::<NoReply>() => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn execute<C>(&self, command: C) -> anyhow::Result<C::Ok>
    where
        C: QgaCommand + 'static,
        C::Ok: Send + 'static,
    {
        self.execute_within(command, REPLY_LIMIT).await
    }

    async fn execute_within<C>(&self, command: C, limit: Duration) -> anyhow::Result<C::Ok>
    where
        C: QgaCommand + 'static,
        C::Ok: Send + 'static,
    {
        let mut connection = Arc::clone(&self.connection).lock_owned().await;
        // In a task of its own, which nobody aborts: a request whose caller goes away must not leave its reply to the
        // next one.
        let request = tokio::spawn(async move { connection.execute(command, limit).await });
        request.await.context("asking the guest agent")?
    }
}

/// The agent was asked and did not answer.
#[derive(Debug, thiserror::Error)]
#[error("the guest agent does not answer `{command}`")]
struct NoReply {
    command: &'static str,
}

impl Connection {
    async fn execute<C: QgaCommand>(
        &mut self,
        command: C,
        limit: Duration,
    ) -> anyhow::Result<C::Ok> {
        let in_step = within("the guest agent", limit, self.in_step()).await;
        let channel = in_step.context("the guest agent does not answer")??;
        match tokio::time::timeout(limit, channel.execute(command)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(AgentError::Refused(said))) => {
                Err(anyhow::anyhow!(said).context(format!("guest agent command `{}`", C::NAME)))
            }
            // What it still sends is not for the next request.
            Ok(Err(broken)) => {
                self.channel = None;
                Err(anyhow::Error::new(broken).context(NoReply { command: C::NAME }))
            }
            Err(_) => {
                self.channel = None;
                Err(NoReply { command: C::NAME }.into())
            }
        }
    }

    async fn in_step(&mut self) -> anyhow::Result<&mut Channel> {
        if self.channel.is_none() {
            self.syncs += 1;
            let mut channel = Channel::connect(&self.socket)
                .await
                .with_context(|| format!("connecting to `{}`", self.socket.display()))?;
            channel
                .sync(self.syncs)
                .await
                .context("syncing with the guest agent")?;
            self.channel = Some(channel);
        }
        self.channel
            .as_mut()
            .context("no connection to the guest agent")
    }
}

#[cfg(test)]
mod tests;
