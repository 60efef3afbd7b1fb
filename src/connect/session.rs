//! The manager's end of a helper's session: what it passes on both ways, until the session is over.

use std::io;
use std::os::fd::AsFd as _;

use tokio::io::AsyncReadExt as _;

use super::wire::{Reader, ToHelper, ToManager, Writer};
use crate::activation::Handover;
use crate::manager::ticket::{
    Grant, InputsOnTheirWay, SessionReport, SessionTicket, SessionUpdate,
};
use crate::vm::{DetachedPort, Hop};

/// How a session ended.
pub(super) enum Ended {
    /// It has, with a VM or before it had one.
    Over { had_vm: bool },
    /// This manager has no VM for it any more, and the next one will.
    Left(Writer),
}

/// A helper's session, as the manager's end keeps it.
pub(super) struct Session {
    ticket: SessionTicket,
    writer: Writer,
    /// Once it has a VM. Ends when the guest has closed the port.
    hop: Option<Hop>,
    /// What is on its way to the guest, until it is there.
    inputs: Option<InputsOnTheirWay>,
    /// Whether it was given a VM.
    had_vm: bool,
}

impl Session {
    pub(super) fn new(ticket: SessionTicket, writer: Writer) -> Self {
        Self {
            ticket,
            writer,
            hop: None,
            inputs: None,
            had_vm: false,
        }
    }

    /// Passes on news both ways until the session is over. Dropping it then gives the VM back. With a handover, it is left to the
    /// next manager if this one has no VM for it any more.
    pub(super) async fn run(
        mut self,
        reader: &mut Reader,
        left: Option<Handover>,
    ) -> io::Result<Ended> {
        let is_left = || left.as_ref().is_some_and(Handover::has_begun);
        loop {
            tokio::select! {
                update = self.ticket.next() => match update {
                    Some(SessionUpdate::Rejected(_)) if is_left() => return Ok(Ended::Left(self.writer)),
                    Some(update) => self.update(update).await?,
                    // A helper that has a VM goes on without a manager; one that waits looks for another manager.
                    None => return Ok(self.over()),
                },
                message = reader.next() => match message? {
                    Some(ToManager::Report(report)) => self.report(report).await,
                    Some(ToManager::Ended { unfetched }) => {
                        self.ticket.set_unfetched(unfetched);
                        return Ok(self.over());
                    }
                    Some(ToManager::Open { .. }) => return Err(io::Error::other("a second session over one connection")),
                    None => return Ok(self.over()),
                },
                () = closed(&mut self.hop) => {
                    // It has done its duty, and its end is told once.
                    self.hop = None;
                    self.writer.send(&ToHelper::GuestClosed).await?;
                }
                () = arrived(&mut self.inputs) => self.writer.send(&ToHelper::InputsArrived).await?,
            }
        }
    }

    fn over(&self) -> Ended {
        let had_vm = self.had_vm;
        Ended::Over { had_vm }
    }

    /// Passes a report on, as much of it as is kept. None is lost: the helper waits.
    async fn report(&self, report: SessionReport) {
        let report = report.cut();
        // A helper that is killed, as Nix does with what it started, says no more than this.
        let leaves_outputs = match &report {
            SessionReport::BuildEnded(ended) => ended.failure.is_none(),
            SessionReport::NotUnderstood => true,
            _ => false,
        };
        if leaves_outputs {
            self.ticket.set_unfetched(true);
        }
        let reports = self.ticket.reports();
        let mut waiting = Some(report);
        while let Some(Err(report)) = waiting.take().map(|report| reports.send(report)) {
            reports.room().await;
            waiting = Some(report);
        }
    }

    async fn update(&mut self, update: SessionUpdate) -> io::Result<()> {
        let message = match update {
            SessionUpdate::Granted(grant) => return self.granted(grant).await,
            SessionUpdate::Waiting(text) | SessionUpdate::Note(text) => ToHelper::Waiting(text),
            SessionUpdate::Rejected(text) => ToHelper::Rejected(text),
            SessionUpdate::VmGone { vm, cause, log } => ToHelper::VmGone { vm, cause, log },
        };
        self.writer.send(&message).await
    }

    async fn granted(&mut self, grant: Grant) -> io::Result<()> {
        let Grant {
            vm,
            mut hop,
            fetch_only,
            inputs,
            limits,
        } = grant;
        let detached = match hop.detach().await {
            Ok(detached) => detached,
            Err(error) => {
                let why = format!("cannot use {vm}: {error:#}");
                return self.writer.send(&ToHelper::Rejected(why)).await;
            }
        };
        let message = ToHelper::Granted {
            vm,
            greeted: std::mem::take(&mut hop.greeted),
            fetch_only,
            limits,
        };
        self.inputs = Some(inputs);
        self.had_vm = true;
        let Some(DetachedPort { stream, hold }) = detached else {
            let descriptors = [hop.stream.as_fd()];
            return self.writer.send_with(&message, &descriptors).await;
        };
        self.hop = Some(hop);
        let descriptors = [stream.as_fd(), hold.as_fd()];
        self.writer.send_with(&message, &descriptors).await
    }
}

/// Resolves when a guest has closed its port. Cancel safe.
async fn closed(hop: &mut Option<Hop>) {
    match hop {
        // Nothing comes over the hop itself any more but its end.
        Some(hop) => drop(hop.stream.read(&mut [0]).await),
        None => std::future::pending().await,
    }
}

/// Resolves once when inputs have arrived. Cancel safe.
async fn arrived(inputs: &mut Option<InputsOnTheirWay>) {
    match inputs {
        Some(on_their_way) => on_their_way.arrived().await,
        None => std::future::pending().await,
    }
    *inputs = None;
}
