//! `cargo xtask test`: every test of the workspace, with the dev profile.
//!
//! Plain `cargo test`, so that it needs nothing that does not come with cargo, and its own closing
//! lines are the last words on stdout.

use crate::step;

/// Runs the tests.
pub fn run() -> anyhow::Result<()> {
    step::run_cargo(&step::root()?, &["test", "--workspace"], &[])
}
