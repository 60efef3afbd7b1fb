//! The last lines of a build's log, in memory that is used again and again: a build may write a hundred megabytes of them.

use std::collections::VecDeque;

use crate::nix::walk::MAX_WANTED;

/// How many lines are kept.
pub const MAX_LINES: usize = 30;

/// How much of a line is kept, in characters.
pub const MAX_LINE: usize = 300;

/// How much of a phase's name is kept, in characters.
const MAX_PHASE: usize = 60;

/// What a build has said last.
#[derive(Debug, Default)]
pub struct BuildLog {
    phase: Option<String>,
    lines: VecDeque<Vec<u8>>,
    n_lines: u64,
    n_signs: u64,
}

impl BuildLog {
    /// The phase that it last said it was in.
    pub fn phase(&self) -> Option<&str> {
        self.phase.as_deref()
    }

    /// Its last lines, oldest first, each cut. As the build wrote them: a terminal would obey some of it.
    pub fn lines(&self) -> Vec<String> {
        self.lines.iter().map(|line| cut(line, MAX_LINE)).collect()
    }

    /// Lines that it has written so far, those included that are not kept.
    pub fn n_lines(&self) -> u64 {
        self.n_lines
    }

    /// How often it has given a sign of life: a line or a phase.
    pub fn n_signs(&self) -> u64 {
        self.n_signs
    }

    /// Another build begins.
    pub(super) fn clear(&mut self) {
        self.phase = None;
        self.lines.clear();
        self.n_lines = 0;
        self.n_signs += 1;
    }

    pub(super) fn line(&mut self, line: &[u8]) {
        let mut kept = if self.lines.len() == MAX_LINES {
            self.lines.pop_front().unwrap_or_default()
        } else {
            Vec::new()
        };
        kept.clear();
        kept.extend_from_slice(line.trim_ascii_end());
        self.lines.push_back(kept);
        self.n_lines += 1;
        self.n_signs += 1;
    }

    pub(super) fn enter_phase(&mut self, phase: &[u8]) {
        self.phase = Some(cut(phase, MAX_PHASE));
        self.n_signs += 1;
    }
}

/// Text of which at most so many characters are kept. What of a character the walk has cut off is left out.
pub(super) fn cut(bytes: &[u8], max: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let whole = if bytes.len() >= MAX_WANTED {
        text.trim_end_matches(char::REPLACEMENT_CHARACTER)
    } else {
        &text
    };
    whole.chars().take(max).collect()
}
