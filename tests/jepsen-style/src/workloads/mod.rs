//! What clients do during a run, written down as they do it.
//!
//! - [`register`]: reads, writes, deletes and compare-and-swaps of shared keys; some reads at followers.
//! - [`set`]: elements added to keys of their own and to shared lists.
//! - [`counter`]: additions to shared numbers.
//! - [`bank`]: transfers between accounts, as atomic batches.
//! - [`modes`]: reads of the consistencies that need no leader, of keys with one writer each.
//!
//! Closed loops: each client sends its next operation when the last one has ended. What is written is
//! never written twice in a run, so that a checker can tell every write apart.
//!
//! Invariant: a client never guesses. An error is *failed* only when it says that nothing was and will be
//! applied; everything else is *unknown* (W4).
//!
//! What is judged, and how, is the checkers' part; who hurts the cluster meanwhile, the nemesis's.

pub mod bank;
pub mod counter;
pub mod modes;
pub mod register;
pub mod set;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_client::{Client, Error, Found, MayHaveApplied};
use annulus_runtime::{Clock, Random};
use anyhow::{Context, Result};
use futures_util::future::BoxFuture;

use crate::journal::End;

/// For what must succeed on a cluster that nothing hurts: the opening and the last reads.
const CALM: Duration = Duration::from_secs(30);

/// The workloads by the names of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// See [`register`].
    Register,
    /// See [`set`].
    Set,
    /// See [`counter`].
    Counter,
    /// See [`bank`].
    Bank,
    /// See [`modes`].
    Modes,
}

impl Kind {
    /// All of them.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("register", Self::Register),
        ("set", Self::Set),
        ("counter", Self::Counter),
        ("bank", Self::Bank),
        ("modes", Self::Modes),
    ];

    /// The one with this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, known)| *known == self).map_or("?", |(name, _)| name)
    }

    /// One run of it, whose events go to `sink`.
    #[must_use]
    pub fn begin(
        self,
        shape: Shape,
        clock: Clock,
        sink: Box<dyn Write + Send>,
    ) -> Box<dyn Workload> {
        match self {
            Self::Register => Box::new(register::Register::new(clock, sink)),
            Self::Set => Box::new(set::Set::new(clock, sink)),
            Self::Counter => Box::new(counter::Counter::new(clock, sink)),
            Self::Bank => Box::new(bank::Bank::new(clock, sink)),
            Self::Modes => Box::new(modes::Modes::new(shape, clock, sink)),
        }
    }
}

/// How large a workload is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Clients, each a closed loop.
    pub clients: u64,
    /// Keys that they share, at least 2.
    pub keys: u64,
    /// Nodes at the start of the run, from 1.
    pub nodes: u32,
    /// Deadline of one operation.
    pub deadline: Duration,
}

/// What one client of a run needs.
#[derive(Clone)]
pub struct Seat {
    /// Its number; that of the opening and the last reads is the number of clients.
    pub process: u64,
    /// Its connection.
    pub client: Client,
    /// Its randomness.
    pub random: Random,
    /// The size of the workload.
    pub shape: Shape,
    /// The run.
    pub run: Arc<Run>,
}

/// One run of a workload: what was recorded, and how to go on. Clients are spawned as tasks, so the
/// futures own what they need.
pub trait Workload: Send + Sync {
    /// Writes what clients expect to find, before they start.
    fn open(&self, seat: Seat) -> BoxFuture<'static, Result<()>> {
        drop(seat);
        Box::pin(std::future::ready(Ok(())))
    }

    /// One client, until the run stops and its present operation has ended.
    fn client(&self, seat: Seat) -> BoxFuture<'static, ()>;

    /// Reads what is there after the clients have ended and the cluster is healed.
    fn close(&self, seat: Seat) -> BoxFuture<'static, Result<()>> {
        drop(seat);
        Box::pin(std::future::ready(Ok(())))
    }

    /// Judges what was recorded; says in words what holds.
    ///
    /// # Errors
    /// What is wrong, or why nothing can be said.
    fn judge(&self) -> Result<String>;
}

/// How many operations ended in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Answered.
    pub answered: u64,
    /// Certainly not applied.
    pub failed: u64,
    /// Outcome not known.
    pub unknown: u64,
}

/// Shared by the clients of one run.
pub struct Run {
    stop: AtomicBool,
    next_value: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    unknown: AtomicU64,
}

impl Default for Run {
    fn default() -> Self {
        Self::new()
    }
}

impl Run {
    /// A run in which nothing has happened.
    #[must_use]
    pub fn new() -> Self {
        Self {
            stop: AtomicBool::new(false),
            next_value: AtomicU64::new(1),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        }
    }

    /// Ends the loops after their present operation.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether the loops shall end.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            answered: self.answered.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            unknown: self.unknown.load(Ordering::Relaxed),
        }
    }

    /// A value that no other operation of the run writes, from 1 on without gaps.
    pub fn fresh_value(&self) -> u64 {
        self.next_value.fetch_add(1, Ordering::Relaxed)
    }

    /// The values that were handed out so far.
    #[must_use]
    pub fn values(&self) -> std::ops::Range<u64> {
        1..self.next_value.load(Ordering::Relaxed)
    }

    /// Counts an operation that has ended.
    pub fn count<A>(&self, end: &End<A>) {
        let counter = match end {
            End::Ok(_) => &self.answered,
            End::Failed => &self.failed,
            End::Unknown => &self.unknown,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The end that an error stands for.
fn end_of<A>(error: &Error) -> End<A> {
    match error.may_have_applied {
        MayHaveApplied::No => End::Failed,
        MayHaveApplied::Yes | MayHaveApplied::Unknown => End::Unknown,
    }
}

/// The text of a value; `None` when the key is absent.
fn text_of(found: &Found) -> Result<Option<&str>> {
    let value = found.value.as_deref();
    value.map(|value| std::str::from_utf8(value).context("a value is no text")).transpose()
}

/// Stands for a value that is no number, where numbers alone are written: no write has this one.
pub(crate) const NO_NUMBER: u64 = u64::MAX;

/// What a read of a numbered key saw; `None` when the key is absent.
pub(crate) fn seen_in(found: &Found) -> Option<u64> {
    found.value.as_ref().map(|_| number_of(found).unwrap_or(NO_NUMBER))
}

/// The number that a value is; `None` when the key is absent, or the value is something else.
pub(crate) fn number_of<N: std::str::FromStr>(found: &Found) -> Option<N> {
    std::str::from_utf8(found.value.as_deref()?).ok()?.parse().ok()
}
