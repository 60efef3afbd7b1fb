//! What one key may have of the gateway, so that others always find room.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::Limits;
use crate::session::account::Account;

/// What a key may have, shared by its connections.
#[derive(Debug)]
pub(super) struct Quota {
    /// What its clients make the gateway hold.
    pub(super) account: Arc<Account>,
    /// The connections that it may still open. Further logins are refused.
    pub(super) connections: Arc<Semaphore>,
    /// The channels that it may still open. Further ones are refused.
    pub(super) channels: Arc<Semaphore>,
}

impl Quota {
    pub(super) fn new(limits: &Limits) -> Self {
        // A quarter of all connections is for other keys.
        let connections = limits.max_connections - limits.max_connections / 4;
        Self {
            account: Account::new(limits.max_held_per_key),
            connections: Arc::new(Semaphore::new(connections)),
            channels: Arc::new(Semaphore::new(limits.max_channels_per_key)),
        }
    }
}
