//! `kvctl`: the command-line client. The same as `annulus kvctl`.

use std::process::ExitCode;

fn main() -> ExitCode {
    annulus::cli::kvctl(std::env::args_os().collect())
}
