//! Parts of a CI log that are folded away until somebody wants to read them.

use std::time::{SystemTime, UNIX_EPOCH};

use super::say_after;

/// Whose log it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogKind {
    /// A terminal's, or a file's: nothing is folded.
    #[default]
    Plain,
    /// GitHub's and Forgejo's, which know `::group::` at the beginning of a line.
    GitHub,
    /// GitLab's, which knows sections by name.
    GitLab,
}

impl LogKind {
    /// What the variables say that such a CI sets.
    pub fn of(variable: impl Fn(&str) -> bool) -> Self {
        if variable("GITHUB_ACTIONS") {
            Self::GitHub
        } else if variable("GITLAB_CI") {
            Self::GitLab
        } else {
            Self::Plain
        }
    }

    /// What is printed before a part and after it; `time` is in seconds since the epoch.
    fn lines(self, name: &str, title: &str, time: u64) -> Option<[String; 2]> {
        match self {
            Self::Plain => None,
            Self::GitHub => Some([format!("::group::{title}"), "::endgroup::".to_owned()]),
            Self::GitLab => Some([
                format!("\x1b[0Ksection_start:{time}:{name}[collapsed=true]\r\x1b[0K{title}"),
                format!("\x1b[0Ksection_end:{time}:{name}\r\x1b[0K"),
            ]),
        }
    }
}

/// A part of a log, which ends when this is dropped.
#[derive(Debug)]
pub struct Fold {
    kind: LogKind,
    name: &'static str,
    title: &'static str,
}

impl Fold {
    /// Begins a part; `name` has letters and `_` only.
    pub fn begin(kind: LogKind, name: &'static str, title: &'static str) -> Self {
        let fold = Self { kind, name, title };
        if let Some([begin, _]) = fold.lines() {
            say_after(&begin, "");
        }
        fold
    }

    fn lines(&self) -> Option<[String; 2]> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let time = now.map_or(0, |since| since.as_secs());
        self.kind.lines(self.name, self.title, time)
    }
}

impl Drop for Fold {
    fn drop(&mut self) {
        if let Some([_, end]) = self.lines() {
            say_after(&end, "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ci_is_told_in_its_own_words() {
        let lines = |variable: &str| {
            let kind = LogKind::of(|name| name == variable);
            kind.lines("xpool_start", "Starting xpool", 7)
        };
        assert_eq!(lines("CI"), None);
        let github = lines("GITHUB_ACTIONS").unwrap();
        assert_eq!(github, ["::group::Starting xpool", "::endgroup::"]);
        let gitlab = lines("GITLAB_CI").unwrap();
        assert_eq!(
            gitlab,
            [
                "\x1b[0Ksection_start:7:xpool_start[collapsed=true]\r\x1b[0KStarting xpool",
                "\x1b[0Ksection_end:7:xpool_start\r\x1b[0K"
            ]
        );
    }
}
