//! What a session tells of what is done in it, as far as its front end understands it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::nix::observe::{MAX_LINE, MAX_LINES};
use crate::nix::store_path::StorePath;

/// The most of a text that is kept, in characters: a derivation's name, why a build failed.
const MAX_TEXT: usize = 2000;

/// The most outputs of one build that are kept.
const MAX_OUTPUTS: usize = 1024;

/// A piece of news from a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionReport {
    /// It does this now, in words: `copying inputs`.
    Activity(String),
    /// A build began.
    BuildBegan(BuildBegan),
    /// A build goes on.
    Progress(BuildProgress),
    /// A build ended.
    BuildEnded(BuildEnded),
    /// The client has received an output in full.
    Fetched(StorePath),
    /// What is done in it is not understood any more, and nothing further will be told.
    NotUnderstood,
}

/// What is built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BuildBegan {
    /// The derivation, as the client names it: `/nix/store/…-hello-2.12.drv`.
    pub derivation: String,
    /// The paths of its outputs, of those that are known before the build.
    pub outputs: Vec<StorePath>,
}

/// How far a build has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BuildProgress {
    /// The phase that it last said it was in: `buildPhase`.
    pub phase: Option<String>,
    /// Its last log lines, oldest first; few, and each cut to a length that a terminal shows. As the build wrote them.
    pub last_lines: Vec<String>,
    /// Log lines that it has written so far, those included that are not among the last.
    pub n_lines: u64,
    /// Bytes from the client to the VM in the session so far.
    pub bytes_in: u64,
    /// Bytes from the VM to the client in the session so far.
    pub bytes_out: u64,
}

/// How a build ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BuildEnded {
    /// Why it failed; `None` where it did not.
    pub failure: Option<String>,
    /// Processor time in user mode and in the kernel, where the guest's Nix tells (protocol 1.37).
    pub cpu: Option<(Duration, Duration)>,
}

impl SessionReport {
    /// As much of it as is kept: who reports may be somebody else's program.
    #[must_use]
    pub fn cut(mut self) -> Self {
        match &mut self {
            Self::Activity(activity) => cut(activity, MAX_LINE),
            Self::BuildBegan(began) => {
                cut(&mut began.derivation, MAX_TEXT);
                began.outputs.truncate(MAX_OUTPUTS);
            }
            Self::Progress(progress) => {
                progress.last_lines.truncate(MAX_LINES);
                let texts = progress.last_lines.iter_mut().chain(&mut progress.phase);
                texts.for_each(|text| cut(text, MAX_LINE));
            }
            Self::BuildEnded(ended) => {
                ended.failure.iter_mut().for_each(|why| cut(why, MAX_TEXT));
            }
            Self::Fetched(_) | Self::NotUnderstood => {}
        }
        self
    }
}

/// Cuts a text to so many characters.
fn cut(text: &mut String, most: usize) {
    if let Some((end, _)) = text.char_indices().nth(most) {
        text.truncate(end);
        text.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_cut() {
        let long = || "ä".repeat(3000);
        let path = b"/nix/store/00000000000000000000000000000000-x";
        let began = SessionReport::BuildBegan(BuildBegan {
            derivation: long(),
            outputs: vec![StorePath::parse(path).unwrap(); 2000],
        });
        let progress = SessionReport::Progress(BuildProgress {
            phase: Some(long()),
            last_lines: vec![long(); 100],
            ..BuildProgress::default()
        });
        let ended = SessionReport::BuildEnded(BuildEnded {
            failure: Some(long()),
            cpu: None,
        });
        let size = |report: SessionReport| serde_json::to_string(&report.cut()).unwrap().len();
        assert!(size(SessionReport::Activity(long())) < 1000);
        assert!(size(began) < 60_000);
        assert!(size(progress) < 20_000);
        assert!(size(ended) < 5000);
        let short = SessionReport::Activity("copying inputs".to_owned());
        assert_eq!(short.clone().cut(), short);
    }
}
