//! The `xpool` binary: parse, run, print what went wrong.

use std::process::ExitCode;

use clap::Parser;
use xpool::cli::{Cli, Problem};
use xpool::logging;
use xpool::output::Printer;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(cli.log_level());
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let printer = Printer::new(no_colour);
    match cli.run(printer).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let problem = Problem::of(&error);
            printer.error(&problem.text, &problem.hints);
            ExitCode::from(problem.exit_code)
        }
    }
}
