//! Figures as a person reads them, and the one line that shows progress.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

/// `1234567` as `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun: `1 file`, `2 files`.
pub(super) fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(number))
}

/// Microseconds as seconds with one digit.
pub(super) fn seconds(us: u64) -> String {
    let tenths = us.saturating_add(50_000) / 100_000;
    format!("{}.{} s", grouped(tenths / 10), tenths % 10)
}

/// Microseconds as whole milliseconds.
pub(super) fn millis(us: u64) -> String {
    format!("{} ms", grouped(us.saturating_add(500) / 1000))
}

/// Bytes as MiB with one digit.
pub(super) fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) / (1024 * 1024);
    format!("{}.{} MiB", grouped(tenths / 10), tenths % 10)
}

/// So many per second.
pub(super) fn per_second(count: u64, us: u64) -> u64 {
    count.saturating_mul(1_000_000) / us.max(1)
}

/// One line on standard error that grows; none when nobody watches.
#[derive(Debug)]
pub(super) struct Progress {
    what: &'static str,
    total: u64,
    done: AtomicU64,
    is_watched: bool,
}

impl Progress {
    pub(super) fn new(what: &'static str, total: usize) -> Self {
        let is_watched = std::io::stderr().is_terminal();
        Self { what, total: total as u64, done: AtomicU64::new(0), is_watched }
    }

    /// One more is done.
    pub(super) fn step(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        // A hundred pictures are enough for a person.
        let every = (self.total / 100).max(1);
        if self.is_watched && (done.is_multiple_of(every) || done == self.total) {
            let (what, total) = (self.what, self.total);
            // Nothing depends on whether it is seen.
            let _ =
                write!(std::io::stderr(), "\r  {what} {} of {} ", grouped(done), grouped(total));
        }
    }
}

impl Drop for Progress {
    /// Takes the line away.
    fn drop(&mut self) {
        if self.is_watched {
            let _ = write!(std::io::stderr(), "\r{:60}\r", "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_readable() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(counted(1, "file") + ", " + &counted(2000, "file"), "1 file, 2,000 files");
        assert_eq!([49_999, 1_949_999, 61_000_000].map(seconds), ["0.0 s", "1.9 s", "61.0 s"]);
        assert_eq!(millis(812_499), "812 ms");
        assert_eq!(mebibytes(1024 * 1024 * 3 / 2), "1.5 MiB");
        assert_eq!((per_second(300, 100_000), per_second(1, 0)), (3000, 1_000_000));
    }
}
