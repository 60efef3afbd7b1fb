//! Both sides of the worker protocol's handshake, as machines that are fed bytes and say what to send.
//!
//! Source: `worker-protocol-connection.cc` and `daemon.cc` of Nix 2.3 to 2.34. The server's bytes depend only on its own
//! constants and on the client's version, so the front end can answer a client long before there is a guest, and take the
//! client's part towards the guest later. Features (1.38) are never promised, so they are never exchanged.

use super::stderr;
use super::wire::{Reader, Version, WireError, put_number, put_string};

/// The first word of a client: `nixc`.
pub const CLIENT_MAGIC: u64 = 0x6e69_7863;
/// The first word of a server: `dxio`.
pub const SERVER_MAGIC: u64 = 0x6478_696f;
/// "The server trusts you", since 1.35.
const TRUSTED: u64 = 1;
/// The longest string in a handshake that is believed, in bytes: a Nix version or an error message.
const MAX_STRING: usize = 16 * 1024;
/// The most lines a server may say before the handshake is over.
const MAX_LINES: usize = 64;

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The peer speaks something else.
    #[error("the peer does not speak Nix's worker protocol (it began with {0:#018x})")]
    WrongMagic(u64),
    /// The version is not one.
    #[error("the peer gave {0:#x} as its protocol version")]
    WrongVersion(u64),
    /// The client is older than what is supported.
    #[error(
        "the Nix client speaks protocol {found}, and xpool needs {} (Nix 2.3) or newer",
        Version::OLDEST
    )]
    ClientTooOld {
        /// The client's version.
        found: Version,
    },
    /// The guest cannot do what was promised to the client.
    #[error(
        "the guest's nix-daemon speaks protocol {found}, and the client was promised {promised}: use an image with a newer Nix"
    )]
    GuestTooOld {
        /// The guest's version.
        found: Version,
        /// What the client was promised.
        promised: Version,
    },
    /// The server ended the handshake with an error of its own.
    #[error("the guest's nix-daemon refused the session: {0}")]
    Refused(String),
    /// A frame that has no place in a handshake.
    #[error("the peer sent {0:#x} in the middle of the handshake")]
    WrongFrame(u64),
    /// A value that cannot be read.
    #[error("the peer's handshake cannot be read: {0}")]
    Malformed(WireError),
}

/// What xpool says of itself to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The newest protocol that is offered. Never more than the guest has, and below 1.38.
    pub version: Version,
    /// The Nix version that the client shows: `2.26.3`.
    pub nix: String,
}

impl Promise {
    /// What clients are told before there is a guest. Protocol 1.37 is what every Nix from 2.20 on takes, without the exchange
    /// of features that 1.38 begins with.
    pub fn of_xpool() -> Self {
        Self {
            version: Version::PROMISED,
            nix: format!("xpool {}", env!("CARGO_PKG_VERSION")),
        }
    }
}

/// The server's side, towards a client.
#[derive(Debug)]
pub struct ServerSide {
    promise: Promise,
    step: ServerStep,
    received: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum ServerStep {
    Magic,
    Version,
    /// The two obsolete settings that a client sends: processor affinity and reserved space.
    Settings(Version),
}

/// What the server's side did with the bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerProgress {
    /// Send `reply` (it may be empty), then read more.
    More {
        /// Bytes for the client.
        reply: Vec<u8>,
    },
    /// Send `reply`; the handshake is over.
    Done {
        /// Bytes for the client.
        reply: Vec<u8>,
        /// The version that both know.
        version: Version,
        /// What came after the handshake: the beginning of the first operation.
        rest: Vec<u8>,
    },
}

impl ServerSide {
    /// Waits for a client's first byte. A promise beyond [`Version::PROMISED`] is cut down to it.
    pub fn new(mut promise: Promise) -> Self {
        promise.version = promise.version.min(Version::PROMISED);
        Self {
            promise,
            step: ServerStep::Magic,
            received: Vec::new(),
        }
    }

    /// Takes what the client sent. After `Done` or an error there is nothing left to ask.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<ServerProgress, HandshakeError> {
        self.received.extend_from_slice(bytes);
        let mut reply = Vec::new();
        loop {
            let mut reader = Reader::new(&self.received);
            let stepped = match self.step {
                ServerStep::Magic => read_magic(&mut reader, CLIENT_MAGIC).map(|()| {
                    put_number(&mut reply, SERVER_MAGIC);
                    put_number(&mut reply, self.promise.version.to_wire());
                    ServerStep::Version
                }),
                ServerStep::Version => read_version(&mut reader)
                    .and_then(|client| negotiate(client, self.promise.version))
                    .map(ServerStep::Settings),
                ServerStep::Settings(version) => match skip_settings(&mut reader) {
                    Ok(()) => {
                        self.greet(version, &mut reply);
                        let rest = self.received.split_off(reader.position());
                        return Ok(ServerProgress::Done {
                            reply,
                            version,
                            rest,
                        });
                    }
                    Err(error) => Err(error),
                },
            };
            match stepped {
                Ok(step) => self.step = step,
                Err(HandshakeError::Malformed(WireError::Incomplete)) => {
                    return Ok(ServerProgress::More { reply });
                }
                Err(error) => return Err(error),
            }
            let consumed = reader.position();
            self.received.drain(..consumed);
        }
    }

    fn greet(&self, version: Version, reply: &mut Vec<u8>) {
        if version.has(33) {
            put_string(reply, self.promise.nix.as_bytes());
        }
        if version.has(35) {
            put_number(reply, TRUSTED);
        }
        put_number(reply, stderr::LAST);
    }
}

