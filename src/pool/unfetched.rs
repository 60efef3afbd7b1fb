//! What was built for a seat and not fetched yet, as far as it is told.

use std::collections::BTreeSet;

use crate::nix::store_path::StorePath;

/// The most outputs of one seat that are told apart. More are as good as unknown.
const MAX_PATHS: usize = 1024;

/// The outputs of one seat on one VM that nobody has fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Unfetched {
    /// Nothing was told of any build.
    #[default]
    Untold,
    /// These, of all that were built.
    Paths(BTreeSet<StorePath>),
    /// There may be some, and nothing tells when there are none any more.
    Unknown,
}

impl Unfetched {
    /// A build has worked. No paths: they are not known.
    pub(super) fn built(&mut self, paths: Vec<StorePath>) {
        let built = if paths.is_empty() {
            Self::Unknown
        } else {
            Self::Paths(paths.into_iter().collect())
        };
        self.add(built);
    }

    /// What another session of the seat has left.
    pub(super) fn add(&mut self, more: Self) {
        *self = match (std::mem::take(self), more) {
            (Self::Untold, other) | (other, Self::Untold) => other,
            (Self::Paths(mut all), Self::Paths(more)) => {
                all.extend(more);
                Self::Paths(all)
            }
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
        };
        if matches!(self, Self::Paths(all) if all.len() > MAX_PATHS) {
            *self = Self::Unknown;
        }
    }

    /// Somebody has fetched this one.
    pub(super) fn fetched(&mut self, path: &StorePath) {
        if let Self::Paths(paths) = self {
            paths.remove(path);
        }
    }

    /// Whether this is one of them for certain.
    pub(super) fn has(&self, path: &StorePath) -> bool {
        matches!(self, Self::Paths(paths) if paths.contains(path))
    }

    /// Whether this may be one of them.
    pub(super) fn may_have(&self, path: &StorePath) -> bool {
        !matches!(self, Self::Paths(paths) if !paths.contains(path))
    }

    /// Whether everything that was built is known and fetched.
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Paths(paths) if paths.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        let text = format!("/nix/store/{}-{name}", "0".repeat(32));
        StorePath::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_built_is_there_until_it_is_fetched() {
        let mut unfetched = Unfetched::default();
        assert!(!unfetched.is_done() && unfetched.may_have(&path("a")));
        unfetched.built(vec![path("a"), path("b")]);
        assert!(unfetched.has(&path("a")) && !unfetched.may_have(&path("c")));
        unfetched.fetched(&path("a"));
        unfetched.fetched(&path("c"));
        assert!(!unfetched.is_done() && !unfetched.has(&path("a")));
        unfetched.fetched(&path("b"));
        assert!(unfetched.is_done());
    }

    #[test]
    fn what_is_not_known_stays_unknown() {
        let mut unfetched = Unfetched::default();
        unfetched.built(Vec::new());
        unfetched.built(vec![path("a")]);
        unfetched.fetched(&path("a"));
        assert!(!unfetched.is_done() && unfetched.may_have(&path("a")));
    }

    #[test]
    fn very_many_are_as_good_as_unknown() {
        let mut unfetched = Unfetched::default();
        unfetched.built((0..=MAX_PATHS).map(|n| path(&n.to_string())).collect());
        assert_eq!(unfetched, Unfetched::Unknown);
    }
}
