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

    /// Writes all of a chunk or nothing, after this head where the log has none yet.
    pub fn write_whole(&mut self, head: &[u8], chunk: &[u8]) -> io::Result<()> {
        self.make_room(chunk.len())?;
        let before = self.written;
        let head = if before == 0 { head } else { &[] };
        self.write_all(&[head, chunk].concat()).inspect_err(|_| {
            // A full disk may have taken a part.
            if self.file.set_len(before).is_ok() {
                self.written = before;
            }
        })
    }

    fn make_room(&mut self, length: usize) -> io::Result<()> {
        if self.written > 0 && self.written + length as u64 > self.limit {
            let mut old = self.path.as_os_str().to_owned();
            old.push(".old");
            std::fs::rename(&self.path, old)?;
            self.file = File::options().create(true).append(true).open(&self.path)?;
            self.written = 0;
        }
        Ok(())
    }
}

impl Write for BoundedLog {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        self.make_room(chunk.len())?;
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

    #[test]
    fn each_file_of_a_log_has_its_head() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = BoundedLog::append(&path, 20).unwrap();
        for _ in 0..5 {
            log.write_whole(b"head\n", b"12345\n").unwrap();
        }
        let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(text("log.old"), "head\n12345\n12345\n");
        assert_eq!(text("log"), "head\n12345\n");
    }
}
