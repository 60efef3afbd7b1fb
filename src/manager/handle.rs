//! What callers hold of the manager: requests with replies, and its status.

use tokio::sync::{mpsc, oneshot, watch};

use super::shell::{AfterShell, NoShell, OpenShell, ShellOrder};
use super::status::Status;
use super::ticket::{ManagerGone, SessionDesk};
use crate::nix::System;
use crate::pool::Down;
use crate::vm::ShellProgram;

/// What came of taking systems down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Downed {
    /// They are down.
    Down,
    /// Somebody wanted one of them up again before it was down.
    BroughtUp,
}

/// A request to the manager.
#[derive(Debug)]
pub(super) enum Command {
    /// Have this many VMs of a system until it is taken down.
    Up {
        system: System,
        count: u32,
        reply: oneshot::Sender<()>,
    },
    /// Take systems down; the reply comes when they are.
    Down {
        systems: Vec<System>,
        how: Down,
        reply: oneshot::Sender<Downed>,
    },
    /// Open a shell in the VM of this name.
    Shell { vm: String, order: ShellOrder },
    /// The status of this moment.
    Status { reply: oneshot::Sender<Status> },
}

/// A handle to the manager; clones are the same handle.
#[derive(Clone, Debug)]
pub struct ManagerHandle {
    desk: SessionDesk,
    commands: mpsc::Sender<Command>,
    changes: watch::Receiver<Status>,
}

impl ManagerHandle {
    pub(super) fn new(
        desk: SessionDesk,
        commands: mpsc::Sender<Command>,
        changes: watch::Receiver<Status>,
    ) -> Self {
        Self {
            desk,
            commands,
            changes,
        }
    }

    /// Where sessions are opened.
    pub fn desk(&self) -> &SessionDesk {
        &self.desk
    }

    /// Asks for `count` VMs of a system. They come by and by; see [`ManagerHandle::changes`].
    pub async fn up(&self, system: System, count: u32) -> Result<(), ManagerGone> {
        self.ask(|reply| Command::Up {
            system,
            count,
            reply,
        })
        .await
    }

    /// Takes systems down and returns when their last VM is gone, or when somebody wants one of them up again.
    pub async fn down(&self, systems: Vec<System>, how: Down) -> Result<Downed, ManagerGone> {
        self.ask(|reply| Command::Down {
            systems,
            how,
            reply,
        })
        .await
    }

    /// Runs a program in the VM of this name for a person; an error says why not.
    pub async fn open_shell(
        &self,
        vm: &str,
        program: ShellProgram,
        after: AfterShell,
    ) -> Result<OpenShell, NoShell> {
        let vm = vm.to_owned();
        self.ask(|reply| {
            let order = ShellOrder {
                program,
                after,
                reply,
            };
            Command::Shell { vm, order }
        })
        .await
        .unwrap_or_else(|gone| Err(NoShell(gone.to_string())))
    }

    /// The status of this moment.
    pub async fn status(&self) -> Result<Status, ManagerGone> {
        self.ask(|reply| Command::Status { reply }).await
    }

    /// The status at its last change, and at each further one.
    pub fn changes(&self) -> watch::Receiver<Status> {
        self.changes.clone()
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, ManagerGone> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| ManagerGone)?;
        answer.await.map_err(|_| ManagerGone)
    }
}
