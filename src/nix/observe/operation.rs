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
    /// 7: take this file or folder.
    AddToStore,
    /// 9: build these derivations, which are in the store.
    BuildPaths,
    /// 11: keep this path as long as we are connected.
    AddTempRoot,
    /// 26: what is known of this path?
    QueryPathInfo,
    /// 31: which inputs does the guest have?
    QueryValidPaths,
    /// 36: build this.
    BuildDerivation,
    /// 38: give me this path.
    NarFromPath,
    /// 40: what of this would have to be built?
    QueryMissing,
    /// 41: which outputs does this derivation have?
    QueryDerivationOutputMap,
    /// 42: this is what was built for an output of a content-addressed derivation.
    RegisterDrvOutput,
    /// 43: what was built for this output of a content-addressed derivation?
    QueryRealisation,
    /// 44: take these inputs.
    AddMultipleToStore,
    /// 46: build these derivations, which are in the store, and say how it went.
    BuildPathsWithResults,
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
const STRING_PAIR: &[Item] = &[Item::String, Item::String];
const STRINGS: &[Item] = &[Item::List(STRING)];
const WANTED: &[Item] = &[Item::Wanted];

const QUERY_VALID_PATHS: &[Item] = &[Item::List(STRING), Item::Number];
const QUERY_VALID_PATHS_BEFORE_1_27: &[Item] = STRINGS;
/// Name, method, references, repair, then the content in frames; since 1.25.
const ADD_TO_STORE: &[Item] = &[
    Item::String,
    Item::String,
    Item::List(STRING),
    Item::Number,
    Item::Frames,
];
const PATHS_AND_MODE: &[Item] = &[Item::List(STRING), Item::Number];
/// Repair, no signature checks, then infos and NARs in frames.
const ADD_MULTIPLE_TO_STORE: &[Item] = &[Item::Number, Item::Number, Item::Frames];
const BUILD_DERIVATION: &[Item] = &[
    Item::Wanted,
    Item::List(&[Item::String, Item::Wanted, Item::String, Item::String]), // outputs: name, path, algorithm, hash
    Item::List(STRING),                                                    // input sources
    Item::String,                                                          // platform
    Item::String,                                                          // builder
    Item::List(STRING),                                                    // arguments
    Item::List(STRING_PAIR),                                               // environment
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
/// The path, then the same.
const ADDED: &[Item] = &[
    Item::String,
    Item::String,
    Item::String,
    Item::List(STRING),
    Item::Number,
    Item::Number,
    Item::Number,
    Item::List(STRING),
    Item::String,
];
/// What would be built, what fetched, what cannot be had; bytes to fetch, bytes of NARs.
const MISSING: &[Item] = &[
    Item::List(STRING),
    Item::List(STRING),
    Item::List(STRING),
    Item::Number,
    Item::Number,
];

/// Outputs and what was built for them, as JSON.
const BUILT_OUTPUTS: Item = Item::List(STRING_PAIR);
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

/// A derivation with its outputs, and how its build went; the operation came with 1.34.
const BUILD_RESULTS: &[Item] = &[Item::List(&[
    Item::String,
    Item::Number,
    Item::String,
    Item::Number,
    Item::Number,
    Item::Number,
    Item::Number,
    MICROSECONDS,
    MICROSECONDS,
    BUILT_OUTPUTS,
])];
const BUILD_RESULTS_BEFORE_1_37: &[Item] = &[Item::List(&[
    Item::String,
    Item::Number,
    Item::String,
    Item::Number,
    Item::Number,
    Item::Number,
    Item::Number,
    BUILT_OUTPUTS,
])];

impl Operation {
    /// The operation that a client begins with this number, if it can be watched.
    pub fn from_number(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::IsValidPath),
            7 => Some(Self::AddToStore),
            9 => Some(Self::BuildPaths),
            11 => Some(Self::AddTempRoot),
            26 => Some(Self::QueryPathInfo),
            31 => Some(Self::QueryValidPaths),
            36 => Some(Self::BuildDerivation),
            38 => Some(Self::NarFromPath),
            40 => Some(Self::QueryMissing),
            41 => Some(Self::QueryDerivationOutputMap),
            42 => Some(Self::RegisterDrvOutput),
            43 => Some(Self::QueryRealisation),
            44 => Some(Self::AddMultipleToStore),
            46 => Some(Self::BuildPathsWithResults),
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
            Self::AddToStore
            | Self::BuildPaths
            | Self::AddTempRoot
            | Self::QueryValidPaths
            | Self::BuildDerivation
            | Self::QueryMissing
            | Self::QueryDerivationOutputMap
            | Self::RegisterDrvOutput
            | Self::AddMultipleToStore
            | Self::BuildPathsWithResults => false,
        }
    }

    /// Whether it is a build or a part of one: it builds, or brings what is to be built with.
    pub fn builds(self) -> bool {
        match self {
            Self::AddToStore
            | Self::BuildPaths
            | Self::BuildDerivation
            | Self::RegisterDrvOutput
            | Self::AddMultipleToStore
            | Self::BuildPathsWithResults => true,
            Self::IsValidPath
            | Self::AddTempRoot
            | Self::QueryPathInfo
            | Self::QueryValidPaths
            | Self::NarFromPath
            | Self::QueryMissing
            | Self::QueryDerivationOutputMap
            | Self::QueryRealisation => false,
        }
    }

    /// Whether its shape in this version is known.
    pub(super) fn has_shape(self, version: Version) -> bool {
        match self {
            // Its content was not in frames.
            Self::AddToStore => version.has(25),
            _ => true,
        }
    }

    /// The request's shape.
    pub(super) fn request(self, version: Version) -> &'static [Item] {
        match self {
            Self::IsValidPath
            | Self::AddTempRoot
            | Self::QueryPathInfo
            | Self::QueryDerivationOutputMap
            | Self::QueryRealisation => STRING,
            // JSON; before, the output's name and its path.
            Self::RegisterDrvOutput if version.has(31) => STRING,
            Self::RegisterDrvOutput => STRING_PAIR,
            Self::AddToStore => ADD_TO_STORE,
            Self::BuildPaths | Self::BuildPathsWithResults => PATHS_AND_MODE,
            Self::QueryMissing => STRINGS,
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
            Self::IsValidPath | Self::AddTempRoot | Self::BuildPaths => NUMBER,
            Self::AddToStore => ADDED,
            Self::QueryMissing => MISSING,
            Self::QueryDerivationOutputMap => &[Item::List(STRING_PAIR)],
            Self::BuildPathsWithResults if version.has(37) => BUILD_RESULTS,
            Self::BuildPathsWithResults => BUILD_RESULTS_BEFORE_1_37,
            Self::QueryPathInfo => PATH_INFO,
            // Before 1.31 the realisations are paths, since then JSON.
            Self::QueryValidPaths | Self::QueryRealisation => STRINGS,
            Self::RegisterDrvOutput | Self::AddMultipleToStore => &[],
            Self::BuildDerivation if version.has(37) => BUILD_RESULT,
            Self::BuildDerivation if version.has(29) => BUILD_RESULT_BEFORE_1_37,
            Self::BuildDerivation if version.has(28) => BUILD_RESULT_BEFORE_1_29,
            Self::BuildDerivation => BUILD_RESULT_BEFORE_1_28,
            Self::NarFromPath => return Reply::Nar,
        })
    }
}
