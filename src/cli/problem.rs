//! What a failed command says and which code it ends with.

use crate::config::ConfigError;
use crate::control::client::ControlError;
use crate::image::build::CannotBuild;
use crate::image::store::ImageError;
use crate::serve::{CannotListen, OwnKey};
use crate::shell::client::{BROKEN, ShellError};
use crate::state::StateInUse;
use crate::vm::host::HostError;

/// The request failed.
const FAILED: u8 = 1;
/// It was not understood.
const USAGE: u8 = 2;
/// Something that it needs is not there (`EX_UNAVAILABLE` of sysexits.h).
const UNAVAILABLE: u8 = 69;

/// An error as a person sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What went wrong, with all its causes.
    pub text: String,
    /// What to do about it.
    pub hints: Vec<String>,
    /// The process's exit code.
    pub exit_code: u8,
}

impl Problem {
    /// Looks at which error it is.
    pub fn of(error: &anyhow::Error) -> Self {
        let mut problem = Self {
            text: format!("{error:#}"),
            hints: Vec::new(),
            exit_code: FAILED,
        };
        for cause in error.chain() {
            if let Some(error) = cause.downcast_ref::<ConfigError>() {
                problem.exit_code = USAGE;
                problem.hints.extend(error.hint().map(str::to_owned));
            }
            if let Some(error) = cause.downcast_ref::<ImageError>() {
                problem.hints.extend(error.hint());
                if matches!(error, ImageError::Missing(_)) {
                    problem.exit_code = UNAVAILABLE;
                }
            }
            if let Some(error) = cause.downcast_ref::<ControlError>() {
                problem.control(error);
            }
            if let Some(error) = cause.downcast_ref::<CannotBuild>() {
                problem.exit_code = UNAVAILABLE;
                problem.hints.extend(error.hints.iter().cloned());
            }
            if cause
                .downcast_ref::<ShellError>()
                .is_some_and(ShellError::has_begun)
            {
                problem.exit_code = BROKEN;
            }
            if cause.is::<HostError>() {
                problem.exit_code = UNAVAILABLE;
            }
            if cause.is::<OwnKey>() {
                problem.exit_code = USAGE;
                let hint = "it is for clients on this machine: whoever comes from elsewhere needs a key of their own";
                problem.hints.push(hint.to_owned());
            }
            if cause.is::<StateInUse>() {
                let hint = "`xpool status` shows it, `xpool down` ends it; `--state-dir`, and `--config` with another port, run one beside it";
                problem.hints.push(hint.to_owned());
            }
            if cause.is::<CannotListen>() {
                problem.hints.push(
                    "set `listen` in section `[gateway]` of xpool.toml to a free port".to_owned(),
                );
            }
        }
        problem
    }

    fn control(&mut self, error: &ControlError) {
        match error {
            ControlError::NotRunning { .. } => {
                self.exit_code = UNAVAILABLE;
                self.hints.push("`xpool up riscv64` starts one".to_owned());
            }
            ControlError::Silent { .. } => {
                self.hints.push(
                    "see `xpool logs`; if it hangs for good, kill it and start it again".to_owned(),
                );
            }
            ControlError::Version(_) => {
                self.hints.push(
                    "`xpool down` with the version that runs, then start it again".to_owned(),
                );
            }
            ControlError::Lost(_) => self
                .hints
                .push("`xpool logs` shows what it said".to_owned()),
            ControlError::Socket { .. } | ControlError::Refused(_) => {}
        }
    }
}
