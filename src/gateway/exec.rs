//! Which commands a client may run: one.
//!
//! Nix sends `nix-daemon --stdio`, with `remote-program` in place of the name and with `--store …` behind it for
//! `remote-store` (`ssh-store.cc` of Nix 2.3 to 2.34; words may be quoted for a shell). There is no shell here.

/// How much of a refused command is repeated, in characters.
const MAX_SHOWN: usize = 120;

/// What a command amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// The worker protocol.
    NixDaemon,
    /// Anything else; the text says so to the user.
    Refused(String),
}

/// Reads a command line.
pub(super) fn parse(command: &[u8]) -> Command {
    let text = String::from_utf8_lossy(command);
    let words: Vec<&str> = text.split_ascii_whitespace().map(unquote).collect();
    match words.as_slice() {
        [program, rest @ ..] if is(program, "nix-daemon") => daemon(rest, &text),
        [program, "daemon", rest @ ..] if is(program, "nix") => daemon(rest, &text),
        [program, "--serve", ..] if is(program, "nix-store") => refused(
            "this builder speaks ssh-ng only: write `ssh-ng://` instead of `ssh://` in its URI"
                .to_owned(),
        ),
        _ => refused(format!("{} is refused: {ONLY}", shown(&text))),
    }
}

/// What a user hears who wants a shell.
pub(super) fn no_shell() -> String {
    format!("there is no shell here: {ONLY}")
}

const ONLY: &str = "this is a builder for Nix, and only `nix-daemon --stdio` can be run";

fn daemon(arguments: &[&str], text: &str) -> Command {
    match arguments {
        ["--stdio"] => Command::NixDaemon,
        _ if arguments.contains(&"--store") => refused(format!(
            "{} is refused: a VM has one store only, so remove `remote-store` from the builder's URI",
            shown(text)
        )),
        _ => refused(format!("{} is refused: {ONLY}", shown(text))),
    }
}

fn refused(why: String) -> Command {
    Command::Refused(why)
}

/// Whether a word runs a program of this name, with or without a path.
fn is(word: &str, name: &str) -> bool {
    word.rsplit('/').next() == Some(name)
}

fn unquote(word: &str) -> &str {
    ["'", "\""]
        .into_iter()
        .find_map(|quote| word.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(word)
}

/// A client's text, made safe to show.
fn shown(text: &str) -> String {
    let start: String = text.chars().take(MAX_SHOWN).collect();
    let more = if start.len() < text.len() { "…" } else { "" };
    format!("`{}{more}`", start.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refusal(command: &str) -> String {
        match parse(command.as_bytes()) {
            Command::Refused(text) => text,
            Command::NixDaemon => panic!("`{command}` was accepted"),
        }
    }

    #[test]
    fn what_nix_sends_is_accepted() {
        for command in [
            "nix-daemon --stdio",
            "/nix/var/nix/profiles/default/bin/nix-daemon --stdio",
            "'nix-daemon' '--stdio'",
            "nix daemon --stdio",
        ] {
            assert_eq!(parse(command.as_bytes()), Command::NixDaemon, "{command}");
        }
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        insta::assert_snapshot!(refusal("ls -l /"), @"`ls -l /` is refused: this is a builder for Nix, and only `nix-daemon --stdio` can be run");
        insta::assert_snapshot!(refusal("nix-daemon --stdio --store /mnt"), @"`nix-daemon --stdio --store /mnt` is refused: a VM has one store only, so remove `remote-store` from the builder's URI");
        insta::assert_snapshot!(refusal("nix-store --serve --write"), @"this builder speaks ssh-ng only: write `ssh-ng://` instead of `ssh://` in its URI");
        for command in [
            "",
            "nix-daemon",
            "nix-daemon --stdio; id",
            "nix-daemon --stdio --process-ops",
            "xnix-daemon --stdio",
        ] {
            refusal(command);
        }
    }

    #[test]
    fn a_clients_text_cannot_forge_lines_or_colours() {
        let text = refusal("evil\n# accept\x1b[31m");
        insta::assert_snapshot!(text, @r"`evil\n# accept\u{1b}[31m` is refused: this is a builder for Nix, and only `nix-daemon --stdio` can be run");
        assert!(refusal(&"x".repeat(10_000)).len() < 300);
    }
}
