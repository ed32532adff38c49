//! See `annulus_sim::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    annulus_sim::cli::main()
}
