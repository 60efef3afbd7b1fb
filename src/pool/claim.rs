//! What a session wants: who it is, where it came in, whether it builds or fetches, and what it may see.

use super::policy::Share;

/// Where a client's sessions come in. Nix uses a slot for one build at a time, so what comes by the same seat is either
/// the same build or the next one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat {
    /// What tells one client from another. Opaque.
    pub client: String,
    /// The slot's name. Opaque.
    pub slot: String,
}

/// What a session begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A new build.
    Build,
    /// It fetches what an earlier session of its seat has built, which only the VM of that build has.
    Fetch,
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
    /// Some are only in the VM yet; a further session may come for them.
    Unfetched,
}
