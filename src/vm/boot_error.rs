//! Why a VM did not come up, with all that is known about it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::ready::{Requirement, Unmet};

/// How many lines of the console an error carries.
pub(super) const CONSOLE_LINES: usize = 20;

/// What went wrong.
#[derive(Debug)]
pub(super) enum BootFailure {
    /// The one who asked for the VM does not want it any more.
    Aborted,
    /// QEMU ended; the text says how.
    Died(String),
    /// It took too long.
    TimedOut(Unmet, Duration),
    /// A requirement cannot be met.
    Failed(Requirement, anyhow::Error),
}

/// A VM that did not come up. QEMU is gone, and so is its folder; the console log is there.
#[derive(Debug)]
pub(super) struct BootError {
    pub(super) vm: String,
    pub(super) failure: BootFailure,
    pub(super) stderr: Vec<String>,
    pub(super) console: Vec<String>,
    pub(super) console_log: PathBuf,
}

impl std::error::Error for BootError {}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vm = &self.vm;
        let hint = match &self.failure {
            BootFailure::Aborted => return write!(f, "the start of `{vm}` was aborted"),
            BootFailure::Died(cause) => {
                write!(f, "`{vm}` ended while it started: {cause}")?;
                None
            }
            BootFailure::TimedOut(unmet, limit) => {
                let limit = humantime::format_duration(*limit);
                let stage = unmet.requirement.stage();
                write!(f, "`{vm}` did not come up within {limit}: still {stage}")?;
                if let Some(failure) = &unmet.last_failure {
                    write!(f, "; the last attempt: {failure}")?;
                }
                Some(unmet.requirement.hint())
            }
            BootFailure::Failed(requirement, error) => {
                let stage = requirement.stage();
                write!(f, "`{vm}` did not come up: {stage} failed: {error:#}")?;
                Some(requirement.hint())
            }
        };
        lines(f, "QEMU said:", &self.stderr)?;
        lines(f, "the console's last lines:", &self.console)?;
        write!(f, "\nall of the console: {}", self.console_log.display())?;
        hint.map_or(Ok(()), |hint| write!(f, "\nhint: {hint}"))
    }
}

fn lines(f: &mut fmt::Formatter<'_>, heading: &str, lines: &[String]) -> fmt::Result {
    if !lines.is_empty() {
        write!(f, "\n{heading}")?;
    }
    lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(failure: BootFailure) -> String {
        let error = BootError {
            vm: "riscv64-1".to_owned(),
            failure,
            stderr: vec!["qemu: disk image is locked".to_owned()],
            console: vec!["OpenSBI v1.5".to_owned(), "Kernel panic".to_owned()],
            console_log: "/log/riscv64-1.log".into(),
        };
        error.to_string()
    }

    #[test]
    fn a_boot_error_says_what_where_and_what_next() {
        let limit = Duration::from_secs(120);
        insta::assert_snapshot!(error(BootFailure::TimedOut(Unmet::new(Requirement::AgentAnswers), limit)), @r"
        `riscv64-1` did not come up within 2m: still waiting for the guest agent
        QEMU said:
          qemu: disk image is locked
        the console's last lines:
          OpenSBI v1.5
          Kernel panic
        all of the console: /log/riscv64-1.log
        hint: the console shows how far the guest got; a slow machine needs a longer boot timeout
        ");
    }

    #[test]
    fn a_daemon_that_does_not_come_is_told_with_its_last_words() {
        let unmet = Unmet {
            last_failure: Some("no answer: it answered 0x7".to_owned()),
            ..Unmet::new(Requirement::DaemonAnswers)
        };
        let error = error(BootFailure::TimedOut(unmet, Duration::from_secs(120)));
        let expected = "within 2m: still waiting for the nix-daemon; the last attempt: no answer: it answered 0x7\n";
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn an_abort_is_told_in_one_line() {
        insta::assert_snapshot!(error(BootFailure::Aborted), @"the start of `riscv64-1` was aborted");
    }
}
