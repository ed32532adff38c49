//! One step of a command: run a cargo command or a piece of work, say how long it took.
//!
//! Children run in the workspace root, read nothing and write straight to our own stdout and stderr,
//! so that what they print arrives unchanged. Our own lines go to stderr. A child that fails, or
//! that cannot be started, is an error of the step.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context;

/// The root of the workspace that this package belongs to.
///
/// Read when it runs, not compiled in: a folder that is moved keeps working.
pub fn root() -> anyhow::Result<PathBuf> {
    let own = std::env::var_os("CARGO_MANIFEST_DIR")
        .context("CARGO_MANIFEST_DIR is not set; run this as `cargo xtask`")?;
    let root = Path::new(&own).parent().context("the folder of xtask has no parent")?;
    Ok(root.to_path_buf())
}

/// The cargo that runs us, about to run `args` in `root`.
pub fn cargo(root: &Path, args: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(args).current_dir(root).stdin(Stdio::null());
    command
}

/// Runs cargo with `args` and these additional variables, as a step of its own.
pub fn run_cargo(root: &Path, args: &[&str], variables: &[(&str, &str)]) -> anyhow::Result<()> {
    timed(&format!("cargo {}", args.join(" ")), || {
        let status = cargo(root, args)
            .envs(variables.iter().copied())
            .status()
            .context("cargo could not be started")?;
        if !status.success() {
            anyhow::bail!("cargo {}: {status}", args.join(" "));
        }
        Ok(())
    })
}

/// Does `work` and prints the wall minutes that it took, whatever came of it.
#[expect(clippy::disallowed_methods, reason = "no part of the product, so there is no Clock")]
pub fn timed(label: &str, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    eprintln!("xtask: {label}");
    let started = Instant::now();
    let outcome = work();
    let minutes = started.elapsed().as_secs_f64() / 60.0;
    let word = if outcome.is_ok() { "done" } else { "failed" };
    eprintln!("xtask: {label}: {word} in {minutes:.2} min");
    outcome
}

/// Prints what a check found; an error when that is anything.
pub fn report(found: &[String]) -> anyhow::Result<()> {
    for line in found {
        eprintln!("{line}");
    }
    match found.len() {
        0 => Ok(()),
        count => anyhow::bail!("{count} found, see above"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_fail_a_step_and_their_absence_does_not() {
        assert!(timed("with a finding", || report(&["something".to_owned()])).is_err());
        assert!(timed("without", || report(&[])).is_ok());
    }
}
