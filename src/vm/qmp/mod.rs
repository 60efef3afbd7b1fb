//! QEMU's monitor: one connection, commands as qapi has them, events out of band.

pub(super) mod events;
mod filter;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use qapi::ExecuteError;
use qapi::futures::{QapiService, QmpStreamTokio};
use qapi::qmp::QmpCommand;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::Mutex;

use super::wait::{Pace, within};
use events::EventSinks;
use filter::FilterError;

/// QEMU listens 40 ms after its start and greets at once; on a starved host it may take its time.
const GREETING_LIMIT: Duration = Duration::from_secs(30);

/// QEMU answers within a millisecond unless it is stopped or the host starves it.
const REPLY_LIMIT: Duration = Duration::from_secs(30);

type Service = QapiService<QmpStreamTokio<OwnedWriteHalf>>;

/// A connection to QEMU's monitor. Clones share it; it closes with the last of them.
#[derive(Clone)]
pub(super) struct Qmp {
    line: Arc<Mutex<Line>>,
}

/// The way to QEMU, for one command at a time: qapi 0.15 gives them no numbers, as it does not know QEMU's `oob`.
struct Line {
    service: Service,
    /// A command could not be sent, or had no reply. qapi still waits for it then, and panics at the next one.
    is_broken: bool,
}

/// Nothing can be said to QEMU any more.
#[derive(Debug, thiserror::Error)]
#[error("QEMU has closed its monitor")]
struct Broken;

impl Qmp {
    /// Connects to a QEMU that was just started. Its events go to `sinks`, for as long as the connection lasts.
    pub(super) async fn connect(socket: &Path, sinks: EventSinks) -> anyhow::Result<Self> {
        let stream = listening(socket).await?;
        let greeting = within(
            "the greeting of QEMU's monitor",
            GREETING_LIMIT,
            Self::greet(stream, sinks),
        );
        greeting.await.with_context(|| {
            format!(
                "QEMU accepts connections on `{}` but does not greet: it hangs, or serves another client",
                socket.display()
            )
        })?
    }

    async fn greet(stream: UnixStream, sinks: EventSinks) -> anyhow::Result<Self> {
        let (from_qemu, to_qemu) = stream.into_split();
        let (from_filter, to_qapi) = tokio::io::simplex(filter::LINE_LIMIT);
        let sinks = Arc::new(sinks);
        let takers = Arc::clone(&sinks);
        let mut filtered =
            Box::pin(
                async move { filter::run(from_qemu, to_qapi, |event| takers.take(event)).await },
            );
        let negotiated = async {
            let greeted = QmpStreamTokio::open_split(from_filter, to_qemu)
                .await
                .context("reading the greeting of QEMU's monitor")?;
            let stream = greeted.negotiate().await;
            stream.context("negotiating with QEMU's monitor")
        };
        let stream = tokio::select! {
            stream = negotiated => stream?,
            outcome = &mut filtered => anyhow::bail!(in_words(outcome)),
        };
        let (service, replies) = stream.into_parts();
        let line = Line {
            service,
            is_broken: false,
        };
        let line = Arc::new(Mutex::new(line));
        let users = Arc::downgrade(&line);
        tokio::spawn(async move {
            let why = tokio::select! {
                // When the filter ends, qapi has nothing to read any more.
                biased;
                outcome = filtered => in_words(outcome),
                () = replies.into_future() => "QEMU's replies make no sense".to_owned(),
            };
            // Without users it was closed by them.
            if users.strong_count() > 0 {
                sinks.lost(why);
            }
        });
        Ok(Self { line })
    }

    /// Has QEMU execute a command.
    pub(super) async fn execute<C>(&self, command: C) -> anyhow::Result<C::Ok>
    where
        C: QmpCommand + 'static,
        C::Ok: Send + 'static,
    {
        let line = Arc::clone(&self.line);
        // In a task of its own, which nobody aborts: a reply that nobody waits for ends qapi's stream.
        let reply = tokio::spawn(async move { line.lock().await.execute(command).await });
        within("QEMU's reply", REPLY_LIMIT, reply)
            .await
            .with_context(|| format!("QEMU does not answer `{}`: it hangs", C::NAME))?
            .with_context(|| format!("QMP command `{}`", C::NAME))?
            .with_context(|| format!("QMP command `{}`", C::NAME))
    }
}

impl Line {
    async fn execute<C: QmpCommand>(&mut self, command: C) -> anyhow::Result<C::Ok> {
        ensure!(!self.is_broken, Broken);
        let reply = self.service.execute(command).await;
        self.is_broken = matches!(reply, Err(ExecuteError::Io(_)));
        Ok(reply?)
    }
}

/// Why the filter has ended.
fn in_words(outcome: Result<(), FilterError>) -> String {
    match outcome {
        Ok(()) => "QEMU has closed its monitor".to_owned(),
        Err(error) => format!("{:#}", anyhow::Error::from(error)),
    }
}