/// The client's side, towards a guest or towards a daemon of this machine.
#[derive(Debug)]
pub struct ClientSide {
    version: Version,
    /// What the other side has to speak at least.
    least: Version,
    received: Vec<u8>,
}

/// What the guest's answer amounts to.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientProgress {
    /// Read more.
    More,
    /// The handshake is over.
    Done {
        /// What both speak.
        version: Version,
        /// The Nix version of the other side, where it says so (1.33).
        nix: Option<String>,
        /// What came after the handshake.
        rest: Vec<u8>,
    },
}

impl ClientSide {
    /// Speaks `version`, which was negotiated with the client.
    pub fn new(version: Version) -> Self {
        Self {
            version,
            least: version,
            received: Vec::new(),
        }
    }

    /// Speaks what the other side does, where that is not newer than what xpool knows.
    pub fn negotiating() -> Self {
        Self {
            version: Version::PROMISED,
            least: Version::OLDEST,
            received: Vec::new(),
        }
    }

    /// All that is to be sent. It can go out at once: the server reads it step by step, so no round trip is lost.
    pub fn hello(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_number(&mut out, CLIENT_MAGIC);
        put_number(&mut out, self.version.to_wire());
        put_number(&mut out, 0); // no processor affinity
        put_number(&mut out, 0); // no reserved space
        out
    }

    /// Takes what the guest sent. After `Done` or an error there is nothing left to ask.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<ClientProgress, HandshakeError> {
        self.received.extend_from_slice(bytes);
        let mut reader = Reader::new(&self.received);
        match read_greeting(&mut reader, self.version, self.least) {
            Ok((version, nix)) => {
                let rest = self.received.split_off(reader.position());
                Ok(ClientProgress::Done { version, nix, rest })
            }
            Err(HandshakeError::Malformed(WireError::Incomplete)) => Ok(ClientProgress::More),
            Err(error) => Err(error),
        }
    }
}

fn negotiate(client: Version, promised: Version) -> Result<Version, HandshakeError> {
    if client < Version::OLDEST {
        return Err(HandshakeError::ClientTooOld { found: client });
    }
    Ok(client.min(promised))
}

fn read_greeting(
    reader: &mut Reader<'_>,
    wanted: Version,
    least: Version,
) -> Result<(Version, Option<String>), HandshakeError> {
    read_magic(reader, SERVER_MAGIC)?;
    let found = read_version(reader)?;
    if found < least {
        return Err(HandshakeError::GuestTooOld {
            found,
            promised: least,
        });
    }
    let version = wanted.min(found);
    let nix = if version.has(33) {
        Some(read_text(reader)?)
    } else {
        None
    };
    if version.has(35) {
        reader.number().map_err(HandshakeError::Malformed)?; // whether it trusts us
    }
    for _ in 0..MAX_LINES {
        match reader.number().map_err(HandshakeError::Malformed)? {
            stderr::LAST => return Ok((version, nix)),
            stderr::NEXT => drop(read_text(reader)?),
            stderr::ERROR => return Err(HandshakeError::Refused(read_error(reader, version)?)),
            other => return Err(HandshakeError::WrongFrame(other)),
        }
    }
    Err(HandshakeError::WrongFrame(stderr::NEXT))
}

fn read_error(reader: &mut Reader<'_>, version: Version) -> Result<String, HandshakeError> {
    if version.has(26) {
        read_text(reader)?; // "Error"
        reader.number().map_err(HandshakeError::Malformed)?; // level
        read_text(reader)?; // "Error"
    }
    read_text(reader)
}

fn read_text(reader: &mut Reader<'_>) -> Result<String, HandshakeError> {
    let bytes = reader
        .string(MAX_STRING)
        .map_err(HandshakeError::Malformed)?;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

fn read_magic(reader: &mut Reader<'_>, expected: u64) -> Result<(), HandshakeError> {
    let found = reader.number().map_err(HandshakeError::Malformed)?;
    if found != expected {
        return Err(HandshakeError::WrongMagic(found));
    }
    Ok(())
}

fn read_version(reader: &mut Reader<'_>) -> Result<Version, HandshakeError> {
    let number = reader.number().map_err(HandshakeError::Malformed)?;
    Version::from_wire(number)
        .filter(|version| version.major == Version::PROMISED.major)
        .ok_or(HandshakeError::WrongVersion(number))
}

fn skip_settings(reader: &mut Reader<'_>) -> Result<(), HandshakeError> {
    let mut number = || reader.number().map_err(HandshakeError::Malformed);
    if number()? != 0 {
        number()?; // which processor to run on
    }
    number()?; // whether to reserve space
    Ok(())
}

#[cfg(test)]
mod tests;
