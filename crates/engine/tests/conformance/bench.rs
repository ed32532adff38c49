//! An engine in a folder of its own, and small helpers.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use annulus_engine::{
    Batch, Engine, EngineKind, FjallEngine, FjallOptions, MemoryEngine, Row, SledEngine,
    SledOptions,
};
use bytes::Bytes;
use tempfile::TempDir;

/// The engines and shapes under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Memory,
    Fjall,
    /// Flushes and compacts during a test.
    FjallTiny,
    Sled,
    /// Its views leave memory at once.
    SledSpilling,
}

impl Variant {
    pub fn kind(self) -> EngineKind {
        match self {
            Self::Memory => EngineKind::Memory,
            Self::Fjall | Self::FjallTiny => EngineKind::Fjall,
            Self::Sled | Self::SledSpilling => EngineKind::Sled,
        }
    }

    pub fn open(self, folder: &Folder) -> Arc<dyn Engine> {
        let dir = folder.engine();
        let fjall = |options| FjallEngine::open(&dir, options).expect("fjall opens");
        let sled = |options| SledEngine::open(&dir, options).expect("sled opens");
        match self {
            Self::Memory => Arc::new(MemoryEngine::new()),
            Self::Fjall => Arc::new(fjall(FjallOptions::default())),
            Self::FjallTiny => Arc::new(fjall(FjallOptions {
                memtable_bytes: 32 * 1024,
                ..FjallOptions::default()
            })),
            Self::Sled => Arc::new(sled(SledOptions::default())),
            Self::SledSpilling => {
                Arc::new(sled(SledOptions { view_bytes_most: 200, ..SledOptions::default() }))
            }
        }
    }
}

/// A folder that goes with the test, unless the test fails.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder for the test"))
    }

    pub fn engine(&self) -> PathBuf {
        self.0.path().join("engine")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.disable_cleanup(true);
            eprintln!("kept {}", self.0.path().display());
        }
    }
}

/// The engine is closed before its folder goes.
pub struct Bench {
    pub engine: Arc<dyn Engine>,
    pub variant: Variant,
    pub folder: Folder,
}

impl Bench {
    pub fn new(variant: Variant) -> Self {
        let folder = Folder::new();
        Self { engine: variant.open(&folder), variant, folder }
    }

    /// Closes the engine, which no view may hold, and opens it again.
    pub fn reopened(self) -> Self {
        let Self { engine, variant, folder } = self;
        drop(engine);
        Self { engine: variant.open(&folder), variant, folder }
    }
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// From the first key to the last that the tests use.
pub fn everything() -> Range<Bytes> {
    Bytes::new()..Bytes::from_static(&[u8::MAX; 4])
}

pub fn put(engine: &dyn Engine, rows: &[Row]) {
    let mut batch = Batch::default();
    for (key, value) in rows {
        batch.put(key.clone(), value.clone());
    }
    engine.apply(batch).expect("apply");
}

pub fn get(engine: &dyn Engine, key: &str) -> Option<Bytes> {
    let mut values = engine.get(&[key.as_bytes()]).expect("get");
    assert_eq!(values.len(), 1);
    values.remove(0)
}

pub fn all(engine: &dyn Engine) -> Vec<Row> {
    engine.rows(everything(), usize::MAX).expect("rows")
}

/// `count` rows in key order.
pub fn numbered(prefix: &str, count: usize) -> Vec<Row> {
    (0..count).map(|n| (bytes(&format!("{prefix}{n:05}")), bytes(&format!("value {n}")))).collect()
}

/// Reads a range in pages, as the trait says.
pub fn paged(
    range: Range<Bytes>,
    limit: usize,
    mut read: impl FnMut(Range<Bytes>, usize) -> Vec<Row>,
) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let Range { start: mut from, end } = range;
    loop {
        let page = read(from.clone()..end.clone(), limit);
        assert!(page.len() <= limit, "a page of {} rows, limit {limit}", page.len());
        let full = page.len() == limit;
        rows.extend(page);
        match rows.last() {
            Some((last, _)) if full => from = Bytes::from([&last[..], &[0]].concat()),
            _ => return rows,
        }
    }
}
