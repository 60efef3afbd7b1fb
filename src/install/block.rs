//! A marked block in somebody else's text: put in, and taken out again to the byte. Pure.

/// What the first line of a block begins with.
const BEGIN: &str = "# begin xpool";
/// The last line of a block.
const END: &str = "# end xpool";
/// Stands in the first line where the text before the block had no line break at its end.
const BREAK: &str = ", with the line break before it";
/// Stands in the first line where there was no file.
const FILE: &str = ", with this file";

/// Where in a text a block belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Before everything else.
    Top,
    /// After everything else.
    End,
}

/// The marks of a block are not as they were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damaged;

/// The text of a file with a block of `lines`, each of which has its line break; none is a file that is not there.
pub(super) fn put_in(rest: Option<&str>, place: Place, lines: &str) -> String {
    let block = |how: &str| {
        format!("{BEGIN} (`xpool machines --uninstall` takes this away{how})\n{lines}{END}\n")
    };
    match (rest, place) {
        (None, _) => block(FILE),
        (Some(rest), Place::Top) => block("") + rest,
        (Some(rest), Place::End) if rest.is_empty() || rest.ends_with('\n') => {
            rest.to_owned() + &block("")
        }
        (Some(rest), Place::End) => format!("{rest}\n{}", block(BREAK)),
    }
}

/// The text without its block, as it was before; none where there was no file.
pub(super) fn take_out(text: &str) -> Result<Option<String>, Damaged> {
    let (mut before, mut after, mut head) = (String::new(), String::new(), None);
    let mut is_inside = false;
    for line in text.split_inclusive('\n') {
        let is_begin = line.starts_with(BEGIN);
        let is_end = line.trim_end() == END;
        match (is_begin, is_end, is_inside, head) {
            (true, _, false, None) => (is_inside, head) = (true, Some(line)),
            (_, true, true, _) => is_inside = false,
            (false, false, true, _) => {}
            (false, false, false, None) => before += line,
            (false, false, false, Some(_)) => after += line,
            _ => return Err(Damaged),
        }
    }
    let is_marked = |mark: &str| head.is_some_and(|head| head.contains(mark));
    if is_inside {
        return Err(Damaged);
    }
    // Where somebody has written on after the block, the line break is theirs as well.
    if is_marked(BREAK) && after.is_empty() && before.ends_with('\n') {
        before.pop();
    }
    let rest = before + &after;
    Ok(Some(rest).filter(|rest| !(is_marked(FILE) && rest.is_empty())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINES: &str = "builders = @/m\n";

    #[test]
    fn a_block_says_who_takes_it_away() {
        assert_eq!(
            put_in(Some("a = b\n"), Place::End, LINES),
            "a = b\n# begin xpool (`xpool machines --uninstall` takes this away)\nbuilders = @/m\n# end xpool\n"
        );
    }

    proptest! {
        #[test]
        fn what_is_put_in_is_taken_out_to_the_byte(
            rest in proptest::option::of("([a-z =#]{0,9}(\n|\r\n|\r)?){0,5}"),
            top in any::<bool>(),
        ) {
            let place = if top { Place::Top } else { Place::End };
            let text = put_in(rest.as_deref(), place, LINES);
            prop_assert_eq!(take_out(&text).unwrap(), rest.clone());
            // Whoever puts it in again changes nothing.
            prop_assert_eq!(put_in(rest.as_deref(), place, LINES), text);
        }
    }

    #[test]
    fn what_others_have_written_since_stays() {
        let text = put_in(Some("a"), Place::End, LINES) + "b\n";
        assert_eq!(take_out(&text), Ok(Some("a\nb\n".to_owned())));
        let text = put_in(None, Place::End, LINES) + "b\n";
        assert_eq!(take_out(&text), Ok(Some("b\n".to_owned())));
        let text = put_in(Some("a\n"), Place::Top, LINES).replace('\n', "\r\n");
        assert_eq!(take_out(&text), Ok(Some("a\r\n".to_owned())));
    }

    #[test]
    fn a_block_without_its_marks_is_damaged() {
        let block = put_in(None, Place::End, LINES);
        let without_end = block.replace(END, "");
        for text in [
            &without_end,
            "# end xpool\n",
            &(block.clone() + &block),
            &format!("{BEGIN}\n{block}"),
        ] {
            assert_eq!(take_out(text), Err(Damaged), "{text}");
        }
    }
}
