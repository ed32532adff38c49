//! The command line: one seed, or many with a summary.
//!
//! Standard output holds what a seed decides and nothing else, so that it can be compared byte for
//! byte: the trace when asked for, and one line for each seed. Violations, the command that replays
//! a seed, and the product's own log lines (`--log`) go to standard error. Exit code 0 when every
//! seed held, 1 when one did not, 2 when the line is not understood.

use std::process::ExitCode;
use std::time::Duration;

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::{Options, run};

const USAGE: &str = "\
usage: annulus-sim --seed N [--trace] [--seconds S] [--log]
       annulus-sim --seeds A..B [--seconds S] [--log]

  --seed N      run one seed
  --seeds A..B  run the seeds from A to B - 1, with a summary
  --trace       print every event
  --seconds S   simulated seconds under faults (default 24)
  --log         the product's own log lines, on standard error";

/// A line that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    first: u64,
    end: u64,
    prints: bool,
    active: Duration,
    logs: bool,
}

fn parse(words: &[&str]) -> Option<Line> {
    let mut seeds = None;
    let (mut prints, mut logs, mut active) = (false, false, Options::ACTIVE);
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match *word {
            "--seed" => {
                let seed: u64 = rest.next()?.parse().ok()?;
                seeds = Some((seed, seed.checked_add(1)?));
            }
            "--seeds" => {
                let (first, end) = rest.next()?.split_once("..")?;
                seeds = Some((first.parse().ok()?, end.parse().ok()?));
            }
            "--seconds" => active = Duration::from_secs(rest.next()?.parse().ok()?),
            "--trace" => prints = true,
            "--log" => logs = true,
            _ => return None,
        }
    }
    let (first, end) = seeds?;
    (first < end).then_some(Line { first, end, prints, active, logs })
}

/// Reads the command line of the process and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some(line) = parse(&words) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if line.logs {
        begin_to_log();
    }
    let mut failed = 0_u64;
    for seed in line.first..line.end {
        let options = Options { active: line.active, prints: line.prints, ..Options::new(seed) };
        if !run_seed(&options) {
            failed += 1;
        }
    }
    if line.end - line.first > 1 {
        println!("{} seeds, {failed} failed", line.end - line.first);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the seed held.
fn run_seed(options: &Options) -> bool {
    let held = match run(options) {
        Ok(report) => {
            println!("{report}");
            for violation in &report.violations {
                eprintln!("seed {}: {violation}", options.seed);
            }
            report.violations.is_empty()
        }
        Err(error) => {
            println!("seed {}: FAILED", options.seed);
            eprintln!("seed {}: {error:#}", options.seed);
            false
        }
    };
    if !held {
        eprintln!("replay: {}", options.replay());
    }
    held
}

fn begin_to_log() {
    let targets = Targets::new()
        .with_default(Level::INFO)
        .with_target("openraft", Level::ERROR)
        .with_target("h2", Level::WARN);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time();
    // Another subscriber is in place already.
    drop(tracing_subscriber::registry().with(targets).with(layer).try_init());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood_whole_or_not_at_all() {
        let line = parse(&["--seed", "7", "--trace"]).unwrap();
        assert_eq!((line.first, line.end, line.prints), (7, 8, true));
        assert_eq!(line.active, Options::ACTIVE);
        let line = parse(&["--seeds", "3..5", "--seconds", "2", "--log"]).unwrap();
        assert_eq!((line.first, line.end, line.prints, line.logs), (3, 5, false, true));
        assert_eq!(line.active, Duration::from_secs(2));
        for words in [
            &["--trace"][..],
            &[],
            &["--seed"],
            &["--seed", "x"],
            &["--seeds", "5"],
            &["--seeds", "5..5"],
            &["--seed", "1", "more"],
        ] {
            assert_eq!(parse(words), None, "{words:?}");
        }
    }
}
