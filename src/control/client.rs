//! The commands' end of the control API.

use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{Drain, Info, TakeDown, Up};
use crate::manager::events::PoolEvent;
use crate::manager::status::Status;

/// How long a manager may take to say who it is. It answers in milliseconds unless it is stopped or hangs.
const GREETING: Duration = Duration::from_secs(10);

/// A manager that was reached.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// A request that came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("no manager is running (nobody answers at `{}`)", socket.display())]
    NotRunning {
        /// Where it would listen.
        socket: PathBuf,
    },
    /// Somebody listens and says nothing.
    #[error("the manager at `{}` does not answer: it hangs or is stopped", socket.display())]
    Silent {
        /// Where it listens.
        socket: PathBuf,
    },
    /// The socket cannot be used.
    #[error("the manager's socket `{}`", socket.display())]
    Socket {
        /// Where it is.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It went away in the middle.
    #[error("the manager ended before it answered")]
    Lost(#[source] hyper::Error),
    /// It refuses.
    #[error("{0}")]
    Refused(String),
    /// It says something else than this version of xpool understands.
    #[error("the manager speaks another version of the control API")]
    Version(#[source] serde_json::Error),
}

impl Client {
    /// The manager that listens at a socket, and what it says of itself.
    pub async fn connect(socket: &Path) -> Result<(Self, Info), ControlError> {
        let client = Self {
            socket: socket.to_owned(),
        };
        let info = tokio::time::timeout(GREETING, client.get("/v1/info")).await;
        let info = info.map_err(|_| ControlError::Silent {
            socket: socket.to_owned(),
        })??;
        Ok((client, info))
    }

    /// The status of this moment.
    pub async fn status(&self) -> Result<Status, ControlError> {
        self.get("/v1/status").await
    }

    /// The status of this moment in numbers, as Prometheus reads them.
    pub async fn metrics(&self) -> Result<String, ControlError> {
        let body = self.body("/metrics").await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Asks for VMs.
    pub async fn up(&self, up: &Up) -> Result<(), ControlError> {
        self.post("/v1/up", up).await
    }

    /// Takes a VM out of service.
    pub async fn drain(&self, drain: &Drain) -> Result<(), ControlError> {
        self.post("/v1/drain", drain).await
    }

    /// Takes something down and returns when it is.
    pub async fn down(&self, down: &TakeDown) -> Result<(), ControlError> {
        self.post("/v1/down", down).await
    }

    /// The status at each change from now on.
    pub async fn watch(&self) -> Result<Lines<Status>, ControlError> {
        self.lines("/v1/watch").await
    }

    /// What happens from now on.
    pub async fn events(&self) -> Result<Lines<PoolEvent>, ControlError> {
        self.lines("/v1/events").await
    }

    async fn lines<T>(&self, path: &str) -> Result<Lines<T>, ControlError> {
        let answer = self.send(Method::GET, path, Bytes::new()).await?;
        Ok(Lines {
            body: answer.into_body(),
            buffer: Vec::new(),
            of: PhantomData,
        })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ControlError> {
        let body = self.body(path).await?;
        serde_json::from_slice(&body).map_err(ControlError::Version)
    }

    async fn body(&self, path: &str) -> Result<Bytes, ControlError> {
        let answer = self.send(Method::GET, path, Bytes::new()).await?;
        let body = answer.into_body().collect().await;
        Ok(body.map_err(ControlError::Lost)?.to_bytes())
    }

    async fn post(&self, path: &str, wish: &impl Serialize) -> Result<(), ControlError> {
        let body = serde_json::to_vec(wish).map_err(ControlError::Version)?;
        self.send(Method::POST, path, body.into()).await.map(drop)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ControlError> {
        let mut sender = self.open().await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "xpool")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .expect("method, path and headers are constants");
        let answer = sender
            .send_request(request)
            .await
            .map_err(ControlError::Lost)?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let said = answer
            .into_body()
            .collect()
            .await
            .map_err(ControlError::Lost)?
            .to_bytes();
        Err(ControlError::Refused(
            String::from_utf8_lossy(&said).into_owned(),
        ))
    }

    async fn open(&self) -> Result<SendRequest<Full<Bytes>>, ControlError> {
        let socket = || self.socket.clone();
        let stream =
            UnixStream::connect(&self.socket)
                .await
                .map_err(|source| match source.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                        ControlError::NotRunning { socket: socket() }
                    }
                    _ => ControlError::Socket {
                        socket: socket(),
                        source,
                    },
                })?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(ControlError::Lost)?;
        // Its error reaches the request that it belongs to.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// A stream of JSON, one a line.
#[derive(Debug)]
pub struct Lines<T> {
    body: Incoming,
    buffer: Vec<u8>,
    of: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// The next one; `None` when the manager has ended. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<T>, ControlError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(ControlError::Version);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend(frame.data_ref().into_iter().flatten()),
                // A manager that ends closes its streams, in whatever manner.
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}
