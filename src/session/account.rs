//! What the sessions of one client make this process hold: bytes that nobody has read, requests that are looked at.
//!
//! A client over its limit is slowed down, not refused: each of its channels has a small share, and its first requests are not kept to
//! be looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The account of a client, shared by all its connections.
#[derive(Debug)]
pub struct Account {
    held: AtomicUsize,
    limit: usize,
}

/// A part of what a client is charged. Dropping it takes the part off.
#[derive(Debug)]
pub struct Charge {
    account: Arc<Account>,
    bytes: usize,
}

impl Account {
    /// With a limit, in bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        let held = AtomicUsize::new(0);
        Arc::new(Self { held, limit })
    }

    /// One without a limit, for a process that serves one client.
    pub fn unlimited() -> Arc<Self> {
        Self::new(usize::MAX)
    }

    /// How many bytes the client is charged.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether it should be promised no more than a little.
    pub fn is_short(&self) -> bool {
        self.held() >= self.limit
    }

    /// A part of nothing yet.
    pub fn charge(self: &Arc<Self>) -> Charge {
        let account = Arc::clone(self);
        Charge { account, bytes: 0 }
    }
}

impl Charge {
    /// The account that it is a part of.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Makes it so many bytes.
    pub fn set(&mut self, bytes: usize) {
        let held = &self.account.held;
        if bytes >= self.bytes {
            held.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else {
            held.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}
