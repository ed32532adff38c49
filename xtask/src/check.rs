//! `cargo xtask check`: formatting, lints and documentation by cargo's own tools, then our own rules
//! for files ([`tidy`]).
//!
//! The steps stand in the order of what they cost when nothing is built; the first that fails ends
//! the command.

use crate::{step, tidy};

/// Runs the steps.
pub fn run() -> anyhow::Result<()> {
    let root = step::root()?;
    step::run_cargo(&root, &["fmt", "--all", "--check"], &[])?;
    let lints = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    step::run_cargo(&root, &lints, &[])?;
    let strict = [("RUSTDOCFLAGS", "-D warnings")];
    step::run_cargo(&root, &["doc", "--workspace", "--no-deps"], &strict)?;
    step::timed("tidy", || step::report(&tidy::findings(&root)?))
}
