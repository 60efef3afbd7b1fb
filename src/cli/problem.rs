//! What a failed command says and which code it ends with.

use super::connect::NoManager;
use super::trusted::NotTrusted;
use crate::activation::ActivationError;
use crate::config::ConfigError;
use crate::control::client::ControlError;
use crate::guarded::{Changeable, Writer};
use crate::image::script::CannotBuild;
use crate::image::store::ImageError;
use crate::install::{DamagedBlock, MadeElsewhere, NotIncluded};
use crate::nix::machines::UnfitPath;
use crate::serve::{CannotListen, OwnKey};
use crate::shell::client::{BROKEN, ShellError};
use crate::simulate::trace::{self, TraceError};
use crate::state::{SocketOfOther, StateInUse};
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
            if cause.is::<NoManager>() {
                problem.exit_code = UNAVAILABLE;
            }
            if let Some(error) = cause.downcast_ref::<CannotBuild>() {
                problem.exit_code = UNAVAILABLE;
                problem.hints.extend(error.hints.iter().cloned());
            }
            if let Some(hint) = install_hint(cause) {
                problem.hints.push(hint);
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
            if cause.is::<NotTrusted>() {
                let hint = "add your user to `trusted-users` in /etc/nix/nix.conf (`nix.settings.trusted-users` on NixOS) and restart nix-daemon; or `xpool up`, and `sudo xpool machines --install` with your `--state-dir`";
                problem.hints.push(hint.to_owned());
            }
            if cause.is::<OwnKey>() {
                problem.exit_code = USAGE;
                let hint = "it is for clients on this machine: whoever comes from elsewhere needs a key of their own";
                problem.hints.push(hint.to_owned());
            }
            if let Some(error) = cause.downcast_ref::<TraceError>() {
                problem.exit_code = USAGE;
                problem.hints.extend(trace_hint(error));
            }
            if cause.is::<StateInUse>() {
                let hint = "`xpool status` shows it, `xpool down` ends it; `--state-dir`, and `--config` with another port, run one beside it";
                problem.hints.push(hint.to_owned());
            }
            if let Some(error) = cause.downcast_ref::<CannotListen>() {
                problem.hints.push(format!(
                    "set `listen` in section `[{}]` of xpool.toml to a free port",
                    error.section
                ));
            }
            if cause.is::<SocketOfOther>() {
                let hint = "systemd perhaps: `systemctl start xpool` has it start the manager, `systemctl stop xpool.socket` lets you start one";
                problem.hints.push(hint.to_owned());
            }
            if cause.is::<ActivationError>() {
                let hint = "see `ListenStream` in the unit of the socket, and `--state-dir` in that of the service";
                problem.hints.push(hint.to_owned());
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
                    "see `xpool logs`, or `systemctl status xpool` where systemd starts it; if it hangs for good, kill it and start it again".to_owned(),
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

/// What a trace should have looked like.
fn trace_hint(error: &TraceError) -> Option<String> {
    let is_of_form = !matches!(error, TraceError::Unreadable(_) | TraceError::Large);
    is_of_form.then(|| {
        format!(
            "a trace begins with the line `{}`; then each build has one such as `{}`",
            trace::HEAD,
            trace::EXAMPLE
        )
    })
}

/// What to do where Nix's or ssh's configuration cannot be changed, or cannot name what it should.
fn install_hint(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(MadeElsewhere { lines, .. }) = cause.downcast_ref() {
        let lines: Vec<&str> = lines
            .iter()
            .map(String::as_str)
            .filter(|line| !line.starts_with('#'))
            .collect();
        return Some(match lines[..] {
            [] => "take xpool's lines away where it is made".to_owned(),
            _ => format!(
                "add this where it is made: `{}`; for NixOS, `xpool machines --format nixos` prints a module",
                lines.join("`, `")
            ),
        });
    }
    if let Some(NotIncluded { by, file }) = cause.downcast_ref() {
        let folder = file.parent().unwrap_or(file).display();
        return Some(format!(
            "put `Include {folder}/*.conf` at the top of `{}`; or take a Nix from 2.31 on, which needs no ssh configuration",
            by.display()
        ));
    }
    if let Some(Changeable { part, by, .. }) = cause.downcast_ref() {
        let part = part.display();
        return Some(match by {
            Writer::Everybody => {
                "take another place: who can write there could have Nix run anything".to_owned()
            }
            Writer::User(_) | Writer::Group(_) => format!(
                "have nobody but you and root write `{part}` (`chown`, `chmod go-w`), or take another place: who can write there could have Nix run anything"
            ),
        });
    }
    if cause.is::<DamagedBlock>() {
        return Some("take these lines, and what is between them, away by hand".to_owned());
    }
    match cause.downcast_ref()? {
        UnfitPath::Character { .. } => {
            Some("use letters, digits and any of `/._-+,:=@`, or `--transport ssh`".to_owned())
        }
        UnfitPath::Long { .. } => {
            Some("name a shorter path with `--state-dir`, or use `--transport ssh`".to_owned())
        }
    }
}
