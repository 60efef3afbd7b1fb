//! Records what was built when, as a trace for `xpool simulate`. Whatever becomes of its disk, builds go on.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::bounded_log::BoundedLog;
use crate::manager::worked::{Worked, WorkedDesk};
use crate::simulate::trace;

/// How large a trace gets before it becomes `FILE.old` and another one begins, in bytes: 200,000 builds, more or less.
const LIMIT: u64 = 16 << 20;

/// A file is there that xpool has not written.
#[derive(Debug, thiserror::Error)]
#[error("`{}` is no trace, and nothing is written to it", file.display())]
pub struct NoTrace {
    /// Which one.
    pub file: PathBuf,
}

/// Begins to record to a file, or goes on with one. The task ends when nobody has the desk any more.
pub fn start(file: &Path) -> Result<(WorkedDesk, JoinHandle<()>)> {
    if !may_be_ours(file).with_context(|| format!("reading `{}`", file.display()))? {
        let file = file.to_owned();
        return Err(NoTrace { file }.into());
    }
    let log = BoundedLog::append(file, LIMIT);
    let log = log.with_context(|| format!("creating the trace `{}`", file.display()))?;
    let (desk, worked) = WorkedDesk::channel();
    // A disk may take its time.
    Ok((
        desk,
        tokio::task::spawn_blocking(move || write(log, worked)),
    ))
}

/// Whether there is no file yet, nothing in it, or a trace.
fn may_be_ours(file: &Path) -> io::Result<bool> {
    let file = match File::open(file) {
        Ok(file) if file.metadata()?.is_file() => file,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(_) | Err(_) => return Ok(true),
    };
    let mut line = Vec::new();
    BufReader::new(file.take(100)).read_until(b'\n', &mut line)?;
    Ok(line.is_empty() || line.trim_ascii_end() == trace::HEAD.as_bytes())
}

fn write(mut log: BoundedLog, mut worked: mpsc::Receiver<Worked>) {
    let head = format!("{}\n", trace::HEAD);
    let mut has_warned = false;
    while let Some(worked) = worked.blocking_recv() {
        let written = log.write_whole(head.as_bytes(), line(&worked).as_bytes());
        if let Err(error) = written
            && !std::mem::replace(&mut has_warned, true)
        {
            let file = log.path().display();
            warn!(%file, %error, "builds are missing in the trace: it cannot be written");
        }
    }
}

fn line(worked: &Worked) -> String {
    let epoch = worked.wanted.duration_since(SystemTime::UNIX_EPOCH);
    trace::line(
        epoch.unwrap_or(Duration::ZERO),
        worked.system,
        &worked.client,
        worked.work,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::System;
    use crate::simulate::trace::Trace;

    fn worked(seconds: u64) -> Worked {
        Worked {
            wanted: SystemTime::UNIX_EPOCH + Duration::from_secs(1_763_869_000 + seconds),
            system: System::Riscv64Linux,
            client: "uid 1000".to_owned(),
            work: Duration::from_millis(1250),
        }
    }

    fn record(file: &Path, seconds: &[u64]) {
        let log = BoundedLog::append(file, LIMIT).unwrap();
        let (worked_to, receiver) = mpsc::channel(seconds.len());
        for second in seconds {
            worked_to.try_send(worked(*second)).unwrap();
        }
        drop(worked_to);
        write(log, receiver);
    }

    #[test]
    fn what_is_recorded_by_several_managers_is_one_trace() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("trace.csv");
        record(&file, &[5]);
        record(&file, &[0, 7]);
        let text = std::fs::read_to_string(&file).unwrap();
        insta::assert_snapshot!(text, @r"
        time,system,client,seconds
        1763869005.000,riscv64-linux,uid 1000,1.250
        1763869000.000,riscv64-linux,uid 1000,1.250
        1763869007.000,riscv64-linux,uid 1000,1.250
        ");
        let trace = Trace::read(text.as_bytes()).unwrap();
        assert_eq!(trace.builds().len(), 3);
    }

    #[test]
    fn a_full_disk_loses_lines_and_nothing_else() {
        record(Path::new("/dev/full"), &[0, 1, 2]);
    }

    #[test]
    fn a_file_that_is_no_trace_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("notes.txt");
        assert!(may_be_ours(&file).unwrap());
        std::fs::write(&file, "").unwrap();
        assert!(may_be_ours(&file).unwrap());
        std::fs::write(&file, "time,system,client,seconds\r\n").unwrap();
        assert!(may_be_ours(&file).unwrap());
        std::fs::write(&file, "buy milk\n").unwrap();
        assert!(!may_be_ours(&file).unwrap());
        let error = start(&file).unwrap_err().to_string();
        assert!(error.ends_with("notes.txt` is no trace, and nothing is written to it"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "buy milk\n");
    }
}
