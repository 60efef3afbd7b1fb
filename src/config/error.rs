//! What is wrong with a configuration file, and where.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A configuration file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    file: PathBuf,
    /// Counted from 1; none when the file as a whole is meant.
    line: Option<usize>,
    message: String,
    hint: Option<String>,
}

impl ConfigError {
    /// A file that cannot be read.
    pub(super) fn unreadable(file: &Path, error: &std::io::Error) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            message: format!("cannot be read: {error}"),
            hint: None,
        }
    }

    /// A value that cannot be used, at a place in the file's text.
    pub(super) fn value(file: &Path, text: &str, span: Range<usize>, message: String) -> Self {
        Self {
            file: file.to_owned(),
            line: Some(line_of(text, span.start)),
            message,
            hint: None,
        }
    }

    /// The same error, of something that has no lines.
    pub(super) fn without_line(self) -> Self {
        Self { line: None, ..self }
    }

    /// The same error, with what to do about it.
    pub(super) fn with_hint(mut self, hint: &str) -> Self {
        self.hint = Some(hint.to_owned());
        self
    }

    /// What the TOML parser found.
    pub(super) fn toml(file: &Path, text: &str, error: &toml::de::Error) -> Self {
        let line = error.span().map(|span| line_of(text, span.start));
        let said = error.message();
        let (message, hint) = if let Some((key, known)) = unknown(said, "field") {
            let hint = nearest("keys", key, &known);
            (format!("unknown key `{key}`"), Some(hint))
        } else if let Some((value, known)) = unknown(said, "variant") {
            let hint = nearest("values", value, &known);
            (format!("unknown value `{value}`"), Some(hint))
        } else {
            (said.trim_end().replace('\n', ", "), None)
        };
        Self {
            file: file.to_owned(),
            line,
            message,
            hint,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}

/// The key or value and the known ones, out of serde's words "unknown field `x`, expected one of `a`, `b`" (a test holds us
/// to them).
fn unknown<'a>(message: &'a str, what: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let mut names = message
        .strip_prefix("unknown ")?
        .strip_prefix(what)?
        .split('`')
        .skip(1)
        .step_by(2);
    Some((names.next()?, names.collect()))
}

fn nearest(what: &str, key: &str, known: &[&str]) -> String {
    let likeness = |name: &&&str| (strsim::jaro_winkler(key, name) * 1000.0).round();
    match known
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
    {
        Some(name) if strsim::jaro_winkler(key, name) > 0.7 => format!("did you mean `{name}`?"),
        _ => format!("known {what} are `{}`", known.join("`, `")),
    }
}
