//! The guest agent: one connection, one request at a time, brought into step again after any trouble.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use qapi::futures::{QapiService, QgaStreamTokio};
use qapi::qga::{
    GuestExecCaptureOutput, GuestShutdownMode, QgaCommand, guest_exec, guest_exec_status,
    guest_get_time, guest_set_time, guest_shutdown,
};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::Mutex;

use super::guest_text::quoted;
use super::wait::{Pace, within};

/// An agent that runs answers in tens of milliseconds, on a starved host in seconds.
const REPLY_LIMIT: Duration = Duration::from_secs(30);

/// How long one attempt at getting into step may take; the next one starts with a new connection.
const SYNC_LIMIT: Duration = Duration::from_secs(10);

/// What the agent may send before it is in step: replies to somebody else, `guest-exec` output among them.
const STALE_LIMIT: u64 = 64 * 1024 * 1024;

type Service = QapiService<QgaStreamTokio<OwnedWriteHalf>>;

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
    service: Option<Service>,
    syncs: i64,
}

impl Agent {
    /// The agent behind a socket, to which nothing is said yet.
    pub(super) fn new(socket: PathBuf) -> Self {
        let connection = Connection {
            socket,
            service: None,
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
                Err(_) => connection.service = None,
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
        self.connection.lock().await.service = None;
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
        let no_reply = NoReply { command: C::NAME };
        let in_step = within("the guest agent", limit, self.in_step()).await;
        let service = in_step.context("the guest agent does not answer")??;
        match tokio::time::timeout(limit, service.execute(command)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(qapi::ExecuteError::Qapi(refused))) => {
                let said = quoted(refused.desc.as_bytes());
                Err(anyhow::anyhow!(said).context(format!("guest agent command `{}`", C::NAME)))
            }
            // The reply may still come: the next request must not take it for its own.
            Ok(Err(qapi::ExecuteError::Io(_))) | Err(_) => {
                self.service = None;
                Err(no_reply.into())
            }
        }
    }

    async fn in_step(&mut self) -> anyhow::Result<&Service> {
        if self.service.is_none() {
            self.syncs += 1;
            let stream = UnixStream::connect(&self.socket)
                .await
                .with_context(|| format!("connecting to `{}`", self.socket.display()))?;
            let stream = sync(stream, self.syncs)
                .await
                .context("syncing with the guest agent")?;
            let (from_agent, to_agent) = stream.into_split();
            let (service, replies) = QgaStreamTokio::open_split(from_agent, to_agent).into_parts();
            tokio::spawn(replies.into_future());
            self.service = Some(service);
        }
        self.service
            .as_ref()
            .context("no connection to the guest agent")
    }
}

/// Gets into step: what the agent says before it answers *this* sync was meant for somebody else.
async fn sync(stream: UnixStream, id: i64) -> anyhow::Result<UnixStream> {
    let mut reader = BufReader::new(stream);
    // The first byte, which no JSON contains, makes the agent drop half a request.
    let request =
        format!("{{\"execute\":\"guest-sync-delimited\",\"arguments\":{{\"id\":{id}}}}}\n");
    reader
        .write_all(&[&[0xff], request.as_bytes()].concat())
        .await?;
    let mut from_agent = (&mut reader).take(STALE_LIMIT);
    let mut line = Vec::new();
    loop {
        line.clear();
        anyhow::ensure!(
            from_agent.read_until(b'\n', &mut line).await? > 0,
            "the connection ended"
        );
        if is_answer(&line, id) {
            return Ok(reader.into_inner());
        }
    }
}

/// Whether a line of the agent is the answer to sync number `id`: it starts with 0xff, perhaps after half a reply.
fn is_answer(line: &[u8], id: i64) -> bool {
    let json = line.rsplit(|byte| *byte == 0xff).next().unwrap_or_default();
    serde_json::from_slice::<serde_json::Value>(json)
        .is_ok_and(|reply| line.contains(&0xff) && reply["return"].as_i64() == Some(id))
}

/// Whether an agent's line brings into step, and what is shown of it; for the fuzz targets.
#[doc(hidden)]
pub fn read_line(line: &[u8], id: i64) -> (bool, String) {
    (is_answer(line, id), quoted(line))
}

#[cfg(test)]
mod tests;
