//! The `xpool` binary: parse, run, print what went wrong.

use std::process::ExitCode;

use clap::Parser;
use xpool::cli::{Cli, Problem};
use xpool::logging;
use xpool::output::Printer;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    logging::start(cli.log_level(), no_colour, cli.log_file());
    let printer = Printer::new(no_colour);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
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