/// Connects as soon as QEMU listens.
async fn listening(socket: &Path) -> anyhow::Result<UnixStream> {
    let mut pace = Pace::new(Duration::from_millis(5), Duration::from_millis(100));
    let mut refusal = None;
    let connected = async {
        loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => return stream,
                // Not there yet, or not listening yet, or busy with other clients.
                Err(error) => refusal = Some(error),
            }
            pace.pause().await;
        }
    };
    match within("QEMU's monitor to listen", GREETING_LIMIT, connected).await {
        Ok(stream) => Ok(stream),
        Err(timed_out) => {
            let attempt = format!("connecting to `{}`", socket.display());
            let error = refusal.map_or_else(|| anyhow::anyhow!("no attempt"), Into::into);
            Err(error.context(attempt).context(timed_out))
        }
    }
}

/// What qapi gets of what a monitor says; for the fuzz targets.
#[doc(hidden)]
pub async fn filtered(from_qemu: &[u8]) -> Vec<u8> {
    let mut passed = Vec::new();
    let _ = filter::run(from_qemu, &mut passed, |event| drop(event.to_string())).await;
    passed
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::UnixListener;

    use super::*;
    use events::{EventSources, Fate, channels};

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": ["oob"]}}"#;

    async fn answer(from: &mut BufReader<UnixStream>, reply: &str) {
        let mut line = String::new();
        from.read_line(&mut line).await.unwrap();
        let request: serde_json::Value = serde_json::from_str(&line).unwrap();
        let reply = reply.replace("ID", &request["id"].to_string());
        from.write_all(reply.as_bytes()).await.unwrap();
    }

    async fn greeted(listener: &UnixListener) -> BufReader<UnixStream> {
        let mut stream = BufReader::new(listener.accept().await.unwrap().0);
        stream.write_all(GREETING.as_bytes()).await.unwrap();
        stream.write_all(b"\r\n").await.unwrap();
        answer(&mut stream, "{\"return\": {}, \"id\": ID}\r\n").await;
        stream
    }

    /// A QEMU that has greeted, the connection to it, and what is told of it.
    async fn connected() -> (BufReader<UnixStream>, Qmp, EventSources) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        let (sinks, sources) = channels("riscv64-1", Path::new("/vms"), 0);
        let (qemu, qmp) = tokio::join!(greeted(&listener), Qmp::connect(&socket, sinks));
        (qemu, qmp.unwrap(), sources)
    }

    async fn fate_of(mut sources: EventSources) -> Option<Fate> {
        while sources.fate.changed().await.is_ok() {}
        sources.fate.borrow().clone()
    }

    #[tokio::test]
    async fn a_command_whose_caller_went_away_does_not_end_the_connection() {
        let (mut qemu, qmp, _sources) = connected().await;

        let impatient = qmp.execute(qapi::qmp::query_chardev {});
        tokio::time::timeout(Duration::from_millis(20), impatient)
            .await
            .unwrap_err();
        answer(
            &mut qemu,
            "{\"event\": \"NEWS\"}\n{\"return\": [], \"id\": ID}\n",
        )
        .await;

        let patient = qmp.execute(qapi::qmp::query_chardev {});
        let (reply, ()) =
            tokio::join!(patient, answer(&mut qemu, "{\"return\": [], \"id\": ID}\n"));
        assert!(reply.unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_connection_closes_with_its_last_handle() {
        let (mut qemu, qmp, sources) = connected().await;
        drop(qmp);
        assert_eq!(qemu.read(&mut [0]).await.unwrap(), 0);
        drop(qemu);
        assert_eq!(fate_of(sources).await, None);
    }

    #[tokio::test]
    async fn a_monitor_that_takes_nothing_any_more_refuses_each_command() {
        let (qemu, qmp, _sources) = connected().await;
        let qemu = qemu.into_inner().into_std().unwrap();
        qemu.shutdown(std::net::Shutdown::Read).unwrap();
        for _ in 0..2 {
            let error = qmp.execute(qapi::qmp::query_chardev {}).await.unwrap_err();
            assert!(!format!("{error:#}").contains("panic"), "{error:#}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_ends_in_use_is_lost() {
        for (said, why) in [
            ("hello\n", "QEMU's monitor sent what is not JSON"),
            ("{\"return\": {}, \"id\": \"what?\"}\n", "make no sense"),
            ("", "QEMU has closed its monitor"),
        ] {
            let (mut qemu, _qmp, sources) = connected().await;
            qemu.write_all(said.as_bytes()).await.unwrap();
            let qemu = (!said.is_empty()).then_some(qemu);
            let fate = fate_of(sources).await.unwrap().to_string();
            assert!(fate.contains(why), "{fate}");
            drop(qemu);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_monitor_is_told_from_one_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp");
        let (sinks, _) = channels("riscv64-1", Path::new("/vms"), 0);
        let dead = Qmp::connect(&socket, sinks).await.err().unwrap();
        assert!(format!("{dead:#}").contains("No such file"), "{dead:#}");
        let _listener = UnixListener::bind(&socket).unwrap();
        let (sinks, _) = channels("riscv64-1", Path::new("/vms"), 0);
        let hung = Qmp::connect(&socket, sinks).await.err().unwrap();
        assert!(format!("{hung:#}").contains("hangs"), "{hung:#}");
    }
}
