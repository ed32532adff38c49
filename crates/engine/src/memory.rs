//! The engine of tests and of the simulation: a sorted map under a lock.
//!
//! Nothing is on a disk: it starts empty, a restart empties it, and `make_durable` promises nothing
//! that could be lost. It fails only where every engine does, on keys and values of wrong lengths.
//!
//! A view copies the rows of its range when it is taken. The copy is of handles, not of bytes
//! (`Bytes` counts references), and costs the view's own range; the other way, a shared map copied
//! on the first write after each view, would let one view of one small shard charge a writer for
//! the whole node.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::common::{cut, last_changes, ordered, read_within};
use crate::{Batch, Engine, EngineError, EngineStats, Row, View};

/// See the module.
#[derive(Default)]
pub struct MemoryEngine {
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    rows: BTreeMap<Bytes, Bytes>,
    /// Sum of the lengths of all keys and values.
    bytes: usize,
}

impl State {
    fn set(&mut self, key: Bytes, value: Option<Bytes>) {
        let key_bytes = key.len();
        let former = match value {
            Some(value) => {
                self.bytes += key_bytes + value.len();
                self.rows.insert(key, value)
            }
            None => self.rows.remove(&key),
        };
        if let Some(former) = former {
            self.bytes -= key_bytes + former.len();
        }
    }
}

/// Up to `limit` rows of `range`, which must be ordered.
fn page(rows: &BTreeMap<Bytes, Bytes>, range: Range<Bytes>, limit: usize) -> Vec<Row> {
    rows.range::<Bytes, _>(range)
        .take(limit)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

impl MemoryEngine {
    /// An empty engine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Debug for MemoryEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryEngine").finish_non_exhaustive()
    }
}

impl Engine for MemoryEngine {
    fn apply(&self, batch: Batch) -> Result<(), EngineError> {
        let changes = last_changes(batch)?;
        let mut state = self.state.write();
        for (key, value) in changes {
            state.set(key, value);
        }
        Ok(())
    }

    fn get(&self, keys: &[&[u8]]) -> Result<Vec<Option<Bytes>>, EngineError> {
        let state = self.state.read();
        Ok(keys.iter().map(|key| state.rows.get(*key).cloned()).collect())
    }

    fn get_within(
        &self,
        always: &[&[u8]],
        keys: &[&[u8]],
        bytes_most: usize,
    ) -> Result<Vec<Option<Bytes>>, EngineError> {
        let state = self.state.read();
        read_within(always, keys, bytes_most, |key| Ok(state.rows.get(key).cloned()))
    }

    fn may_block(&self) -> bool {
        false
    }

    fn rows(&self, range: Range<Bytes>, limit: usize) -> Result<Vec<Row>, EngineError> {
        Ok(page(&self.state.read().rows, ordered(range), limit))
    }

    fn view(&self, range: Range<Bytes>) -> Result<Arc<dyn View>, EngineError> {
        let range = ordered(range);
        let rows = page(&self.state.read().rows, range.clone(), usize::MAX);
        Ok(Arc::new(MemoryView { range, rows: rows.into_iter().collect() }))
    }

    fn delete_range(&self, range: Range<Bytes>) -> Result<(), EngineError> {
        let mut state = self.state.write();
        for (key, _) in page(&state.rows, ordered(range), usize::MAX) {
            state.set(key, None);
        }
        Ok(())
    }

    fn make_durable(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn stats(&self) -> EngineStats {
        EngineStats { bytes: self.state.read().bytes as u64 }
    }
}

struct MemoryView {
    range: Range<Bytes>,
    rows: BTreeMap<Bytes, Bytes>,
}

impl fmt::Debug for MemoryView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryView").field("range", &self.range).finish_non_exhaustive()
    }
}

impl View for MemoryView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.rows.get(key).cloned())
    }

    fn rows(&self, range: Range<Bytes>, limit: usize) -> Result<Vec<Row>, EngineError> {
        Ok(page(&self.rows, cut(range, &self.range), limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_follow_the_rows() {
        let engine = MemoryEngine::new();
        let mut batch = Batch::default();
        batch.put("key", "value");
        batch.put("other", "");
        engine.apply(batch).unwrap();
        assert_eq!(engine.stats().bytes, 13);

        let mut batch = Batch::default();
        batch.put("key", "v");
        batch.delete("absent");
        engine.apply(batch).unwrap();
        assert_eq!(engine.stats().bytes, 9);

        engine.delete_range(Bytes::from_static(b"a")..Bytes::from_static(b"z")).unwrap();
        assert_eq!(engine.stats().bytes, 0);
    }
}
