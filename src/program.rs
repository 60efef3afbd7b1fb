//! The program: parse, run, print what went wrong.

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Problem};
use crate::logging;
use crate::output::Printer;
use crate::slot_links;

/// All of `xpool`. `main.rs` only calls this: what it instantiates itself is compiled after the library, and for a second time.
pub fn main() -> ExitCode {
    let cli = Cli::parse_from(slot_links::command_line(std::env::args_os()));
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let wanted_log = std::env::var("RUST_LOG").ok();
    logging::start(
        cli.log_level(),
        wanted_log.as_deref(),
        no_colour,
        cli.log_file(),
    );
    let printer = Printer::new(no_colour);
    // There may be one for each build that waits.
    let mut runtime = if cli.is_helper() {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            printer.error(&format!("starting threads: {error}"), &[]);
            return ExitCode::FAILURE;
        }
    };
    let patience = cli.end_patience();
    let result = runtime.block_on(cli.run(printer));
    runtime.shutdown_timeout(patience);
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let problem = Problem::of(&error);
            printer.error(&problem.text, &problem.hints);
            ExitCode::from(problem.exit_code)
        }
    }
}
