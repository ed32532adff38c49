//! The meta test: the simulation replays. Two runs of a seed give the same trace to the byte, in
//! one process and in two, and another seed gives another. And a short run under faults holds.

use std::process::Command;
use std::time::Duration;

use annulus_sim::{Options, Report, run};

const SECONDS: u64 = 2;

fn short(seed: u64) -> Report {
    let options = Options { active: Duration::from_secs(SECONDS), ..Options::new(seed) };
    run(&options).expect("the simulation itself does not fail")
}

/// The standard output of a process that runs the seed.
fn trace_of_process(seed: u64) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_annulus-sim"))
        .args(["--seed", &seed.to_string(), "--seconds", &SECONDS.to_string(), "--trace"])
        .output()
        .expect("the simulation's binary starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).expect("a trace is text")
}

/// Fails with the first line in which two traces differ.
fn assert_equal(one: &str, two: &str) {
    for (number, (left, right)) in one.lines().zip(two.lines()).enumerate() {
        assert_eq!(left, right, "line {}", number + 1);
    }
    assert_eq!(one, two, "one trace is the beginning of the other");
}

fn printed(report: &Report) -> String {
    let mut text = report.trace.join("\n");
    text.push_str(&format!("\n{report}\n"));
    text
}

#[test]
fn a_seed_replays_byte_for_byte_and_another_seed_does_not() {
    let (first, second) = (short(7), short(7));
    assert!(first.trace.len() > 100, "a trace that could not show a difference");
    assert_equal(&printed(&first), &printed(&second));

    let process = trace_of_process(7);
    assert_equal(&process, &trace_of_process(7));
    assert_equal(&process, &printed(&first));

    let other = short(8);
    assert_ne!(first.trace, other.trace);
}

#[test]
fn short_runs_under_faults_hold() {
    for seed in [1, 2] {
        let active = Duration::from_secs(4);
        let options = Options { active, ..Options::new(seed) };
        let report = run(&options).expect("the simulation itself does not fail");
        let shown: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
        assert!(shown.is_empty(), "{shown:#?}\nreplay: {}", options.replay());
        assert!(report.counts.answered > 0 && report.counts.faults > 0, "{report}");
        assert!(report.counts.moves > 0, "a node has joined and got nothing: {report}");
    }
}
