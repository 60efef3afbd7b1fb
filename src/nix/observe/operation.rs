//! The operations that can be watched, and what their requests and replies look like.
//!
//! Source: `worker-protocol.cc`, `daemon.cc` (`performOp`) and `remote-store.cc` of Nix 2.8 to 2.34, protocols 1.21 to 1.37.

use crate::nix::walk::Item;
use crate::nix::wire::Version;

/// An operation that can be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// 1: is this path there?
    IsValidPath,
    /// 26: what is known of this path?
    QueryPathInfo,
    /// 31: which inputs does the guest have?
    QueryValidPaths,
    /// 36: build this.
    BuildDerivation,
    /// 38: give me this path.
    NarFromPath,
    /// 43: what was built for this output of a content-addressed derivation?
    QueryRealisation,
    /// 44: take these inputs.
    AddMultipleToStore,
}

/// What follows `LAST`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reply {
    Items(&'static [Item]),
    /// A NAR as it is, without its length and without frames (`copyNAR` of Nix finds its end too).
    Nar,
}

const NUMBER: &[Item] = &[Item::Number];
const STRING: &[Item] = &[Item::String];
const STRINGS: &[Item] = &[Item::List(STRING)];
const WANTED: &[Item] = &[Item::Wanted];

const QUERY_VALID_PATHS: &[Item] = &[Item::List(STRING), Item::Number];
const QUERY_VALID_PATHS_BEFORE_1_27: &[Item] = STRINGS;
/// Repair, no signature checks, then infos and NARs in frames.
const ADD_MULTIPLE_TO_STORE: &[Item] = &[Item::Number, Item::Number, Item::Frames];
const BUILD_DERIVATION: &[Item] = &[
    Item::Wanted,
    Item::List(&[Item::String, Item::Wanted, Item::String, Item::String]), // outputs: name, path, algorithm, hash
    Item::List(STRING),                                                    // input sources
    Item::String,                                                          // platform
    Item::String,                                                          // builder
    Item::List(STRING),                                                    // arguments
    Item::List(&[Item::String, Item::String]),                             // environment
    Item::Number,                                                          // build mode
];

const PATH_INFO: &[Item] = &[Item::Optional(&[
    Item::String,       // deriver
    Item::String,       // hash
    Item::List(STRING), // references
    Item::Number,       // registration time
    Item::Number,       // size
    Item::Number,       // whether it was built here
    Item::List(STRING), // signatures
    Item::String,       // content address
])];

/// Outputs and what was built for them, as JSON.
const BUILT_OUTPUTS: Item = Item::List(&[Item::String, Item::String]);
const MICROSECONDS: Item = Item::WantedOptional;
/// Status and message, then how often it was built, whether it differed, and when it began and ended.
const BUILD_RESULT: &[Item] = &[
    Item::WantedNumber,
    Item::Wanted,
    Item::Number,
    Item::Number,
    Item::WantedNumber,
    Item::WantedNumber,
    MICROSECONDS, // in user mode
    MICROSECONDS, // in the kernel
    BUILT_OUTPUTS,
];
const BUILD_RESULT_BEFORE_1_37: &[Item] = &[
    Item::WantedNumber,
    Item::Wanted,
    Item::Number,
    Item::Number,
    Item::WantedNumber,
    Item::WantedNumber,
    BUILT_OUTPUTS,
];
const BUILD_RESULT_BEFORE_1_29: &[Item] = &[Item::WantedNumber, Item::Wanted, BUILT_OUTPUTS];
const BUILD_RESULT_BEFORE_1_28: &[Item] = &[Item::WantedNumber, Item::Wanted];

impl Operation {
    /// The operation that a client begins with this number, if it can be watched.
    pub fn from_number(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::IsValidPath),
            26 => Some(Self::QueryPathInfo),
            31 => Some(Self::QueryValidPaths),
            36 => Some(Self::BuildDerivation),
            38 => Some(Self::NarFromPath),
            43 => Some(Self::QueryRealisation),
            44 => Some(Self::AddMultipleToStore),
            _ => None,
        }
    }

    /// Whether it asks for what the store has already, and makes no sense to a store that is new.
    ///
    /// After a build, a hook copies the outputs with `copyPaths` (`build-remote.cc`), which asks the builder for
    /// `QueryPathInfo` of every output first and for `NarFromPath` of each then (`store-api.cc`). Where `narFromPath` holds
    /// its connection by a `RemoteStore::ConnectionHandle`, as in 2.26, the connection is given up after each NAR: the
    /// coroutine around it (`sinkToSource`) is ended by an exception, and the handle takes that for a broken connection. In
    /// the same way, an older `QueryPathInfo` of a path that is not there ends one. So a new connection begins with one of
    /// these two. `IsValidPath` and `QueryRealisation` ask a store for no more than what it has, as well.
    ///
    /// A hook's own first operation is `QueryValidPaths`: which of the inputs are there? `nix copy --from` begins with
    /// `BuildPathsWithResults` and `nix path-info` with `QueryMissing`, which may also be the beginning of a build.
    pub fn asks_for_outputs(self) -> bool {
        match self {
            Self::IsValidPath
            | Self::QueryPathInfo
            | Self::NarFromPath
            | Self::QueryRealisation => true,
            Self::QueryValidPaths | Self::BuildDerivation | Self::AddMultipleToStore => false,
        }
    }

    /// Whether it is a build or a part of one: it builds, or brings what is to be built with.
    pub fn builds(self) -> bool {
        match self {
            Self::BuildDerivation | Self::AddMultipleToStore => true,
            Self::IsValidPath
            | Self::QueryPathInfo
            | Self::QueryValidPaths
            | Self::NarFromPath
            | Self::QueryRealisation => false,
        }
    }

    /// The request's shape.
    pub(super) fn request(self, version: Version) -> &'static [Item] {
        match self {
            Self::IsValidPath | Self::QueryPathInfo | Self::QueryRealisation => STRING,
            Self::NarFromPath => WANTED,
            Self::QueryValidPaths if version.has(27) => QUERY_VALID_PATHS,
            Self::QueryValidPaths => QUERY_VALID_PATHS_BEFORE_1_27,
            Self::AddMultipleToStore => ADD_MULTIPLE_TO_STORE,
            Self::BuildDerivation => BUILD_DERIVATION,
        }
    }

    /// The reply's shape.
    pub(super) fn reply(self, version: Version) -> Reply {
        Reply::Items(match self {
            Self::IsValidPath => NUMBER,
            Self::QueryPathInfo => PATH_INFO,
            // Before 1.31 the realisations are paths, since then JSON.
            Self::QueryValidPaths | Self::QueryRealisation => STRINGS,
            Self::AddMultipleToStore => &[],
            Self::BuildDerivation if version.has(37) => BUILD_RESULT,
            Self::BuildDerivation if version.has(29) => BUILD_RESULT_BEFORE_1_37,
            Self::BuildDerivation if version.has(28) => BUILD_RESULT_BEFORE_1_29,
            Self::BuildDerivation => BUILD_RESULT_BEFORE_1_28,
            Self::NarFromPath => return Reply::Nar,
        })
    }
}
