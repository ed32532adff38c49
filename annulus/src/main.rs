//! See `annulus --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    annulus::cli::main()
}
