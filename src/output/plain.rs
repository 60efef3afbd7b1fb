//! Text that guests and clients have written, without what a terminal would obey. Pure.

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
