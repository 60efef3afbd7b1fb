//! One Nix session: handshake answered at once, parked at its first operation, then joined to a guest.
//!
//! The same for every front end: it knows a reader and a writer, not SSH. What it cannot say inside the protocol it returns
//! for the front end to say.

pub mod account;
mod attend;
mod client;
mod guest;
mod inputs;
mod limits;
mod outbox;
mod park;
mod splice;
mod watch;

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::manager::ticket::{SessionDesk, SessionRequest};
use crate::nix::handshake::Promise;

use account::Charge;
use client::Greeting;
use guest::Joined;
use park::Parked;

/// How long a client may take for its part of the handshake. Nix speaks at once; anything else would hold the connection.
const HELLO_DEADLINE: Duration = Duration::from_secs(20);

/// How a session ended, for the log and for what the front end has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The client left without asking for anything, as `nix store info` does.
    NoDemand,
    /// The client left while it waited for a VM.
    LeftWaiting,
    /// The client was joined to a VM and left when it was done, or gave up.
    Served {
        /// The VM's name.
        vm: String,
    },
    /// Something failed and the client was told inside the protocol.
    Told {
        /// What it was told.
        text: String,
    },
    /// Something failed and could not be said inside the protocol.
    Untold {
        /// What the front end has to say, by whatever way it has.
        text: String,
        /// Whether a build was under way: then a build hook listens, which shows only what is written for it.
        to_hook: bool,
    },
}

impl Outcome {
    /// What the front end has to write to the client's standard error. A build hook shows only lines that are log messages
    /// in Nix's own format (`buildWithHook`, `logging.cc`); anyone else reads the plain line.
    pub fn stderr_lines(&self) -> Option<String> {
        let Self::Untold { text, .. } = self else {
            return None;
        };
        let to_hook = self.hook_message().map(|message| message + "\n");
        Some(format!("{text}\n{}", to_hook.unwrap_or_default()))
    }

    /// The line in Nix's own format, where a build hook listens.
    pub fn hook_message(&self) -> Option<String> {
        let Self::Untold {
            text,
            to_hook: true,
        } = self
        else {
            return None;
        };
        let message = serde_json::json!({ "action": "msg", "level": 0, "msg": text });
        Some(format!("@nix {message}"))
    }

    /// Whether the client did not get what it asked for.
    pub fn has_failed(&self) -> bool {
        matches!(self, Self::Told { .. } | Self::Untold { .. })
    }
}

/// Serves one client until either side is done. What it holds of the client's is charged. Dropping the future ends the session: ticket and hop are dropped.
pub async fn serve<R, W>(
    reader: R,
    writer: W,
    charge: Charge,
    desk: &SessionDesk,
    request: SessionRequest,
    promise: &Promise,
) -> Outcome
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let greeting = client::greet(reader, writer, charge, promise);
    let mut client = match tokio::time::timeout(HELLO_DEADLINE, greeting).await {
        Ok(Greeting::Done(client)) => client,
        Ok(Greeting::Left) => return Outcome::NoDemand,
        Ok(Greeting::Failed(error)) => return untold(&format!("xpool: {error}")),
        Err(_) => return untold("xpool: no Nix client spoke within 20 seconds"),
    };
    let Some(number) = client.first_operation().await else {
        return Outcome::NoDemand;
    };
    let first = inputs::first(&mut client, number).await;
    let fetches = first.fetches();
    let request = SessionRequest { first, ..request };
    let system = request.system;
    let mut ticket = match desk.open(request).await {
        Ok(ticket) => ticket,
        Err(gone) => return client.fail(&format!("xpool: {gone}")).await,
    };
    // What was there to be fetched before this session is there after one that never got to it.
    ticket.set_unfetched(fetches);
    let mut grant = match park::park(&mut client, &mut ticket, system).await {
        Parked::Granted(grant) => grant,
        Parked::Left => return Outcome::LeftWaiting,
        Parked::Failed(text) => {
            drop(ticket);
            return client.fail(&text).await;
        }
    };
    match guest::join(&mut client, &mut ticket, &mut grant).await {
        Joined::Done(early) => splice::splice(client, ticket, grant, early).await,
        Joined::Left => Outcome::LeftWaiting,
        Joined::Failed(text) => {
            drop((grant, ticket));
            client.fail(&text).await
        }
    }
}

fn untold(text: &str) -> Outcome {
    Outcome::Untold {
        text: text.to_owned(),
        to_hook: false,
    }
}

#[cfg(test)]
mod tests;
