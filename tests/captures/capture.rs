//! What `tests/captures/record` has recorded.

use std::fs;
use std::path::Path;

use xpool::nix::handshake::{
    ClientProgress, ClientSide, HandshakeError, Promise, ServerProgress, ServerSide,
};
use xpool::nix::wire::Version;

/// Who said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// One recorded session.
#[derive(Clone, Debug)]
pub(crate) struct Capture {
    /// `build.1`: the first session of this name.
    pub(crate) name: String,
    /// What was said, in order.
    pub(crate) chunks: Vec<(Side, Vec<u8>)>,
}

/// How a side's handshake ended: with the version agreed on, and what came after it.
pub(crate) type Shaken = (Version, Vec<u8>);

impl Capture {
    /// The sessions of a version of Nix, by name.
    pub(crate) fn all(nix: &str) -> Vec<Self> {
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/captures/nix-{nix}"));
        let entries = fs::read_dir(&folder).unwrap();
        let mut captures: Vec<Self> = entries
            .map(|entry| Self::read(&entry.unwrap().path()))
            .collect();
        captures.sort_by(|a, b| a.name.cmp(&b.name));
        captures
    }

    fn read(file: &Path) -> Self {
        let bytes = fs::read(file).unwrap();
        let mut rest = &bytes[..];
        let mut chunks = Vec::new();
        while let Some(line) = rest.iter().position(|byte| *byte == b'\n') {
            let head = std::str::from_utf8(&rest[..line]).unwrap();
            let (who, n) = head.split_once(' ').unwrap();
            let side = match who {
                "C" => Side::Client,
                "S" => Side::Server,
                _ => panic!("{} has a chunk of {who}", file.display()),
            };
            let (chunk, more) = rest[line + 1..].split_at(n.parse().unwrap());
            chunks.push((side, chunk.to_vec()));
            rest = more.strip_prefix(b"\n").unwrap();
        }
        assert!(rest.is_empty(), "{} is cut off", file.display());
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        Self { name, chunks }
    }

    /// All that a side said.
    pub(crate) fn said(&self, side: Side) -> Vec<u8> {
        let chunks = self.chunks.iter().filter(|(other, _)| *other == side);
        chunks.flat_map(|(_, chunk)| chunk).copied().collect()
    }

    /// The version agreed on, and what was said after the handshake.
    pub(crate) fn after_handshake(&self) -> (Version, Vec<(Side, Vec<u8>)>) {
        let (said, answered) = (self.said(Side::Client), self.said(Side::Server));
        let (version, first) = greet_client(&[&said]).unwrap();
        let (_, _, reply) = greet_server(version, &[&answered]).unwrap();
        let mut to_skip = [said.len() - first.len(), answered.len() - reply.len()];
        let mut chunks = Vec::new();
        for (side, chunk) in &self.chunks {
            let to_skip = &mut to_skip[usize::from(*side == Side::Server)];
            let skipped = chunk.len().min(*to_skip);
            *to_skip -= skipped;
            if skipped < chunk.len() {
                chunks.push((*side, chunk[skipped..].to_vec()));
            }
        }
        (version, chunks)
    }
}

/// What xpool says of itself to a client.
pub(crate) fn promise() -> Promise {
    Promise {
        version: Version::PROMISED,
        nix: "2.26.3".to_owned(),
    }
}

/// Takes the server's part towards a client that says this.
pub(crate) fn greet_client(parts: &[&[u8]]) -> Result<Shaken, HandshakeError> {
    let mut side = ServerSide::new(promise());
    let mut parts = parts.iter();
    for part in &mut parts {
        if let ServerProgress::Done { version, rest, .. } = side.receive(part)? {
            let later = parts.copied().collect::<Vec<_>>().concat();
            return Ok((version, [rest, later].concat()));
        }
    }
    panic!("the client's handshake has no end");
}

/// Takes the client's part towards a server that says this. Gives the server's version of Nix, too.
pub(crate) fn greet_server(
    version: Version,
    parts: &[&[u8]],
) -> Result<(Version, Option<String>, Vec<u8>), HandshakeError> {
    let mut side = ClientSide::new(version);
    let mut parts = parts.iter();
    for part in &mut parts {
        if let ClientProgress::Done { version, nix, rest } = side.receive(part)? {
            let later = parts.copied().collect::<Vec<_>>().concat();
            return Ok((version, nix, [rest, later].concat()));
        }
    }
    panic!("the server's handshake has no end");
}
