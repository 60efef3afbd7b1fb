//! Everything that is printed: data on stdout, talk on stderr, progress on a terminal or one line per step elsewhere.
//!
//! Guests, builds and clients have written parts of it. So a terminal obeys nothing of what is printed here but what is put in here:
//! colours, and what clears the screen.

pub mod fold;
pub mod plain;
pub mod progress;
pub mod table;

use std::io::{IsTerminal, Write};

use serde::Serialize;

use plain::LogText;

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
        let _ = writeln!(std::io::stdout(), "{}", plain::lines(text));
    }

    /// Prints data as JSON.
    pub fn json(self, data: &impl Serialize) -> anyhow::Result<()> {
        self.data(&plain::json(&serde_json::to_string_pretty(data)?));
        Ok(())
    }

    /// Prints data as JSON on one line.
    pub fn json_line(self, data: &impl Serialize) -> anyhow::Result<()> {
        self.data(&plain::json(&serde_json::to_string(data)?));
        Ok(())
    }

    /// Prints a log as data, piece by piece.
    pub fn log(self) -> LogPrinter {
        LogPrinter::default()
    }

    /// Prints data in the place of what was printed so before, on a terminal, and after it elsewhere.
    pub fn redraw(self, text: &str) {
        if std::io::stdout().is_terminal() {
            let _ = write!(std::io::stdout(), "\x1b[H\x1b[2J");
        }
        self.data(&format!("{text}\n"));
    }

    /// Whether what is printed with [`Self::redraw`] takes the place of what was there.
    pub fn can_redraw(self) -> bool {
        std::io::stdout().is_terminal()
    }

    /// Says what happens, to the person who asked for it.
    pub fn say(self, text: &str) {
        say_after("", text);
    }

    /// Says that a step is done: a verb, and to what.
    pub fn done(self, verb: &str, what: &str) {
        let verb = self.paint("32;1", &format!("{verb:>12}"));
        say_after(&format!("{verb} "), what);
    }

    /// Says what to mind.
    pub fn warn(self, text: &str) {
        say_after(&format!("{}: ", self.paint("33;1", "warning")), text);
    }

    /// Says what went wrong and what to do about it.
    pub fn error(self, text: &str, hints: &[String]) {
        say_after(&format!("{}: ", self.paint("31;1", "error")), text);
        self.hints(hints);
    }

    /// Something that may be wrong, and what to do about it.
    pub fn warning(self, text: &str, hints: &[String]) {
        say_after(&format!("{}: ", self.paint("33;1", "warning")), text);
        self.hints(hints);
    }

    fn hints(self, hints: &[String]) {
        if !hints.is_empty() {
            self.say("");
        }
        for hint in hints {
            say_after(&format!("{}: ", self.paint("36;1", "hint")), hint);
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

/// Says a text after words of our own, which a terminal or a CI may obey.
fn say_after(own: &str, text: &str) {
    // Without a stderr there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{own}{}", plain::lines(text));
}

/// Prints a log without what a terminal would obey: what is printed may come to one by way of `tail`.
#[derive(Debug, Default)]
pub struct LogPrinter(LogText);

impl LogPrinter {
    /// Prints the next piece.
    pub fn print(&mut self, piece: &[u8]) {
        let (mut stdout, text) = (std::io::stdout(), self.0.add(piece));
        let printed = stdout.write_all(text.as_bytes());
        let _ = printed.and_then(|()| stdout.flush());
    }
}
