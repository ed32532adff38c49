//! The trace of a run: one line per event, in the order of the events.
//!
//! A line is the simulated time in microseconds, who, and what. Invariant: nothing in a line comes
//! from outside the seed, so no addresses of memory, no ids of the operating system, no wall clock,
//! and nothing in the order of a hash map. Equal seeds give equal lines; the meta test relies on
//! it.
//!
//! Lines are kept, and printed as they come when asked for, so that a run that hangs or panics has
//! shown how far it came. A standard output that is gone is no reason to fail a run.

use std::fmt::Display;
use std::io::Write as _;
use std::sync::Arc;

use annulus_runtime::Clock;
use parking_lot::Mutex;

/// Collects the lines of one run. Cheap to clone; clones are the same trace.
#[derive(Clone)]
pub(crate) struct Trace(Arc<Mutex<Lines>>);

struct Lines {
    /// None before the run has begun.
    clock: Option<Clock>,
    lines: Vec<String>,
    prints: bool,
}

impl Trace {
    /// An empty trace; with `prints` its lines also go to standard output.
    pub(crate) fn new(prints: bool) -> Self {
        Self(Arc::new(Mutex::new(Lines { clock: None, lines: Vec::new(), prints })))
    }

    /// From now on lines carry the time of `clock`.
    pub(crate) fn begin(&self, clock: Clock) {
        self.0.lock().clock = Some(clock);
    }

    pub(crate) fn line(&self, who: impl Display, what: impl Display) {
        let mut inner = self.0.lock();
        let at_us = inner.clock.as_ref().map_or(0, Clock::monotonic_us);
        let line = format!("{at_us:>10} {who}: {what}");
        if inner.prints {
            // Whoever closed the other end wants no more lines.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
        inner.lines.push(line);
    }

    /// The lines so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().lines.clone()
    }
}
