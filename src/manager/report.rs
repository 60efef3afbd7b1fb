//! What a session tells of what is done in it, as far as its front end understands it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::nix::store_path::StorePath;

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
