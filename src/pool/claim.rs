//! What a session wants: who it is, where it came in, whether it builds or fetches or wants one VM, and what it may see.

use super::VmId;
use super::policy::Share;
use crate::nix::store_path::StorePath;

/// Where a client's sessions come in. Nix uses a slot for one build at a time, so what comes by the same seat is either
/// the same build or the next one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat {
    /// What tells one client from another. Opaque.
    pub client: String,
    /// What is the same for the sessions of one build: the slot's name, or something stronger. Opaque.
    pub slot: String,
}

/// What a session begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A new build.
    Build,
    /// It fetches what an earlier session of its client has built, which only the VM of that build has; this path, where it
    /// is known.
    Fetch(Option<StorePath>),
    /// Whatever it does, it does it on this VM, which it has named.
    Pinned(VmId),
}

impl Purpose {
    /// Whether it fetches what an earlier session has built.
    pub fn fetches(&self) -> bool {
        matches!(self, Self::Fetch(_))
    }
}

/// What a session wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Who it is and where it came in.
    pub seat: Seat,
    /// What it begins with.
    pub purpose: Purpose,
    /// What its VM sees of this machine's store: exactly that, for a VM of the other kind shows too much or lacks something.
    pub share: Share,
}

/// What became of the outputs that a session has built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// The client has them, or there were none.
    Fetched,
    /// Some are only in the VM yet, or nobody knows; a further session may come for them. What was told of builds
    /// ([`super::Event::Built`]) may know better.
    Unfetched,
}
