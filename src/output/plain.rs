//! Text that guests and clients have written, without what a terminal would obey. Pure.

use std::fmt::Write as _;

/// One line of it: without colours and cursor movements (`ESC [ … letter`), and with other control characters written out.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\x1b' if chars.peek() == Some(&'[') => {
                chars.next();
                // A sequence ends with its first character of this range.
                chars.by_ref().find(|char| ('@'..='~').contains(char));
            }
            '\t' => out.push(' '),
            char if char.is_control() => out.extend(char.escape_debug()),
            char => out.push(char),
        }
    }
    out
}

/// Lines of it, with control characters written out, those of colours among them.
pub fn lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\n' | '\t' => out.push(char),
            char if char.is_control() => out.extend(char.escape_debug()),
            char => out.push(char),
        }
    }
    out
}

/// JSON, of which no terminal obeys anything: it may have control characters that are no ASCII as they are (RFC 8259, 7).
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\u{7f}'..='\u{9f}' => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(char));
            }
            char => out.push(char),
        }
    }
    out
}

/// The next piece of a log, of which characters may be in two pieces: without control characters but those that a log has.
#[derive(Debug, Default)]
pub struct LogText {
    /// The beginning of a character.
    rest: Vec<u8>,
}

impl LogText {
    /// What is to be shown after this piece.
    pub fn add(&mut self, piece: &[u8]) -> String {
        let mut bytes = std::mem::take(&mut self.rest);
        bytes.extend(piece);
        self.rest = bytes.split_off(bytes.len() - unfinished(&bytes));
        let is_harmless = |char: &char| !char.is_control() || matches!(char, '\n' | '\r' | '\t');
        let text = String::from_utf8_lossy(&bytes);
        text.chars().filter(is_harmless).collect()
    }
}

/// How many of the last bytes are the beginning of a character of which more may come.
fn unfinished(bytes: &[u8]) -> usize {
    let last = bytes.iter().rev().take(3).enumerate();
    let begin = last.into_iter().find(|(_, byte)| **byte & 0xc0 != 0x80);
    let Some((after, first)) = begin else {
        return 0;
    };
    let length = match first {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    if length > after + 1 { after + 1 } else { 0 }
}

/// The first characters of its first line.
pub fn head(text: &str, max: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    let line = plain(line.trim());
    if line.chars().count() <= max {
        return line;
    }
    let kept: String = line.chars().take(max.saturating_sub(1)).collect();
    kept + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_comes_in_pieces_has_nothing_that_a_terminal_obeys() {
        let log = "a\x1b[2Jb\u{9b}2J\u{9d}0;x\u{7}\u{9c}ä€😀\tc\r\n".as_bytes();
        let log = [log, b"\x9b\xc2(\xf0\x9f"].concat();
        let whole = LogText::default().add(&log);
        assert_eq!(whole, "a[2Jb2J0;xä€😀\tc\r\n\u{fffd}\u{fffd}(");
        for size in 1..log.len() {
            let mut text = LogText::default();
            let pieces: String = log.chunks(size).map(|piece| text.add(piece)).collect();
            assert_eq!(pieces, whole, "in pieces of {size}");
        }
    }

    #[test]
    fn lines_and_json_have_nothing_that_a_terminal_obeys() {
        assert_eq!(lines("a\tb\x1b[1m\u{9b}\nc"), "a\tb\\u{1b}[1m\\u{9b}\nc");
        let value = serde_json::json!({ "text": "\x1b\u{7f}\u{9b}ä" });
        let text = json(&value.to_string());
        assert_eq!(text, r#"{"text":"\u001b\u007f\u009bä"}"#);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            value
        );
    }

    #[test]
    fn what_a_terminal_would_obey_is_left_out_or_written_out() {
        assert_eq!(plain("\x1b[31;1merror:\x1b[0m no\tway"), "error: no way");
        assert_eq!(plain("a\x07b\x1bc\rd"), "a\\u{7}b\\u{1b}c\\rd");
        assert_eq!(plain("\x1b[31"), "");
    }

    #[test]
    fn a_head_is_one_line_that_is_not_too_long() {
        assert_eq!(
            head("failed with exit code 1;\n last lines", 60),
            "failed with exit code 1;"
        );
        assert_eq!(head("0123456789", 10), "0123456789");
        assert_eq!(head("0123456789a", 10), "012345678…");
    }
}
