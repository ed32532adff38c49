//! The engine as one process sees it. The rows may live on; the process may not touch them any more.
//!
//! Parts of a node run on for a moment after it was killed. Without this an old process could apply
//! entries to what the next one has opened.
//!
//! What was made durable is remembered beside the rows: a story decides which of the two a power cut
//! leaves.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use annulus_engine::{Batch, Engine, EngineError, EngineStats, MemoryEngine, Row, View};
use bytes::Bytes;
use parking_lot::Mutex;

#[derive(Debug)]
pub(super) struct ProcessEngine {
    rows: Arc<MemoryEngine>,
    durable: Arc<Mutex<Vec<Row>>>,
    ended: AtomicBool,
}

/// All keys that an engine may hold.
fn everything() -> Range<Bytes> {
    Bytes::new()..Bytes::from_static(&[0xff; 64])
}

/// An engine that holds just these rows.
pub(super) fn holding(rows: &[Row]) -> MemoryEngine {
    let engine = MemoryEngine::new();
    let mut batch = Batch::default();
    for (key, value) in rows {
        batch.put(key.clone(), value.clone());
    }
    engine.apply(batch).expect("memory does not fail");
    engine
}

impl ProcessEngine {
    pub(super) fn new(rows: Arc<MemoryEngine>, durable: Arc<Mutex<Vec<Row>>>) -> Self {
        Self { rows, durable, ended: AtomicBool::new(false) }
    }

    /// The process is gone: every later call fails and changes nothing.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    fn living(&self, action: &'static str) -> Result<&MemoryEngine, EngineError> {
        if self.ended.load(Ordering::SeqCst) {
            let reason = "the process has ended".to_owned();
            return Err(EngineError::Failed { action, reason });
        }
        Ok(&self.rows)
    }
}

impl Engine for ProcessEngine {
    fn apply(&self, batch: Batch) -> Result<(), EngineError> {
        self.living("apply a batch")?.apply(batch)
    }

    fn get(&self, keys: &[&[u8]]) -> Result<Vec<Option<Bytes>>, EngineError> {
        self.living("get")?.get(keys)
    }

    fn rows(&self, range: Range<Bytes>, limit: usize) -> Result<Vec<Row>, EngineError> {
        self.living("read rows")?.rows(range, limit)
    }

    fn view(&self, range: Range<Bytes>) -> Result<Arc<dyn View>, EngineError> {
        self.living("take a view")?.view(range)
    }

    fn delete_range(&self, range: Range<Bytes>) -> Result<(), EngineError> {
        self.living("delete a range")?.delete_range(range)
    }

    fn make_durable(&self) -> Result<(), EngineError> {
        let rows = self.living("make durable")?;
        rows.make_durable()?;
        *self.durable.lock() = rows.rows(everything(), usize::MAX)?;
        Ok(())
    }

    fn stats(&self) -> EngineStats {
        self.rows.stats()
    }
}
