//! What callers hold of the manager: requests with replies, and its status.

use tokio::sync::{mpsc, oneshot, watch};

use super::events::{EventSource, EventStream};
use super::memory;
use super::shell::{AfterShell, NoShell, OpenShell, ShellOrder};
use super::status::Status;
use super::ticket::{ManagerGone, SessionDesk};
use crate::nix::System;
use crate::pool::Down;
use crate::pool::claim::Seat;
use crate::vm::ShellProgram;

/// What came of taking systems down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Downed {
    /// They are down.
    Down,
    /// Somebody wanted one of them up again before it was down.
    BroughtUp,
}

/// A VM that was named is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no VM `{name}`: {}", list(there))]
pub struct NoSuchVm {
    /// The name.
    pub name: String,
    /// Those that there are.
    pub there: Vec<String>,
}

fn list(there: &[String]) -> String {
    if there.is_empty() {
        "none is there".to_owned()
    } else {
        format!("there is {}", there.join(", "))
    }
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
    /// No further session will come by a seat.
    SeatGone { system: System, seat: Seat },
    /// Take the VM of this name out of service.
    Drain {
        vm: String,
        reply: oneshot::Sender<Result<(), NoSuchVm>>,
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
    events: EventSource,
}

impl ManagerHandle {
    pub(super) fn new(
        desk: SessionDesk,
        commands: mpsc::Sender<Command>,
        changes: watch::Receiver<Status>,
        events: EventSource,
    ) -> Self {
        Self {
            desk,
            commands,
            changes,
            events,
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

    /// Has a VM take no further sessions, and end with those that it has.
    pub async fn drain(&self, vm: &str) -> Result<Result<(), NoSuchVm>, ManagerGone> {
        let vm = vm.to_owned();
        self.ask(|reply| Command::Drain { vm, reply }).await
    }

    /// Tells that no further session of a key will come by a seat ([`SessionRequest::seat`]), because the process that had
    /// something built has ended: a VM that is kept for what it would fetch is kept no longer.
    ///
    /// [`SessionRequest::seat`]: super::ticket::SessionRequest::seat
    pub async fn seat_gone(
        &self,
        system: System,
        key: String,
        seat: String,
    ) -> Result<(), ManagerGone> {
        let (client, slot) = (key, seat);
        let seat = Seat { client, slot };
        let command = Command::SeatGone { system, seat };
        self.commands.send(command).await.map_err(|_| ManagerGone)
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

    /// The same, with what each VM takes of memory.
    pub async fn measured_status(&self) -> Result<Status, ManagerGone> {
        let mut status = self.status().await?;
        // Off the manager's task, and off this one: the kernel walks each VM's memory for it.
        let measured = tokio::task::spawn_blocking(move || {
            memory::measure(&mut status);
            status
        });
        // It ends early only with the whole process.
        measured.await.map_err(|_| ManagerGone)
    }

    /// The status at its last change, and at each further one.
    pub fn changes(&self) -> watch::Receiver<Status> {
        self.changes.clone()
    }

    /// What happens from now on.
    pub fn events(&self) -> Result<EventStream, ManagerGone> {
        self.events.subscribe().ok_or(ManagerGone)
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
