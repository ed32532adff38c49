//! When the keys of a shard end (W5): the index of their deadlines.
//!
//! The index lies in the engine behind the shard's data, one row for each key that has a deadline, in the
//! order of time (`annulus_engine::key`). Its rows are changed by the batch that changes their keys; they
//! travel in the shard's file, count in its digest and go with its prefix, as the data do (E3, E5). In
//! memory is a bound of the earliest deadline. What happens to a key that ends is `judge`'s business, and how
//! many may end in one entry `apply`'s.
//!
//! # The bound
//!
//! Removed rows leave traces in an engine over which it has to walk. A client that prolongs its keys again
//! and again removes the earliest row again and again; if each time the next one had to be found, every entry
//! would wait for such a walk, on every replica. So nothing is searched when a row is removed: the bound
//! stays where it was, and is only looked at again when an entry reaches it, or has no operations that would
//! have to wait. In a group without traffic the latter happens within one time entry, so that what is gone
//! does not go on asking for more of them.
//!
//! # Invariants
//!
//! - A key has a row if and only if its value has a deadline, and it is the same one.
//! - No row is before the bound; without a bound there are no rows. Unless it is in doubt, the bound is the
//!   earliest deadline.
//! - The bound depends on when the process was started, and what ends does not: at a time that has reached it,
//!   the bound is exact before anything ends.
//! - An entry reads about as many rows as it ends, never the whole index.
//!
//! Failure: a row that does not read, or an engine that does not answer, stops the replica (W8).

use std::ops::Range;

use annulus_engine::key::{self, Prefix};
use annulus_engine::{Batch, Engine, EngineError, Row};
use bytes::Bytes;

use super::unreadable;
use crate::stored::Ending;

/// A key whose deadline is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// In shard time, milliseconds.
    pub(super) deadline_ms: u64,
    /// The key under which the engine holds the value.
    pub(super) physical: Bytes,
    /// Bytes of the value.
    pub(super) bytes: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    /// The bound, milliseconds of shard time.
    next_ms: Option<u64>,
    /// A row at the bound was removed: the earliest deadline may be later.
    is_unsure: bool,
}

impl Deadlines {
    /// Reads the earliest deadline of a prefix.
    pub(super) fn load(engine: &dyn Engine, prefix: Prefix) -> Result<Self, EngineError> {
        let next_ms = earliest(engine, key::deadlines_range(prefix))?;
        Ok(Self { next_ms, is_unsure: false })
    }

    /// No deadline is before this, milliseconds of shard time; `None`: there is none.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.next_ms
    }

    /// Looks for the earliest deadline if it is in doubt, and the bound is reached at `now_ms` or nothing
    /// else is to be done. Before anything of the entry has changed the index.
    pub(super) fn look(
        &mut self,
        engine: &dyn Engine,
        prefix: Prefix,
        now_ms: u64,
        is_idle: bool,
    ) -> Result<(), EngineError> {
        if let Some(next_ms) = self.next_ms
            && self.is_unsure
            && (is_idle || next_ms <= now_ms)
        {
            // Nothing is before the bound, apart from traces of what was there.
            self.next_ms = earliest(engine, onwards(prefix, next_ms))?;
            self.is_unsure = false;
        }
        Ok(())
    }

    /// Takes the keys that are due at `now_ms`, in the order of their deadlines, `most` at most. They are to
    /// be ended, or [given back](Self::give_back). After [`Self::look`], and before anything of the entry
    /// has changed the index.
    pub(super) fn take_due(
        &mut self,
        engine: &dyn Engine,
        prefix: Prefix,
        now_ms: u64,
        most: usize,
    ) -> Result<Vec<Due>, EngineError> {
        let Some(next_ms) = self.next_ms.filter(|next_ms| *next_ms <= now_ms) else {
            return Ok(Vec::new());
        };
        let later = onwards(prefix, now_ms.saturating_add(1));
        let reached = key::deadlines_from(prefix, next_ms)..later.start.clone();
        // One more, which tells what comes next.
        let rows = engine.rows(reached, most.saturating_add(1))?;
        let mut due = rows.into_iter().map(due_of).collect::<Result<Vec<Due>, EngineError>>()?;
        self.next_ms = match due.get(most) {
            Some(left) => Some(left.deadline_ms),
            None => earliest(engine, later)?,
        };
        self.is_unsure = false;
        due.truncate(most);
        Ok(due)
    }

    /// This key, and those that were taken behind it, do not end yet.
    pub(super) fn give_back(&mut self, first: &Due) {
        self.next_ms = Some(first.deadline_ms);
    }

    /// A key gets a deadline; it has none now.
    pub(super) fn set(
        &mut self,
        physical: &Bytes,
        deadline_ms: u64,
        bytes: u64,
        batch: &mut Batch,
    ) {
        batch.put(key::deadline(physical, deadline_ms), Ending { bytes }.encode());
        if self.next_ms.is_none_or(|next_ms| deadline_ms <= next_ms) {
            self.next_ms = Some(deadline_ms);
            self.is_unsure = false;
        }
    }

    /// A key loses the deadline that it has.
    pub(super) fn clear(&mut self, physical: &Bytes, deadline_ms: u64, batch: &mut Batch) {
        batch.delete(key::deadline(physical, deadline_ms));
        self.is_unsure |= self.next_ms == Some(deadline_ms);
    }
}

/// The deadlines of a prefix that are not before a shard time, milliseconds.
fn onwards(prefix: Prefix, deadline_ms: u64) -> Range<Bytes> {
    key::deadlines_from(prefix, deadline_ms)..key::deadlines_range(prefix).end
}

/// The earliest deadline in a range of the index, milliseconds of shard time.
fn earliest(engine: &dyn Engine, range: Range<Bytes>) -> Result<Option<u64>, EngineError> {
    let first = engine.rows(range, 1)?.into_iter().next();
    first.map(|(row, _)| time_of(&row)).transpose()
}

fn time_of(row: &[u8]) -> Result<u64, EngineError> {
    key::deadline_of(row).map(|(deadline_ms, _)| deadline_ms).ok_or_else(no_deadline)
}

fn due_of((row, value): Row) -> Result<Due, EngineError> {
    let (deadline_ms, physical) = key::deadline_of(&row).ok_or_else(no_deadline)?;
    let Ending { bytes } = Ending::decode(value).map_err(unreadable)?;
    Ok(Due { deadline_ms, physical, bytes })
}

fn no_deadline() -> EngineError {
    unreadable("a row among the deadlines is none")
}
