//! What a session asks for first: that decides which VM it gets, and what is in it before the guest hears the question.

use tokio::io::{AsyncRead, AsyncWrite};

use super::client::Client;
use crate::manager::ticket::First;
use crate::nix::observe::Operation;
use crate::nix::queries;

/// Reads what a first operation asks for, as far as it matters.
pub(super) async fn first<R, W>(client: &mut Client<R, W>, number: u64) -> First
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let version = client.version;
    match Operation::from_number(number) {
        Some(Operation::QueryValidPaths) => {
            let read = |held: &[u8]| queries::queried_paths(held, version);
            let paths = client.whole_request(read).await;
            paths.map_or(First::Other, First::Inputs)
        }
        Some(Operation::QueryRealisation) => First::Output(None),
        Some(operation) if operation.asks_for_outputs() => {
            First::Output(client.whole_request(queries::asked_path).await.flatten())
        }
        _ => First::Other,
    }
}
