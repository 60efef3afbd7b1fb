//! How a build ended, as the guest's Nix says.

use std::time::Duration;

use super::log::cut;
use crate::nix::walk::{MAX_WANTED, Walk};

/// How a build ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildResult {
    /// Why it failed; `None` where it did not.
    pub failure: Option<String>,
    /// When it began and ended, in seconds since the epoch by the guest's clock, where the guest's Nix tells (protocol 1.29).
    pub times: Option<(u64, u64)>,
    /// Processor time in user mode and in the kernel, where the guest's Nix tells (protocol 1.37) and counts it.
    pub cpu: Option<(Duration, Duration)>,
}

impl BuildResult {
    /// Of a reply that was walked over.
    pub(super) fn of_reply(reply: &Walk) -> Self {
        let numbers = reply.wanted_numbers();
        let status = numbers.first().copied().flatten().unwrap_or(u64::MAX);
        let message = reply.wanted().first().map_or(&[][..], Vec::as_slice);
        let failure = (!is_success(status)).then(|| failure(status, message));
        let number = |index: usize| numbers.get(index).copied().flatten();
        let microseconds = |index: usize| number(index).map(Duration::from_micros);
        Self {
            failure,
            times: number(1).zip(number(2)).filter(|times| *times != (0, 0)),
            cpu: microseconds(3).zip(microseconds(4)),
        }
    }

    /// Of an error in the place of a reply.
    pub(super) fn of_error(error: &Walk) -> Self {
        let message = error.wanted().first().map_or(&[][..], Vec::as_slice);
        Self {
            failure: Some(failure(MISC_FAILURE, message)),
            times: None,
            cpu: None,
        }
    }
}

/// Whether a build's status says that its outputs are there: `Built`, `Substituted`, `AlreadyValid`,
/// `ResolvesToAlreadyValid` (`build-result.hh`).
pub(super) fn is_success(status: u64) -> bool {
    matches!(status, 0 | 1 | 2 | 13)
}

/// `MiscFailure` of `build-result.hh`.
const MISC_FAILURE: u64 = 9;

/// What Nix says, or what the status means where it says nothing (`build-result.hh`).
fn failure(status: u64, message: &[u8]) -> String {
    let said = cut(message.trim_ascii(), MAX_WANTED);
    if !said.is_empty() {
        return said;
    }
    let meaning = match status {
        3 => "the builder failed",
        4 => "the input was rejected",
        5 => "the output was rejected",
        6 => "it failed, and may work another time",
        7 => "it failed before",
        8 => "the guest's Nix ended it: it took too long",
        10 => "a dependency failed",
        11 => "the guest's Nix ended it: it logged too much",
        12 => "it is not deterministic",
        14 => "nothing to substitute it from",
        _ => "it failed",
    };
    meaning.to_owned()
}
