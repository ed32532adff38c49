//! What the tour found out, told while it goes on and once more at its end.
//!
//! Every figure is read from a clock or counted. A check that failed is never taken back, and one
//! that was never made is not counted as passed.

use super::text::{counted, grouped};

/// Problems shown of a check that failed.
const SHOWN: usize = 5;

/// Collects checks and the lines of the summary.
#[derive(Debug, Default)]
pub(super) struct Report {
    passed: u64,
    failed: u64,
    summary: Vec<(&'static str, String)>,
}

impl Report {
    /// A new part of the tour begins.
    pub(super) fn step(&self, title: &str) {
        println!("\n{title}");
    }

    /// What a person would type to see the same.
    pub(super) fn command(&self, line: &str) {
        println!("  $ annulus kvctl {line}");
    }

    /// Something worth knowing, which may go wrong without being a failure.
    pub(super) fn note(&self, text: &str) {
        println!("  {text}");
    }

    /// A promise of the product was put to the test. It held when nothing was found.
    pub(super) fn check(&mut self, promise: &str, found: &[String]) {
        if found.is_empty() {
            self.passed += 1;
            println!("  ok      {promise}");
            return;
        }
        self.failed += 1;
        println!("  FAILED  {promise}");
        for problem in found.iter().take(SHOWN) {
            println!("          {problem}");
        }
        if found.len() > SHOWN {
            println!("          and {} more", grouped((found.len() - SHOWN) as u64));
        }
    }

    /// A line of the summary.
    pub(super) fn sum_up(&mut self, what: &'static str, text: String) {
        self.summary.push((what, text));
    }

    /// Whether checks were made and all of them held.
    pub(super) fn is_good(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    /// The whole tour in a few lines.
    pub(super) fn print_summary(&self) {
        println!("\nIn short");
        for (what, text) in &self.summary {
            println!("  {what:<10} {text}");
        }
        let held = counted(self.passed, "check");
        let verdict = match self.failed {
            0 => format!("{held} held, none failed"),
            failed => format!("{held} held, {} FAILED", grouped(failed)),
        };
        println!("  {:<10} {verdict}", "checks");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_checks_that_were_made_and_held_are_good() {
        let mut report = Report::default();
        assert!(!report.is_good());
        report.check("a promise", &[]);
        assert!(report.is_good());
        report.check("another", &["a key is lost".to_owned()]);
        report.check("a third", &[]);
        assert!(!report.is_good());
    }
}
