//! When the keys of a shard end (W5): the index of their deadlines.
//!
//! The index lies in the engine behind the shard's data, one row for each key that has a deadline, in the
//! order of time (`annulus_engine::key`). Its rows are changed by the batch that changes their keys; they
//! travel in the shard's file, count in its digest and go with its prefix, as the data do (E3, E5). In
//! memory is the earliest deadline, and what the entry at hand has changed, which the engine does not show
//! yet. What happens to a key that ends is `judge`'s business, and how many may end in one entry `apply`'s.
//!
//! # Invariants
//!
//! - A key has a row if and only if its value has a deadline, and it is the same one.
//! - Between two entries the earliest deadline is known exactly. So nothing is read to learn that nothing is
//!   due, and a shard without deadlines asks for no time entries.
//! - An entry reads about as many rows as it ends or removes, never the whole index.
//!
//! Failure: a row that does not read, or an engine that does not answer, stops the replica (W8).

use std::collections::BTreeMap;

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
    next_ms: Option<u64>,
    /// Rows that the entry at hand has set, or else removed.
    changed: BTreeMap<Bytes, bool>,
    /// A row of the earliest deadline was removed: the next one has to be looked for.
    is_unsure: bool,
}

impl Deadlines {
    /// Reads the earliest deadline of a prefix.
    pub(super) fn load(engine: &dyn Engine, prefix: Prefix) -> Result<Self, EngineError> {
        let first = engine.rows(key::deadlines_range(prefix), 1)?.into_iter().next();
        let next_ms = first.map(|(row, _)| time_of(&row)).transpose()?;
        Ok(Self { next_ms, ..Self::default() })
    }

    /// The earliest deadline, milliseconds of shard time.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.next_ms
    }

    /// The keys that are due at `now_ms`, in the order of their deadlines, `most` at most. Before anything
    /// of the entry has changed the index.
    pub(super) fn due(
        &self,
        engine: &dyn Engine,
        prefix: Prefix,
        now_ms: u64,
        most: usize,
    ) -> Result<Vec<Due>, EngineError> {
        let Some(next_ms) = self.next_ms.filter(|next_ms| *next_ms <= now_ms) else {
            return Ok(Vec::new());
        };
        let end = key::deadlines_from(prefix, now_ms.saturating_add(1));
        let rows = engine.rows(key::deadlines_from(prefix, next_ms)..end, most)?;
        rows.into_iter().map(due_of).collect()
    }

    /// A key gets a deadline; it has none now.
    pub(super) fn set(
        &mut self,
        physical: &Bytes,
        deadline_ms: u64,
        bytes: u64,
        batch: &mut Batch,
    ) {
        let row = key::deadline(physical, deadline_ms);
        batch.put(row.clone(), Ending { bytes }.encode());
        self.changed.insert(row, true);
        self.next_ms = Some(self.next_ms.map_or(deadline_ms, |next_ms| next_ms.min(deadline_ms)));
    }

    /// A key loses the deadline that it has.
    pub(super) fn clear(&mut self, physical: &Bytes, deadline_ms: u64, batch: &mut Batch) {
        let row = key::deadline(physical, deadline_ms);
        batch.delete(row.clone());
        self.changed.insert(row, false);
        self.is_unsure |= self.next_ms == Some(deadline_ms);
    }

    /// The entry is judged: finds out what the earliest deadline is now. The engine does not show yet what
    /// the entry has changed.
    pub(super) fn settle(
        &mut self,
        engine: &dyn Engine,
        prefix: Prefix,
    ) -> Result<(), EngineError> {
        let changed = std::mem::take(&mut self.changed);
        if !std::mem::take(&mut self.is_unsure) {
            return Ok(());
        }
        let set = changed.iter().find(|(_, is_set)| **is_set).map(|(row, _)| row.clone());
        let removed = changed.values().filter(|is_set| !**is_set).count();
        let mut range = key::deadlines_range(prefix);
        if let Some(next_ms) = self.next_ms {
            // Nothing is before it, apart from traces of what was there, which cost the engine time.
            range.start = key::deadlines_from(prefix, next_ms);
        }
        // One more than were removed: if there is one that was not, it is among them.
        let mut rows = engine.rows(range, removed + 1)?.into_iter().map(|(row, _)| row);
        let stays = rows.find(|row| changed.get(row) != Some(&false));
        let first = stays.into_iter().chain(set).min();
        self.next_ms = first.map(|row| time_of(&row)).transpose()?;
        Ok(())
    }
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
