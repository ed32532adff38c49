//! What the calls of a client have taken: counts, and nothing that decides anything.
//!
//! Invariants: a call's first attempt is never counted as a retry, and every further one is. What a call
//! needs besides attempts (a routing table, a writer that is opened at once, the question what became of an
//! operation) is not counted. Counts only grow and never fail; they are read one by one, so that a reading
//! while calls are under way may be of slightly different moments.

use std::sync::atomic::{AtomicU64, Ordering};

use annulus_types::MayHaveApplied;

use crate::error::Error;

/// Counts since the client connected, over all of its clones and sessions. See
/// [`Client::stats`](crate::Client::stats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Calls for keys that began: gets, mutations, questions by
    /// [`Client::op_status`](crate::Client::op_status). A multi-get counts once for each of its keys.
    pub calls: u64,
    /// How often a node was asked for one of them. A writer that could not be opened counts too: the
    /// mutation that needed it was refused in that place.
    pub attempts: u64,
    /// Attempts beyond the first of their call: redirects that were followed, and repetitions after a
    /// refusal, a broken connection, silence or an unknown outcome.
    pub retries: u64,
    /// Calls that ended without anybody knowing whether something was changed.
    pub unknown: u64,
}

/// The counters behind [`Stats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    calls: AtomicU64,
    attempts: AtomicU64,
    retries: AtomicU64,
    unknown: AtomicU64,
}

impl Counters {
    /// So many calls begin.
    pub(crate) fn begin(&self, calls: usize) {
        self.calls.fetch_add(calls as u64, Ordering::Relaxed);
    }

    /// A node is asked for a call; `asked` counts how often that was so for it.
    pub(crate) fn attempt(&self, asked: &mut u32) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        if *asked > 0 {
            self.retries.fetch_add(1, Ordering::Relaxed);
        }
        *asked = asked.saturating_add(1);
    }

    /// A call ends like this.
    pub(crate) fn failed(&self, error: &Error) {
        if error.may_have_applied == MayHaveApplied::Unknown {
            self.unknown.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn read(&self) -> Stats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            calls: of(&self.calls),
            attempts: of(&self.attempts),
            retries: of(&self.retries),
            unknown: of(&self.unknown),
        }
    }
}
