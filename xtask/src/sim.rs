//! `cargo xtask sim`: the deterministic simulation, one seed or many.
//!
//! Runs the binary of `tests/sim`, whose standard output is ours: with `--trace` it is equal to the
//! byte for equal seeds. A seed that fails is an error, with the command that replays it on
//! standard error.

use crate::step;

/// What the simulation is asked to run; `None` when the line names nothing of the kind.
fn words<'a>(line: &[&'a str]) -> Option<Vec<&'a str>> {
    let is_number = |text: &str| text.parse::<u64>().is_ok();
    let is_right = match line {
        ["--seed", seed] | ["--seed", seed, "--trace"] => is_number(seed),
        ["--seeds", range] => {
            range.split_once("..").is_some_and(|(first, end)| is_number(first) && is_number(end))
        }
        _ => false,
    };
    is_right.then(|| line.to_vec())
}

/// Runs the seeds that the line names; `None` when it names none.
pub fn run(line: &[&str]) -> Option<anyhow::Result<()>> {
    let words = words(line)?;
    let mut command = vec!["run", "--quiet", "--package", "annulus-sim", "--"];
    command.extend(words);
    Some(step::root().and_then(|root| step::run_cargo(&root, &command, &[])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_documented_lines_are_taken() {
        for good in [&["--seed", "7"][..], &["--seed", "7", "--trace"], &["--seeds", "0..20"]] {
            assert_eq!(words(good).as_deref(), Some(good));
        }
        for bad in [&["--seed"][..], &[], &["--seed", "x"], &["--seeds", "3"], &["--trace"]] {
            assert_eq!(words(bad), None, "{bad:?}");
        }
    }
}
