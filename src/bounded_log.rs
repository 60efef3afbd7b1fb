//! A log file that never grows beyond a limit.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A log file: at the limit it becomes `<name>.old`, and a new one begins. So at most twice the limit is kept.
#[derive(Debug)]
pub struct BoundedLog {
    path: PathBuf,
    file: File,
    /// In bytes.
    written: u64,
    limit: u64,
}

impl BoundedLog {
    /// Begins an empty log that holds `limit` bytes.
    pub fn create(path: &Path, limit: u64) -> io::Result<Self> {
        let file = File::create(path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            written: 0,
            limit,
        })
    }

    /// Goes on with a log that may be there.
    pub fn append(path: &Path, limit: u64) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let written = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            written,
            limit,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Write for BoundedLog {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        if self.written + chunk.len() as u64 > self.limit {
            let mut old = self.path.as_os_str().to_owned();
            old.push(".old");
            std::fs::rename(&self.path, old)?;
            self.file = File::create(&self.path)?;
            self.written = 0;
        }
        let written = self.file.write(chunk)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flooded_log_keeps_at_most_two_limits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = BoundedLog::create(&path, 100).unwrap();
        for _ in 0..1000 {
            log.write_all(b"0123456789").unwrap();
        }
        let size = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
        assert_eq!([size("console.log"), size("console.log.old")], [100, 100]);
    }
}
