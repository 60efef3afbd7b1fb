//! What a session has built and not fetched.

/// The most outputs of one session that are told apart. More are as good as unknown.
const MAX_OUTPUTS: usize = 1024;

/// The outputs that are still to be fetched.
#[derive(Debug)]
pub(super) enum Outputs {
    /// Nothing was built, and nothing was asked for that somebody else may have built.
    Nothing,
    /// These paths, of all that were built.
    Paths(Vec<Vec<u8>>),
    /// There may be some, and nothing tells when there are none any more.
    Unknown,
}

impl Outputs {
    /// A build has worked. The path of an output is empty where only the build finds it out (content-addressed
    /// derivations).
    pub(super) fn built(&mut self, paths: &[Vec<u8>]) {
        let mut all = match std::mem::replace(self, Self::Unknown) {
            Self::Unknown => return,
            Self::Nothing => Vec::new(),
            Self::Paths(all) => all,
        };
        if paths.iter().any(Vec::is_empty) || all.len() + paths.len() > MAX_OUTPUTS {
            return;
        }
        for path in paths {
            if !all.contains(path) {
                all.push(path.clone());
            }
        }
        *self = Self::Paths(all);
    }

    /// The client asks for outputs. When this session has built none, others did, and what is left of those is not known.
    pub(super) fn asked_for(&mut self) {
        if matches!(self, Self::Nothing) {
            *self = Self::Unknown;
        }
    }

    /// The client has a path.
    pub(super) fn fetched(&mut self, path: &[u8]) {
        if let Self::Paths(paths) = self {
            paths.retain(|other| other != path);
        }
    }

    /// Whether there may be some.
    pub(super) fn remain(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Paths(paths) => !paths.is_empty(),
            Self::Unknown => true,
        }
    }
}
