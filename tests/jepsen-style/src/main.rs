//! `annulus-harness`: one run from the command line. See `--help`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let reports = PathBuf::from("target/jepsen");
    match annulus_harness::command::run(&arguments, &reports) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("annulus-harness: {error:#}");
            ExitCode::FAILURE
        }
    }
}
