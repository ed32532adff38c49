//! The default engine: fjall, a log-structured merge tree.
//!
//! Owns one fjall database in one folder, with one keyspace for all keys. fjall could give every
//! replica a keyspace of its own; prefixes (E3) take that part instead, because a batch, its
//! applied id and a switch of prefixes then never cross keyspaces, a thousand replicas need no
//! thousand memtables and folders, and creating or destroying a replica is a batch like any other.
//! The price is that a destroyed prefix is deleted key by key, in the background.
//!
//! Batches: each is one journal record with a checksum, written to the operating system before it
//! becomes visible and synced by nobody until `make_durable`. After `kill -9` every batch is there;
//! after a power cut a prefix of them that is not shorter than the last `make_durable`.
//!
//! One moment (R3): readers do not ask fjall for a snapshot of "now". A flush or compaction in
//! fjall 3.1 takes a sequence number like a batch does and publishes it when it ends; a batch that
//! was numbered before and is still being inserted becomes readable with it, half. So the writer
//! takes the snapshot, after its own batch and before the next, and readers share that one. They
//! never wait for a writer, nor for its journal.
//!
//! Failures: the first failed write or sync poisons the database, every later batch is refused, and
//! reads go on from what is in memory and tables. A writer that waits for a flush that died waits
//! for ever: the watchdog of the applying thread notices. Damage that fjall finds while it opens is
//! an error, or a panic, caught; a panic while it holds its own table of keyspaces cannot be
//! caught, because fjall panics again while it unwinds.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ::fjall::{
    Database, Keyspace, KeyspaceCreateOptions, LsmError, OwnedWriteBatch, PersistMode, Readable,
    Snapshot,
};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::common::{
    APPLY, LastChanges, OPEN, READ, after, cut, guarded, is_environment, last_changes, ordered,
    read_within,
};
use crate::{Batch, Engine, EngineError, EngineStats, Row, View};

/// The name on disk; never changed.
const KEYSPACE: &str = "annulus";
/// fjall refuses a smaller limit for its journals.
const JOURNAL_BYTES_LEAST: u64 = 64 * 1024 * 1024;
/// Keys that one batch of a range delete removes: 64 MiB of journal with the longest keys, some
/// hundred KiB with usual ones.
const DELETE_KEYS: usize = 1_000;

/// Sizes of a fjall engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FjallOptions {
    /// Blocks of tables kept in memory, bytes.
    pub cache_bytes: u64,
    /// A memtable is flushed when it is larger, bytes. Up to five exist at once. Kept in the folder
    /// from its creation on; another value here changes only new folders.
    pub memtable_bytes: u64,
    /// The oldest journals are flushed away when all are larger together, bytes; at least 64 MiB.
    pub journal_bytes_most: u64,
}

/// fjall's own sizes (memtable 64 MiB, journals 512 MiB) made a node hold three times its live data
/// on disk until it closed, and made a restart replay up to 512 MiB.
impl Default for FjallOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 * 1024 * 1024,
            memtable_bytes: 16 * 1024 * 1024,
            journal_bytes_most: 128 * 1024 * 1024,
        }
    }
}

/// See the module.
pub struct FjallEngine {
    /// Everything applied so far and nothing half; replaced by the writer after each batch.
    latest: RwLock<Arc<Snapshot>>,
    /// Held over a batch and the snapshot after it.
    writer: Mutex<()>,
    keyspace: Keyspace,
    database: Database,
}

impl FjallEngine {
    /// Opens the database in `dir`, creating what is missing. While the engine or a view of it
    /// lives, the folder is locked.
    ///
    /// # Errors
    /// `DoesNotOpen` when the folder is damaged, `Failed` when it is in use or the machine refuses.
    pub fn open(dir: &Path, options: FjallOptions) -> Result<Self, EngineError> {
        guarded(dir, || Self::start(dir, options).map_err(|error| open_error(dir, &error)))
    }

    fn start(dir: &Path, options: FjallOptions) -> ::fjall::Result<Self> {
        let database = Database::builder(dir)
            .cache_size(options.cache_bytes)
            .max_journaling_size(options.journal_bytes_most.max(JOURNAL_BYTES_LEAST))
            .open()?;
        let keyspace = database.keyspace(KEYSPACE, || {
            KeyspaceCreateOptions::default().max_memtable_size(options.memtable_bytes)
        })?;
        let latest = RwLock::new(Arc::new(database.snapshot()));
        Ok(Self { latest, writer: Mutex::new(()), keyspace, database })
    }

    fn now(&self) -> Arc<Snapshot> {
        Arc::clone(&self.latest.read())
    }

