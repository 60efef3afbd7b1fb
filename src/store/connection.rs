//! A connection to this machine's Nix: to its daemon's socket, or to a `nix-daemon --stdio` of our own where there is none.

use std::io::ErrorKind;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};

use super::place::StorePlace;
use crate::nix::handshake::{ClientProgress, ClientSide};
use crate::nix::queries::{
    PathInfo, ReplyError, put_add_temp_root, put_query_path_info, put_query_valid_paths,
    read_add_temp_root, read_path_info, read_valid_paths,
};
use crate::nix::store_path::StorePath;
use crate::nix::wire::{Reader, Version, WireError};

/// How much of what a daemon of ours says is kept, in bytes.
const MOST_SAID: u64 = 2000;

/// How long a daemon of ours that has hung up may take to say why.
const SAY_LIMIT: Duration = Duration::from_secs(1);

/// No reply to a question of ours is longer, in bytes.
const LONGEST_REPLY: usize = 64 * 1024 * 1024;

/// A connection whose handshake is done. Dropping it lets go of what it holds.
pub(super) struct Connection {
    reader: Box<dyn AsyncRead + Send + Sync + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    version: Version,
    /// What was received and not read yet.
    received: Vec<u8>,
    /// The daemon, where it is our own; killed when it is dropped.
    _daemon: Option<Child>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to the Nix of a store.
    pub(super) async fn open(place: &StorePlace) -> anyhow::Result<Self> {
        let socket = place.socket();
        match UnixStream::connect(&socket).await {
            Ok(stream) => {
                let (reader, writer) = stream.into_split();
                let shaken = Self::shake_hands(Box::new(reader), Box::new(writer), None);
                shaken
                    .await
                    .with_context(|| format!("asking the Nix daemon at {}", socket.display()))
            }
            // There is none, or one that has died has left its socket.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) =>
            {
                Self::start(place).await
            }
            Err(error) => Err(error)
                .with_context(|| format!("connecting to the Nix daemon at {}", socket.display())),
        }
    }

    /// Starts a daemon that serves nobody but us.
    async fn start(place: &StorePlace) -> anyhow::Result<Self> {
        let program = "nix-daemon";
        let mut command = Command::new(program);
        command
            .arg("--stdio")
            .arg("--store")
            .arg(place.uri())
            .env("PATH", &place.search_path)
            .env_remove("NIX_REMOTE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal is meant for the manager, which lets builds end.
            .process_group(0)
            .kill_on_drop(true);
        let mut daemon = command
            .spawn()
            .with_context(|| format!("starting `{program} --stdio`"))?;
        let pipes = daemon
            .stdin
            .take()
            .zip(daemon.stdout.take())
            .zip(daemon.stderr.take());
        let ((writer, reader), said) = pipes.context("a started program has no pipes")?;
        match Self::shake_hands(Box::new(reader), Box::new(writer), Some(daemon)).await {
            Ok(connection) => Ok(connection),
            Err(error) => Err(match last_words(said).await {
                Some(words) => anyhow::anyhow!("`{program} --stdio`: {words}"),
                None => error.context(format!("asking `{program} --stdio`")),
            }),
        }
    }

    async fn shake_hands(
        mut reader: Box<dyn AsyncRead + Send + Sync + Unpin>,
        mut writer: Box<dyn AsyncWrite + Send + Sync + Unpin>,
        daemon: Option<Child>,
    ) -> anyhow::Result<Self> {
        let mut side = ClientSide::negotiating();
        writer.write_all(&side.hello()).await?;
        writer.flush().await?;
        let mut chunk = [0; 4096];
        loop {
            let n = reader.read(&mut chunk).await?;
            ensure!(n > 0, "it hung up in the middle of the handshake");
            if let ClientProgress::Done { version, rest, .. } = side.receive(&chunk[..n])? {
                return Ok(Self {
                    reader,
                    writer,
                    version,
                    received: rest,
                    _daemon: daemon,
                });
            }
        }
    }

    /// Has paths kept as long as the connection is there, valid or not.
    pub(super) async fn add_temp_roots(&mut self, paths: &[StorePath]) -> anyhow::Result<()> {
        let mut requests = Vec::new();
        for path in paths {
            put_add_temp_root(&mut requests, path);
        }
        self.ask(&requests, paths.len(), read_add_temp_root)
            .await
            .map(drop)
    }

    /// Which of these paths are valid.
    pub(super) async fn valid_paths(
        &mut self,
        paths: &[StorePath],
    ) -> anyhow::Result<Vec<StorePath>> {
        let mut request = Vec::new();
        put_query_valid_paths(&mut request, self.version, paths);
        let mut replies = self.ask(&request, 1, read_valid_paths).await?;
        Ok(replies.pop().unwrap_or_default())
    }

    /// What is known of each of these paths, in their order.
    pub(super) async fn path_infos(
        &mut self,
        paths: &[StorePath],
    ) -> anyhow::Result<Vec<Option<PathInfo>>> {
        let mut requests = Vec::new();
        for path in paths {
            put_query_path_info(&mut requests, path);
        }
        self.ask(&requests, paths.len(), read_path_info).await
    }

    /// Sends requests and reads as many replies. Both at once: neither side could take all of the other's.
    async fn ask<T>(
        &mut self,
        requests: &[u8],
        count: usize,
        read: impl Fn(&mut Reader<'_>, Version) -> Result<T, ReplyError>,
    ) -> anyhow::Result<Vec<T>> {
        let (reader, writer) = (&mut self.reader, &mut self.writer);
        let (received, version) = (&mut self.received, self.version);
        let sending = async {
            writer.write_all(requests).await?;
            writer.flush().await?;
            anyhow::Ok(())
        };
        let receiving = async {
            let mut replies = Vec::with_capacity(count);
            let mut consumed = 0;
            while replies.len() < count {
                let mut place = Reader::new(&received[consumed..]);
                match read(&mut place, version) {
                    Ok(reply) => {
                        replies.push(reply);
                        consumed += place.position();
                    }
                    Err(ReplyError::Wire(WireError::Incomplete)) => {
                        received.drain(..std::mem::take(&mut consumed));
                        ensure!(received.len() < LONGEST_REPLY, "its reply is too long");
                        let n = reader.read_buf(received).await?;
                        ensure!(n > 0, "it hung up");
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            received.drain(..consumed);
            Ok(replies)
        };
        let asked = tokio::try_join!(sending, receiving);
        asked
            .map(|((), replies)| replies)
            .context("asking this machine's Nix")
    }
}

/// The end of what a program that has hung up says, on one line.
async fn last_words(mut said: ChildStderr) -> Option<String> {
    let mut bytes = Vec::new();
    // What there is of it, whether or not its end comes in time.
    let _ = tokio::time::timeout(
        SAY_LIMIT,
        (&mut said).take(MOST_SAID).read_to_end(&mut bytes),
    )
    .await;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}
