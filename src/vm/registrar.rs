//! The registrar: a program in the guest that makes paths of the host's store valid there. The guest contract's
//! `store-register`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use super::agent::Agent;
use super::guest_text::quoted;
use super::port::GUEST_PROGRAM;
use super::wait::within;
use crate::nix::registrations::Registrations;

/// The guest starts a nix-store: half a second, on a starved host a hundred times that.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A thousand paths take a guest half a second, and it may be one of many on a busy machine.
const REGISTER_LIMIT: Duration = Duration::from_secs(120);

/// The longest answer, in bytes: the guest gives the end of what nix-store said.
const LONGEST_ANSWER: u64 = 8 * 1024;

/// The way to a guest's registrar.
pub(super) struct Registrar {
    /// `None` after an exchange that broke off: nobody knows what would be answered next.
    port: Mutex<Option<BufReader<UnixStream>>>,
}

impl Registrar {
    /// Connects to the port. For a guest that was saved with its registrar, this has to be before it goes on: a port that
    /// nobody has open on the host reads as ended.
    pub(super) async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket)
            .await
            .with_context(|| format!("connecting to `{}`", socket.display()))?;
        Ok(Self {
            port: Mutex::new(Some(BufReader::new(stream))),
        })
    }

    /// Starts the registrar in a guest that has none yet, and waits until it waits for requests.
    pub(super) async fn start(&self, agent: &Agent) -> anyhow::Result<()> {
        agent.start(GUEST_PROGRAM, &["store-register"]).await?;
        let answer = self.exchange("the guest's registrar", START_LIMIT, &[]);
        let answer = answer.await?;
        ensure!(
            answer == b"ready",
            "the guest's registrar does not start: {}",
            quoted(&answer)
        );
        Ok(())
    }

    /// Has the host's store laid under the guest's, and does not wait for it. What comes of it is told with the next
    /// registrations.
    pub(super) async fn mount(&self) -> anyhow::Result<()> {
        let mut port = self.port.lock().await;
        let stream = port.as_mut().context(OUT_OF_STEP)?.get_mut();
        let written = stream.write_all(b"mount\n").await;
        written.context("asking the guest to mount the host's store")
    }

    /// Makes paths valid in the guest; all of them or, with an error, none.
    pub(super) async fn register(&self, new: &Registrations) -> anyhow::Result<()> {
        let lengths = format!("{} {}\n", new.paths.len(), new.addresses.len());
        let request = [lengths.as_bytes(), &new.paths, &new.addresses].concat();
        let answer = self.exchange("the guest to register inputs", REGISTER_LIMIT, &request);
        match &answer.await?[..] {
            b"done" => Ok(()),
            other => bail!("the guest did not register inputs: {}", quoted(other)),
        }
    }

    /// Sends a request and gives the line that answers it.
    async fn exchange(
        &self,
        what: &'static str,
        limit: Duration,
        request: &[u8],
    ) -> anyhow::Result<Vec<u8>> {
        let mut port = self.port.lock().await;
        // Out of step until the answer is there in full, however this ends.
        let mut stream = port.take().context(OUT_OF_STEP)?;
        let answer = within(what, limit, async {
            stream.write_all(request).await?;
            let mut line = Vec::new();
            (&mut stream)
                .take(LONGEST_ANSWER)
                .read_until(b'\n', &mut line)
                .await?;
            std::io::Result::Ok(line)
        });
        let mut line = answer
            .await?
            .with_context(|| format!("waiting for {what}"))?;
        ensure!(
            line.pop() == Some(b'\n'),
            "the guest's registrar has ended, or says too much"
        );
        *port = Some(stream);
        Ok(line)
    }
}

const OUT_OF_STEP: &str = "an earlier exchange with the guest's registrar broke off";

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// A registrar whose guest receives what is expected and answers.
    async fn registered(answer: &'static [u8]) -> (anyhow::Result<()>, anyhow::Result<()>) {
        let dir = tempfile::TempDir::new().unwrap();
        let socket = dir.path().join("store");
        let listener = UnixListener::bind(&socket).unwrap();
        let guest = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 15];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"mount\n3 2\na\nbc\n");
            stream.write_all(answer).await.unwrap();
            stream.shutdown().await.unwrap();
            stream
        };
        let host = async {
            let registrar = Registrar::connect(&socket).await.unwrap();
            registrar.mount().await.unwrap();
            let new = Registrations {
                paths: b"a\nb".to_vec(),
                addresses: b"c\n".to_vec(),
            };
            (registrar.register(&new).await, registrar.mount().await)
        };
        tokio::join!(host, guest).0
    }

    #[tokio::test]
    async fn what_the_guest_answers_is_the_outcome() {
        registered(b"done\n").await.0.unwrap();
        let (refused, next) = registered(b"failed: no such path\n").await;
        let text = format!("{:#}", refused.unwrap_err());
        assert_eq!(
            text,
            "the guest did not register inputs: failed: no such path"
        );
        next.unwrap();
    }

    #[tokio::test]
    async fn a_registrar_that_broke_off_is_not_asked_again() {
        for answer in [&b"don"[..], b"", &[b'x'; 9000]] {
            let (broken, next) = registered(answer).await;
            broken.unwrap_err();
            assert_eq!(next.unwrap_err().to_string(), OUT_OF_STEP);
        }
    }
}
