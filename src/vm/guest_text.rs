//! Words of a guest, or of QEMU about one, made fit for errors, logs and terminals.

/// The longest quotation, in characters: errors are read by people.
const LONGEST: usize = 500;

/// At most 500 characters of what was said, without what terminals obey. Lines and tabs stay.
pub(super) fn quoted(said: &[u8]) -> String {
    // A character has four bytes at the most, so nothing that would be shown is lost.
    let said = &said[..said.len().min(4 * (LONGEST + 1))];
    let said = String::from_utf8_lossy(said);
    let mut chars = said.trim_end().chars();
    let mut quoted: String = chars.by_ref().take(LONGEST).map(harmless).collect();
    if chars.next().is_some() {
        quoted.push('…');
    }
    quoted
}

fn harmless(char: char) -> char {
    match char {
        '\n' | '\t' => char,
        control if control.is_control() => ' ',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_terminals_obey_becomes_blank() {
        assert_eq!(
            quoted(b"no\tdaemon\n\x1b[2Jgone\x07\xff\r\n\n"),
            "no\tdaemon\n [2Jgone \u{fffd}"
        );
        assert_eq!(quoted("a\u{9b}2J".as_bytes()), "a 2J");
    }

    #[test]
    fn a_flood_is_cut() {
        let flood = "ä".repeat(LONGEST + 1);
        let cut = quoted(flood.as_bytes());
        assert_eq!(cut, format!("{}…", "ä".repeat(LONGEST)));
        assert_eq!(quoted(&flood.as_bytes()[2..]), "ä".repeat(LONGEST));
    }
}
