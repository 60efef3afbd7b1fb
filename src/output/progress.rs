//! Steps that take their time: a spinner on a terminal, one line per step elsewhere.

use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::Printer;
use super::plain::{lines, plain};

/// The progress of one thing, step by step.
#[derive(Debug)]
pub struct Progress {
    printer: Printer,
    verb: &'static str,
    what: String,
    bar: ProgressBar,
    last: Mutex<String>,
}

impl Progress {
    /// Starts to show the progress of `what`: `Building image riscv64-linux`.
    pub fn new(printer: Printer, verb: &'static str, what: &str) -> Self {
        let bar = if printer.is_terminal() {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template(
            "{prefix:>12.cyan.bold} {wide_msg} {elapsed:>4.dim} {spinner}",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_prefix(verb);
        bar.set_message(lines(what));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self {
            printer,
            verb,
            what: what.to_owned(),
            bar,
            last: Mutex::default(),
        }
    }

    /// Shows the step that is being taken. The same step again shows nothing new.
    pub fn step(&self, step: &str) {
        let Ok(mut last) = self.last.lock() else {
            return;
        };
        if *last == step {
            return;
        }
        step.clone_into(&mut last);
        let text = format!("{}: {step}", self.what);
        if self.printer.is_terminal() {
            self.bar.set_message(lines(&text));
        } else {
            self.printer.done(self.verb, &text);
        }
    }

    /// Shows a line of what a tool says, above the step, without what a terminal would obey.
    pub fn line(&self, line: &str) {
        self.bar.suspend(|| self.printer.say(&plain(line)));
    }

    /// Ends with what was achieved: `Built image riscv64-linux (135 MiB)`.
    pub fn finish(self, verb: &str, what: &str) {
        self.bar.finish_and_clear();
        self.printer.done(verb, what);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
