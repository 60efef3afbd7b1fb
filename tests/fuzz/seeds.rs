//! `seeds CAPTURES SEEDS FOLDER`: what the fuzz targets begin with, as FOLDER/TARGET/*.
//!
//! From recorded sessions of real Nix clients (tests/captures), in the form that each target reads, and from the texts in
//! tests/fuzz/seeds.

use std::fs;
use std::io;
use std::path::Path;

/// What somebody said: the client, or else the server.
struct Chunk {
    by_client: bool,
    said: Vec<u8>,
}

/// How a NAR begins.
const NAR: &[u8] = b"\x0d\0\0\0\0\0\0\0nix-archive-1";

fn main() -> io::Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [captures, texts, to] = &arguments[..] else {
        return Err(io::Error::other("usage: seeds CAPTURES SEEDS FOLDER"));
    };
    for seed in all(Path::new(captures), Path::new(texts))? {
        let folder = Path::new(to).join(&seed.target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(&seed.name), &seed.data)?;
    }
    Ok(())
}

/// What a target begins with.
pub(crate) struct Seed {
    pub(crate) target: String,
    pub(crate) name: String,
    pub(crate) data: Vec<u8>,
}

/// All of them, from the folder of captures and that of texts.
pub(crate) fn all(captures: &Path, texts: &Path) -> io::Result<Vec<Seed>> {
    let mut seeds = Vec::new();
    for version in fs::read_dir(captures)? {
        let version = version?;
        if !version.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(version.path())? {
            let file = file?;
            let name = format!(
                "{}-{}",
                version.file_name().display(),
                file.file_name().display()
            );
            of_capture(&mut seeds, &name, &chunks(&fs::read(file.path())?));
        }
    }
    for target in fs::read_dir(texts)? {
        let target = target?;
        for file in fs::read_dir(target.path())? {
            let file = file?;
            seeds.push(Seed {
                target: target.file_name().display().to_string(),
                name: file.file_name().display().to_string(),
                data: fs::read(file.path())?,
            });
        }
    }
    Ok(seeds)
}

/// The chunks of a capture, whose form tests/captures/recorder.rs describes.
fn chunks(mut capture: &[u8]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    while let Some(line) = capture.iter().position(|byte| *byte == b'\n') {
        let head = String::from_utf8_lossy(&capture[..line]);
        let n: usize = head[2..].parse().expect("a capture counts its bytes");
        let said = capture[line + 1..][..n].to_vec();
        chunks.push(Chunk {
            by_client: head.starts_with('C'),
            said,
        });
        capture = &capture[line + 1 + n + 1..];
    }
    chunks
}

fn of_capture(seeds: &mut Vec<Seed>, name: &str, chunks: &[Chunk]) {
    let mut put = |target: &str, name: String, parts: &[&[u8]]| {
        seeds.push(Seed {
            target: target.to_owned(),
            name,
            data: parts.concat(),
        });
    };
    let all = |by_client| {
        let chunks = chunks.iter().filter(|chunk| chunk.by_client == by_client);
        chunks
            .flat_map(|chunk| chunk.said.clone())
            .collect::<Vec<u8>>()
    };
    // The minor part of 1.37 is 21 + 16.
    put(
        "handshake",
        format!("{name}-client"),
        &[&[16, 20], &all(true)],
    );
    put(
        "handshake",
        format!("{name}-server"),
        &[&[142, 20], &all(false)],
    );
    put("observer", name.to_owned(), &[&operations(chunks)]);
    for (n, chunk) in chunks.iter().enumerate() {
        let follows_a_request = n > 0 && chunks[n - 1].by_client;
        let kinds: &[u8] = match chunk.by_client {
            true => &[0],
            false if follows_a_request => &[1, 2, 3],
            false => &[],
        };
        for kind in kinds {
            let head = [kind | 16 << 2, 250];
            put(
                "queries",
                format!("{name}-{n}-{kind}"),
                &[&head, &chunk.said],
            );
        }
        let nar = chunk
            .said
            .windows(NAR.len())
            .position(|window| window == NAR);
        if let Some(nar) = nar {
            put("nar", format!("{name}-{n}"), &[&chunk.said[nar..]]);
        }
    }
}

/// What comes after the handshake: from the client's first chunk that begins with an operation's number.
fn operations(chunks: &[Chunk]) -> Vec<u8> {
    let is_operation = |chunk: &Chunk| {
        let number = chunk
            .said
            .first_chunk()
            .map(|number| u64::from_le_bytes(*number));
        chunk.by_client && matches!(number, Some(1..=50))
    };
    let first = chunks.iter().position(is_operation).unwrap_or(chunks.len());
    let mut seed = vec![16];
    for chunk in &chunks[first..] {
        let n = u16::try_from(chunk.said.len()).expect("captures are small");
        seed.extend((n << 1 | u16::from(!chunk.by_client)).to_le_bytes());
        seed.extend(&chunk.said);
    }
    seed
}