    fn commit(&self, changes: &LastChanges) -> Result<(), EngineError> {
        let _writer = self.writer.lock();
        let mut batch: OwnedWriteBatch = self.database.batch();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&self.keyspace, &key[..], &value[..]),
                None => batch.remove(&self.keyspace, &key[..]),
            }
        }
        batch.commit().map_err(|error| EngineError::failed(APPLY, error))?;
        let next = Arc::new(self.database.snapshot());
        let former = std::mem::replace(&mut *self.latest.write(), next);
        // Closing a snapshot may run fjall's bookkeeping: not under the lock that readers take.
        drop(former);
        Ok(())
    }
}

impl fmt::Debug for FjallEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FjallEngine").field("path", &self.keyspace.path()).finish_non_exhaustive()
    }
}

impl Engine for FjallEngine {
    fn apply(&self, batch: Batch) -> Result<(), EngineError> {
        let changes = last_changes(batch)?;
        if changes.is_empty() { Ok(()) } else { self.commit(&changes) }
    }

    fn get(&self, keys: &[&[u8]]) -> Result<Vec<Option<Bytes>>, EngineError> {
        let snapshot = self.now();
        keys.iter().map(|key| value_of(&self.keyspace, &snapshot, key)).collect()
    }

    fn get_within(
        &self,
        always: &[&[u8]],
        keys: &[&[u8]],
        bytes_most: usize,
    ) -> Result<Vec<Option<Bytes>>, EngineError> {
        let snapshot = self.now();
        read_within(always, keys, bytes_most, |key| value_of(&self.keyspace, &snapshot, key))
    }

    /// A block that is not cached is read from its table.
    fn may_block(&self) -> bool {
        true
    }

    fn rows(&self, range: Range<Bytes>, limit: usize) -> Result<Vec<Row>, EngineError> {
        page(&self.keyspace, &self.now(), range, limit)
    }

    fn view(&self, range: Range<Bytes>) -> Result<Arc<dyn View>, EngineError> {
        let range = ordered(range);
        Ok(Arc::new(FjallView { snapshot: self.now(), keyspace: self.keyspace.clone(), range }))
    }

    fn delete_range(&self, range: Range<Bytes>) -> Result<(), EngineError> {
        let Range { start: mut from, end } = range;
        while from < end {
            let mut changes = LastChanges::new();
            for row in self.now().range(&self.keyspace, from..end.clone()).take(DELETE_KEYS) {
                let key = row.key().map_err(|error| EngineError::failed(READ, error))?;
                changes.insert(Bytes::copy_from_slice(&key), None);
            }
            let Some((last, _)) = changes.last_key_value() else { break };
            // Not from the start again: that would walk over all tombstones written so far.
            from = after(last);
            self.commit(&changes)?;
        }
        Ok(())
    }

    fn make_durable(&self) -> Result<(), EngineError> {
        self.database
            .persist(PersistMode::SyncAll)
            .map_err(|error| EngineError::failed("make its journal durable", error))
    }

    fn stats(&self) -> EngineStats {
        // Only a poisoned database cannot tell, and the next batch reports that.
        EngineStats { bytes: self.database.disk_space().unwrap_or(0) }
    }
}

/// Holding one keeps compaction from dropping what it sees.
struct FjallView {
    snapshot: Arc<Snapshot>,
    keyspace: Keyspace,
    range: Range<Bytes>,
}

impl fmt::Debug for FjallView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FjallView").field("range", &self.range).finish_non_exhaustive()
    }
}

impl View for FjallView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        value_of(&self.keyspace, &self.snapshot, key)
    }

    fn rows(&self, range: Range<Bytes>, limit: usize) -> Result<Vec<Row>, EngineError> {
        page(&self.keyspace, &self.snapshot, cut(range, &self.range), limit)
    }
}

fn value_of(
    keyspace: &Keyspace,
    snapshot: &Snapshot,
    key: &[u8],
) -> Result<Option<Bytes>, EngineError> {
    let value = snapshot.get(keyspace, key).map_err(|error| EngineError::failed(READ, error))?;
    Ok(value.map(|value| Bytes::copy_from_slice(&value)))
}

fn page(
    keyspace: &Keyspace,
    snapshot: &Snapshot,
    range: Range<Bytes>,
    limit: usize,
) -> Result<Vec<Row>, EngineError> {
    let mut rows = Vec::new();
    if range.is_empty() {
        return Ok(rows);
    }
    for row in snapshot.range(keyspace, range).take(limit) {
        let (key, value) = row.into_inner().map_err(|error| EngineError::failed(READ, error))?;
        rows.push((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)));
    }
    Ok(rows)
}

fn open_error(dir: &Path, error: &::fjall::Error) -> EngineError {
    use ::fjall::Error;
    match error {
        Error::Locked => EngineError::failed(OPEN, "it is in use"),
        Error::Io(io) | Error::Storage(LsmError::Io(io)) if is_environment(io) => {
            EngineError::failed(OPEN, io)
        }
        _ => EngineError::does_not_open(dir, error),
    }
}
