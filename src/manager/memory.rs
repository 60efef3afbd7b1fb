//! The machine: what it has left, what it is short of, and what each VM takes of it. Read from /proc.

use std::fs;
use std::path::PathBuf;

use tracing::warn;

use super::status::Status;
use crate::cgroup;
use crate::pool::budget::MachineBudget;
use crate::pool::hold::Pressure;

/// The host's available memory.
#[derive(Debug)]
pub(super) struct HostMemory {
    meminfo: PathBuf,
    groups: PathBuf,
    has_warned: bool,
}

impl HostMemory {
    /// As this file says, `/proc/meminfo` or a test's, and the control groups below this folder, `/` or a test's.
    pub(super) fn new(meminfo: PathBuf, groups: PathBuf) -> Self {
        Self {
            meminfo,
            groups,
            has_warned: false,
        }
    }

    /// What can be used without swapping and beyond no limit of a control group, in MiB; `None`, and one warning, where it is not
    /// known.
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
        let groups = cgroup::limits(&self.groups).into_iter();
        let left = groups.map(|group| group.left() >> 20);
        available.into_iter().chain(left).min()
    }
}

/// The kernel's pressure stall information.
#[derive(Debug)]
pub(super) struct HostPressure {
    /// The folder that has it: `/proc/pressure`, or a test's.
    pub(super) folder: PathBuf,
}

impl HostPressure {
    /// What the machine is short of; `None` too where the kernel does not tell.
    pub(super) fn pressure(&self, budget: &MachineBudget) -> Option<Pressure> {
        let is_beyond = |file: &str, most: Option<u32>| {
            let text = most.and_then(|_| fs::read_to_string(self.folder.join(file)).ok());
            let stalled = text.as_deref().and_then(some_avg10);
            stalled
                .zip(most)
                .is_some_and(|(stalled, most)| stalled >= f64::from(most))
        };
        if is_beyond("memory", budget.memory_pressure) {
            Some(Pressure::Memory)
        } else {
            is_beyond("cpu", budget.cpu_pressure).then_some(Pressure::Cpu)
        }
    }
}

/// The percentage in a line such as `some avg10=1.53 avg60=0.87 avg300=0.73 total=1`.
fn some_avg10(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let mut fields = some.split_whitespace();
    fields
        .find_map(|field| field.strip_prefix("avg10="))?
        .parse()
        .ok()
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
    fn pressure_is_what_the_kernel_says_of_the_last_ten_seconds() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_owned();
        let host = HostPressure { folder };
        let budget = MachineBudget {
            memory_pressure: Some(20),
            cpu_pressure: Some(90),
            ..MachineBudget::default()
        };
        let says = |file: &str, percent: &str| {
            let text =
                format!("some avg10={percent} avg60=99.00 avg300=0.00 total=1\nfull avg10=99.00\n");
            fs::write(dir.path().join(file), text).unwrap();
        };
        assert_eq!(host.pressure(&budget), None, "the kernel does not tell");
        says("memory", "19.99");
        says("cpu", "90.00");
        assert_eq!(host.pressure(&budget), Some(Pressure::Cpu));
        says("memory", "20.00");
        assert_eq!(host.pressure(&budget), Some(Pressure::Memory));
        assert_eq!(host.pressure(&MachineBudget::default()), None);
    }

    #[test]
    fn what_a_control_group_has_left_is_a_limit_too() {
        let groups = crate::cgroup::tests::root(&[
            ("meminfo", "MemAvailable: 9000000 kB\n"),
            ("proc/self/cgroup", "0::/job\n"),
            ("sys/fs/cgroup/job/memory.max", "1572864000\n"),
            ("sys/fs/cgroup/job/memory.current", "524288000\n"),
        ]);
        let dir = groups.path();
        let mut memory = HostMemory::new(dir.join("meminfo"), dir.to_owned());
        assert_eq!(memory.available_mib(), Some(1000));
    }

    #[test]
    fn memory_that_is_not_known_is_no_limit() {
        let mut memory = HostMemory::new("/nonexistent".into(), "/nonexistent".into());
        assert_eq!(memory.available_mib(), None);
        assert!(memory.has_warned);
        let mut memory = HostMemory::new("/proc/meminfo".into(), "/".into());
        assert!(memory.available_mib().is_some());
    }
}
