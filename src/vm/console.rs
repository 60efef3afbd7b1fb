//! The guest's console: kept in a file of bounded size, never in the guest's way.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::guest_text::quoted;
use super::out_of_memory::Kills;
use crate::bounded_log::BoundedLog;

/// The console log and its predecessor hold this much each: a boot writes 5 KiB, and a guest that floods its console
/// must not fill the disk.
const LOG_LIMIT: u64 = 1024 * 1024;

/// Twenty lines of a boot are far less.
const TAIL_BYTES: u64 = 16 * 1024;

/// Names of processes that a guest's kernel has killed for want of memory. A few are kept; more would say no more.
pub(super) type KilledProcesses = mpsc::Receiver<String>;
const KILLED_KEPT: usize = 4;

/// Starts a new console log at `path` and copies `console` into it until it ends. Also gives what it says of memory.
pub(super) fn record(
    console: impl AsyncRead + Unpin + Send + 'static,
    path: &Path,
) -> io::Result<(JoinHandle<()>, KilledProcesses)> {
    let log = BoundedLog::create(path, LOG_LIMIT)?;
    let (tell, killed) = mpsc::channel(KILLED_KEPT);
    Ok((tokio::spawn(copy(console, log, tell)), killed))
}

async fn copy(mut console: impl AsyncRead + Unpin, log: BoundedLog, tell: mpsc::Sender<String>) {
    let mut chunk = vec![0; 16 * 1024];
    let mut log = Some(log);
    let mut kills = Kills::default();
    // Read to the end whatever happens to the log: a guest must not wait for its console.
    while let Ok(length @ 1..) = console.read(&mut chunk).await {
        for killed in kills.read(&chunk[..length]) {
            let _ = tell.try_send(killed);
        }
        // A write of a few KiB into the page cache; not worth another thread.
        let written = log.as_mut().map(|log| log.write_all(&chunk[..length]));
        if let (Some(Err(error)), Some(failed)) = (written, log.as_ref()) {
            tracing::warn!(path = %failed.path().display(), %error, "console log given up");
            log = None;
        }
    }
}

/// The last lines of a console log, as they can be quoted. Empty if there is none.
pub(super) fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let Ok(tail) = tail(path) else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&tail);
    let mut lines = VecDeque::with_capacity(count);
    for line in text.lines() {
        let line = quoted(line.as_bytes());
        if line.trim().is_empty() {
            continue;
        }
        if lines.len() == count {
            lines.pop_front();
        }
        lines.push_back(line);
    }
    lines.into()
}

fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_lines_are_there_when_the_console_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let console = std::io::Cursor::new("one\r\n\r\n\u{1b}two\r\nthree\r\n");
        let (recorded, mut killed) = record(console, &path).unwrap();
        recorded.await.unwrap();
        assert_eq!(killed.recv().await, None);
        assert_eq!(last_lines(&path, 2), [" two", "three"]);
        assert_eq!(last_lines(&dir.path().join("none"), 2), [""; 0]);
    }
}
