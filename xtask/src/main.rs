//! The automation of the repository, run as `cargo xtask COMMAND`.
//!
//! Each command is one module with a `run` function and one arm in [`dispatch`]; a command with
//! arguments takes the rest of the line. This package builds with nothing of ours: it must work while
//! the product does not compile. A failed step ends the command with exit code 1, a line that is not
//! understood prints the usage and ends with 2.

mod check;
mod deps;
mod jepsen;
mod sim;
mod step;
mod test;
mod tidy;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  check   formatting, lints, documentation, and the rules for project files
  deps    the direction of dependencies between the packages
  jepsen  real processes under nemeses, judged: [--workload register|set|counter|bank|modes]
          [--nemesis N,...] [--minutes M] [--seed S] [--nodes N] [--clients N]; the nemeses: kill,
          kill-all, stop, pause, none; halves, isolate, one-way (partition); drain, weight, add-node (moves)
  load    a closed loop on a release build: [--seconds S] [--clients N] [--reads PERCENT]
          [--value-bytes N] [--nodes N]
  sim     the deterministic simulation: --seed N [--trace], or --seeds A..B
  test    every test of the workspace, with the dev profile";

fn main() -> ExitCode {
    let line: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    if let ["help" | "--help" | "-h"] = line.as_slice() {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match dispatch(&line) {
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the command that the line names; `None` when it names none.
fn dispatch(line: &[&str]) -> Option<anyhow::Result<()>> {
    match line {
        ["check"] => Some(check::run()),
        ["deps"] => Some(deps::run()),
        ["jepsen", rest @ ..] => jepsen::run(rest),
        ["load", rest @ ..] => Some(jepsen::load(rest)),
        ["sim", rest @ ..] => sim::run(rest),
        ["test"] => Some(test::run()),
        _ => None,
    }
}
