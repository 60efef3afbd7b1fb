//! `xpool connect`.

use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::Context;
use crate::connect::helper::Connection;
use crate::connect::stdio;
use crate::control::client::ControlError;
use crate::manager::ticket::{First, SessionRequest, Share};
use crate::nix::System;
use crate::nix::handshake::Promise;
use crate::nix::slot::SlotName;
use crate::session::account::Account;
use crate::session::{self, Outcome};

#[derive(Debug, Args)]
pub(super) struct ConnectArgs {
    /// What Nix came in by: a slot of `xpool machines --transport local`, such as riscv64-00; or a machine that is
    /// there, such as vm-riscv64-1
    slot: String,
    /// What Nix adds to the program of a store; has no meaning of its own
    #[arg(long, hide = true)]
    stdio: bool,
}

/// Nobody is there for Nix, which tries other machines then, if it knows some. One line, as Nix may show it for each slot; and Nix
/// may be root's, and the manager another user's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no manager is running (nobody answers at `{}`); the user that it is for starts one by `xpool --state-dir {} up {}`",
    socket.display(), state.display(), system.cpu()
)]
pub(super) struct NoManager {
    socket: PathBuf,
    state: PathBuf,
    system: System,
}

pub(super) async fn run(context: &Context, args: &ConnectArgs) -> Result<()> {
    let SlotName { system, .. } = SlotName::parse(&args.slot)
        .with_context(|| format!("`{}` is no slot; `xpool machines` lists them", args.slot))?;
    let socket = context.paths.connect_socket();
    let connection = match Connection::open(&socket).await {
        Ok(connection) => connection,
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            let state = context.paths.state().to_owned();
            return Err(NoManager {
                socket,
                state,
                system,
            }
            .into());
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => bail!(
            "the manager's socket `{}`: permission denied; `[local] group` lets users in, and where something keeps root out of a folder \
             (NFS, SELinux), `xpool machines --transport ssh` lists builders that need none of it",
            socket.display()
        ),
        Err(source) => return Err(ControlError::Socket { socket, source }.into()),
    };
    // Who it is, the manager sees for itself.
    let request = SessionRequest {
        system,
        slot: args.slot.clone(),
        seat: args.slot.clone(),
        client: "local".to_owned(),
        key: "local".to_owned(),
        share: Share::Host,
        secrets: true,
        first: First::Other,
    };
    let (input, output) = (stdio::input()?, stdio::output()?);
    let desk = connection.desk();
    let outcome = session::serve(
        input,
        output,
        Account::unlimited().charge(),
        &desk,
        request,
        &Promise::of_xpool(),
    )
    .await;
    if let Some(message) = outcome.hook_message() {
        context.printer.say(&message);
    }
    match outcome {
        Outcome::Untold { text, .. } => bail!(text),
        // Who was told in the protocol shows that.
        Outcome::Told { .. }
        | Outcome::NoDemand
        | Outcome::LeftWaiting
        | Outcome::Served { .. } => Ok(()),
    }
}
