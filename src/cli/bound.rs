//! `xpool bound`: a command in this process's place that ends with the process that asked for it. Hidden: `xpool run` puts it
//! before its command, which would otherwise go on without builders where `xpool run` is killed.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result};
use clap::Args;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::Context;

/// What a shell says of a program that is not there, and of one that cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_RUNNABLE: u8 = 126;

/// And of one that SIGTERM has ended.
const TERMINATED: u8 = 143;

#[derive(Debug, Args)]
pub(super) struct BoundArgs {
    /// The process that asks: this one's parent, if it still lives
    #[arg(value_name = "PID")]
    to: i32,
    program: OsString,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

impl BoundArgs {
    /// The arguments that bind a command to this process.
    pub(super) fn to_this(command: &[OsString]) -> Vec<OsString> {
        let pid = std::process::id().to_string();
        let mut args: Vec<OsString> = vec!["bound".into(), pid.into(), "--".into()];
        args.extend(command.iter().cloned());
        args
    }
}

/// Becomes the command; comes back only where that is not possible.
pub(super) fn run(context: &Context, args: &BoundArgs) -> Result<u8> {
    // The kernel keeps it over exec, for this process and no child of it (prctl(2), PR_SET_PDEATHSIG).
    set_parent_process_death_signal(Some(Signal::TERM))
        .context("having the command end with xpool")?;
    if getppid().map(Pid::as_raw_pid) != Some(args.to) {
        // It died before the kernel was told.
        return Ok(TERMINATED);
    }
    let error = std::process::Command::new(&args.program)
        .args(&args.rest)
        .exec();
    let name = args.program.to_string_lossy();
    context
        .printer
        .error(&format!("running `{name}`: {error}"), &[]);
    let is_missing = error.kind() == ErrorKind::NotFound;
    Ok(if is_missing { NOT_FOUND } else { NOT_RUNNABLE })
}
