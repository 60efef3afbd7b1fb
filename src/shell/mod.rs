//! Shells for people: `xpool ssh` at one end, a program in a guest at the other.
//!
//! The manager has the program started and hands out its streams as descriptors, over a socket that is for its owner alone. No
//! network is used, and nothing in the guest listens.

pub mod client;
pub mod server;
pub mod terminal;

use serde::{Deserialize, Serialize};

use crate::manager::shell::ShellEnd;
use crate::nix::System;
use crate::vm::ShellProgram;

/// Where a person wants to look around.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In a VM of this system that nobody else uses, and that ends with the shell.
    System(System),
    /// In the VM of this name, whatever it does.
    Vm(String),
}

/// What a person asks for: the only message to the manager. The end of the connection is the end of the shell.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Request {
    place: Place,
    program: ShellProgram,
}

/// What the manager says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    /// There is no VM yet; the text says what is going on.
    Waiting(String),
    /// The program runs in this VM. Comes with its streams.
    Opened(String),
    /// There will be no shell, for this reason.
    Refused(String),
    /// How it ended: the last message.
    Ended(ShellEnd),
}
