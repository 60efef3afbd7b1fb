//! Memory: what the host has left, and what each VM takes of it. Read from /proc.

use std::fs;
use std::path::PathBuf;

use tracing::warn;

use super::status::Status;

/// The host's available memory.
#[derive(Debug)]
pub(super) struct HostMemory {
    meminfo: PathBuf,
    has_warned: bool,
}

impl HostMemory {
    /// As this file says: `/proc/meminfo`, or a test's.
    pub(super) fn new(meminfo: PathBuf) -> Self {
        Self {
            meminfo,
            has_warned: false,
        }
    }

    /// What can be used without swapping, in MiB; `None`, and one warning, where it is not known.
    pub(super) fn available_mib(&mut self) -> Option<u64> {
        let text = fs::read_to_string(&self.meminfo).unwrap_or_default();
        let available = kib(&text, "MemAvailable:").map(|kib| kib / 1024);
        if available.is_none() && !self.has_warned {
            self.has_warned = true;
            warn!(
                file = %self.meminfo.display(),
                "the host's available memory is not known and holds no VM back"
            );
        }
        available
    }
}

/// Adds to a status what each VM takes of the host's memory. Reads a file per VM, which may take some milliseconds.
pub fn measure(status: &mut Status) {
    for vm in status.systems.iter_mut().flat_map(|system| &mut system.vms) {
        vm.memory_mib = vm.pid.and_then(proportional_mib);
    }
}

/// A process's proportional set size in MiB: its own pages, and its part of those that it shares.
fn proportional_mib(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    kib(&text, "Pss:").map(|kib| kib / 1024)
}

/// The value of a line such as `Pss:   1234 kB`.
fn kib(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_proportional_size() {
        assert!(proportional_mib(std::process::id()).is_some());
        assert_eq!(proportional_mib(u32::MAX), None);
    }

    #[test]
    fn the_line_that_is_meant_is_read() {
        let text = "Rss:  90 kB\nPss:                2048 kB\nPss_Dirty:  7 kB\n";
        assert_eq!(kib(text, "Pss:"), Some(2048));
        assert_eq!(kib(text, "Swap:"), None);
    }

    #[test]
    fn memory_that_is_not_known_is_no_limit() {
        let mut memory = HostMemory::new("/nonexistent".into());
        assert_eq!(memory.available_mib(), None);
        assert!(memory.has_warned);
        let mut memory = HostMemory::new("/proc/meminfo".into());
        assert!(memory.available_mib().is_some());
    }
}
