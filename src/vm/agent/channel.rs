//! The agent's channel: a line out, a line in. What comes is a guest's, so a line is bounded, nothing is read while nobody waits for a
//! reply, and what is parsed becomes the one type that was asked for.

use std::io;
use std::path::Path;

use futures::StreamExt as _;
use qapi::qga::QgaCommand;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio_util::codec::{AnyDelimiterCodec, AnyDelimiterCodecError, Framed};

use crate::vm::guest_text::quoted;

/// The longest line of an agent's, in bytes. The longest that xpool asks for, what a program of the guest's own printed, is below 10 KiB.
pub(super) const LINE_LIMIT: usize = 4 << 20;

/// The longest answer to a sync, in bytes.
const SYNC_ANSWER_LIMIT: usize = 4 << 10;

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentError {
    /// The agent says no, in these words.
    #[error("{0}")]
    Refused(String),
    #[error("the guest agent sent a line of more than {LINE_LIMIT} bytes")]
    LineTooLong,
    #[error("the guest agent sent `{0}`, which is no reply to that")]
    NoReplyToThat(String),
    #[error("the guest agent's connection ended")]
    Ended,
    #[error("the guest agent's connection broke")]
    Io(#[from] io::Error),
}

/// A connection to an agent.
pub(super) struct Channel<S = UnixStream> {
    lines: Framed<S, AnyDelimiterCodec>,
}

impl Channel {
    pub(super) async fn connect(socket: &Path) -> io::Result<Self> {
        Ok(Self::over(UnixStream::connect(socket).await?))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Channel<S> {
    fn over(stream: S) -> Self {
        let newline = b"\n".to_vec();
        let codec = AnyDelimiterCodec::new_with_max_length(newline.clone(), newline, LINE_LIMIT);
        let lines = Framed::new(stream, codec);
        Self { lines }
    }

    /// Gets into step: what the agent says before it answers *this* sync was meant for somebody else.
    pub(super) async fn sync(&mut self, id: i64) -> Result<(), AgentError> {
        // The first byte, which no JSON contains, makes the agent drop half a request.
        let request =
            format!("{{\"execute\":\"guest-sync-delimited\",\"arguments\":{{\"id\":{id}}}}}");
        self.send([&[0xff], request.as_bytes()].concat()).await?;
        while !is_answer(self.line().await?.as_ref(), id) {}
        Ok(())
    }

    /// Has the agent execute a command. Once this has failed with anything but a refusal, or was given up, the channel is of no use any more.
    pub(super) async fn execute<C: QgaCommand>(&mut self, command: C) -> Result<C::Ok, AgentError> {
        let request = qapi::Execute::<C>::with_command(command);
        self.send(serde_json::to_vec(&request).map_err(io::Error::from)?)
            .await?;
        reply(self.line().await?.as_ref())
    }

    async fn send(&mut self, mut line: Vec<u8>) -> io::Result<()> {
        line.push(b'\n');
        self.lines.get_mut().write_all(&line).await
    }

    async fn line(&mut self) -> Result<impl AsRef<[u8]> + use<S>, AgentError> {
        let line = self.lines.next().await.ok_or(AgentError::Ended)?;
        line.map_err(AgentError::from)
    }
}

impl From<AnyDelimiterCodecError> for AgentError {
    fn from(error: AnyDelimiterCodecError) -> Self {
        match error {
            AnyDelimiterCodecError::MaxChunkLengthExceeded => Self::LineTooLong,
            AnyDelimiterCodecError::Io(error) => Self::Io(error),
        }
    }
}

/// A reply (QEMU's docs/interop/qmp-spec, 2.4). Never an untagged enum, for which serde keeps all that it is sent.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply<T> {
    Return(T),
    Error(Refusal),
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

fn reply<T: DeserializeOwned>(line: &[u8]) -> Result<T, AgentError> {
    match serde_json::from_slice(line) {
        Ok(Reply::Return(value)) => Ok(value),
        Ok(Reply::Error(refusal)) => Err(AgentError::Refused(quoted(refusal.desc.as_bytes()))),
        // The parser's own words have pieces of the line.
        Err(_) => Err(AgentError::NoReplyToThat(quoted(line))),
    }
}

/// Whether a line of the agent is the answer to sync number `id`: it starts with 0xff, perhaps after half a reply.
fn is_answer(line: &[u8], id: i64) -> bool {
    let Some(mark) = line.iter().rposition(|byte| *byte == 0xff) else {
        return false;
    };
    let json = &line[mark + 1..];
    json.len() <= SYNC_ANSWER_LIMIT && reply::<i64>(json).is_ok_and(|answer| answer == id)
}

/// What is shown of an agent that says this after a sync and a request; for the fuzz targets.
#[doc(hidden)]
pub async fn hear_agent(said: &[u8], id: i64) -> String {
    let mut channel = Channel::over(tokio::io::join(said, tokio::io::sink()));
    let heard = async {
        channel.sync(id).await?;
        channel
            .execute(qapi::qga::guest_exec_status { pid: id })
            .await
    };
    match heard.await {
        Ok(status) => quoted(&status.out_data.unwrap_or_default()),
        Err(error) => format!("{:#}", anyhow::Error::from(error)),
    }
}
