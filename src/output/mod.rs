//! Everything that is printed: data on stdout, talk on stderr, progress on a terminal or one line per step elsewhere.

pub mod fold;
pub mod plain;
pub mod progress;
pub mod table;

use std::io::{IsTerminal, Write};

use serde::Serialize;

/// Prints. The only one that does, apart from `main`.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    terminal: bool,
    colour: bool,
}

impl Printer {
    /// A printer for this process's stderr; `no_colour` is whether the user wants none.
    pub fn new(no_colour: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            terminal,
            colour: terminal && !no_colour,
        }
    }

    /// Whether a person watches.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Prints data.
    pub fn data(self, text: &str) {
        // Somebody who reads the first lines only (`| head`) has all that they want.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    /// Prints data as JSON.
    pub fn json(self, data: &impl Serialize) -> anyhow::Result<()> {
        self.data(&serde_json::to_string_pretty(data)?);
        Ok(())
    }

    /// Prints a piece of a log as data; on a terminal without what a terminal would obey, because guests wrote it.
    pub fn log(self, bytes: &[u8]) {
        let mut stdout = std::io::stdout();
        let is_harmless =
            |byte: &u8| !byte.is_ascii_control() || matches!(byte, b'\n' | b'\r' | b'\t');
        let harmless: Vec<u8> = if stdout.is_terminal() {
            bytes.iter().copied().filter(is_harmless).collect()
        } else {
            bytes.to_owned()
        };
        let _ = stdout.write_all(&harmless).and_then(|()| stdout.flush());
    }

    /// Prints data in the place of what was printed so before, on a terminal, and after it elsewhere.
    pub fn redraw(self, text: &str) {
        let clear = if std::io::stdout().is_terminal() {
            "\x1b[H\x1b[2J"
        } else {
            ""
        };
        self.data(&format!("{clear}{text}\n"));
    }

    /// Whether what is printed with [`Self::redraw`] takes the place of what was there.
    pub fn can_redraw(self) -> bool {
        std::io::stdout().is_terminal()
    }

    /// Says what happens, to the person who asked for it.
    pub fn say(self, text: &str) {
        // Without a stderr there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// Says that a step is done: a verb, and to what.
    pub fn done(self, verb: &str, what: &str) {
        self.say(&format!(
            "{} {what}",
            self.paint("32;1", &format!("{verb:>12}"))
        ));
    }

    /// Says what to mind.
    pub fn warn(self, text: &str) {
        self.say(&format!("{}: {text}", self.paint("33;1", "warning")));
    }

    /// Says what went wrong and what to do about it.
    pub fn error(self, text: &str, hints: &[String]) {
        self.say(&format!("{}: {text}", self.paint("31;1", "error")));
        if !hints.is_empty() {
            self.say("");
        }
        for hint in hints {
            self.say(&format!("{}: {hint}", self.paint("36;1", "hint")));
        }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
