//! The manager's end: who may have a shell, and the VM that it is in.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use super::{Answer, Place, Request};
use crate::accept;
use crate::connect::wire::{self, Reader, Writer};
use crate::manager::ManagerHandle;
use crate::manager::shell::{AfterShell, OpenShell, ShellEnd};
use crate::manager::ticket::{
    First, Grant, SessionReport, SessionRequest, SessionTicket, SessionUpdate, Share,
};
use crate::nix::System;
use crate::vm::ShellProgram;

/// How long those whose VM has ended with the manager may take to be told.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serves people until `stop` is cancelled, which is when every VM is gone.
pub async fn serve(listener: UnixListener, manager: ManagerHandle, stop: CancellationToken) {
    let shells = TaskTracker::new();
    let accept = async {
        loop {
            let (stream, _) =
                accept::next("the socket for shells", |cx| listener.poll_accept(cx)).await;
            shells.spawn(serve_one(stream, manager.clone()));
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = accept => {}
    }
    shells.close();
    // A person who does not read does not keep the manager alive.
    let _ = tokio::time::timeout(LAST_WORDS, shells.wait()).await;
}

async fn serve_one(stream: UnixStream, manager: ManagerHandle) {
    if let Err(error) = answer(stream, &manager).await {
        debug!(%error, "a shell's connection broke");
    }
}

/// Answers one person. Returning drops the streams, which ends what was started.
async fn answer(stream: UnixStream, manager: &ManagerHandle) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    let (mut reader, writer) = wire::split_without_descriptors(Arc::new(stream), None);
    if !accept::is_owner(peer) {
        info!(uid = peer, "refused a shell to somebody else");
        let why = "shells are for the owner of this manager".to_owned();
        return writer.send(&Answer::Refused(why)).await;
    }
    let Some(Request { place, program }) = reader.next().await? else {
        return Ok(());
    };
    let way = Way {
        manager,
        writer: &writer,
    };
    tokio::select! {
        done = way.go(place, program) => done,
        () = gone(&mut reader) => Ok(()),
    }
}

/// Resolves when the person has gone, who has nothing more to say.
async fn gone(reader: &mut Reader) {
    while let Ok(Some(serde_json::Value::Null)) = reader.next().await {}
}

/// From a person's wish to the end of the shell.
struct Way<'a> {
    manager: &'a ManagerHandle,
    writer: &'a Writer,
}

impl Way<'_> {
    async fn go(&self, place: Place, program: ShellProgram) -> io::Result<()> {
        match place {
            Place::Vm(vm) => self.open(&vm, program, AfterShell::VmStays).await,
            Place::System(system) => match self.fresh_vm(system).await? {
                // It is kept for as long as its session lasts.
                Some((_session, grant)) => self.open(&grant.vm, program, AfterShell::VmEnds).await,
                None => Ok(()),
            },
        }
    }

    /// Queues for a VM as a build does, by a seat that is nobody else's, so that no build comes to it.
    async fn fresh_vm(&self, system: System) -> io::Result<Option<(SessionTicket, Grant)>> {
        let request = SessionRequest {
            system,
            slot: "shell".to_owned(),
            seat: "shell".to_owned(),
            client: "xpool ssh".to_owned(),
            key: "shell".to_owned(),
            share: Share::Host,
            secrets: true,
            first: First::Other,
        };
        let mut ticket = match self.manager.desk().open(request).await {
            Ok(ticket) => ticket,
            Err(gone) => return self.refuse(gone.to_string()).await.map(|()| None),
        };
        let why = loop {
            match ticket.next().await {
                Some(SessionUpdate::Waiting(text)) => {
                    self.writer.send(&Answer::Waiting(text)).await?;
                }
                Some(SessionUpdate::Granted(grant)) => {
                    let does = "a shell is open in it".to_owned();
                    // Only `xpool status` shows it: without room for it now, nothing is lost.
                    let _ = ticket.reports().send(SessionReport::Activity(does));
                    return Ok(Some((ticket, grant)));
                }
                Some(SessionUpdate::Note(_)) => {}
                Some(SessionUpdate::Rejected(text)) => break text,
                Some(SessionUpdate::VmGone { vm, cause, log }) => {
                    let log = log.display();
                    break format!("{vm} ended: {cause}; its console is in {log}");
                }
                None => break "the manager is shutting down".to_owned(),
            }
        };
        self.refuse(why).await.map(|()| None)
    }

    async fn open(&self, vm: &str, program: ShellProgram, after: AfterShell) -> io::Result<()> {
        let OpenShell { streams, ended } = match self.manager.open_shell(vm, program, after).await {
            Ok(open) => open,
            Err(why) => return self.refuse(format!("no shell in {vm}: {why}")).await,
        };
        info!(vm, "a shell was opened");
        let opened = Answer::Opened(vm.to_owned());
        let descriptors = streams.each_ref().map(|stream| stream.as_fd());
        self.writer.send_with(&opened, &descriptors).await?;
        drop(streams);
        let end = ended.await.unwrap_or(ShellEnd::Lost);
        info!(vm, ?end, "a shell ended");
        self.writer.send(&Answer::Ended(end)).await
    }

    async fn refuse(&self, why: String) -> io::Result<()> {
        self.writer.send(&Answer::Refused(why)).await
    }
}
