//! A selectable engine: sled 0.34.7, one ordered tree with atomic batches. A cache, not a store.
//!
//! Owns one sled database in one folder: the default tree holds all keys, a second one the overflow
//! of views. Everything else goes through [`crate::Engine`].
//!
//! Warnings, from its source and from crash runs:
//! - **A power cut destroys it more often than not.** On Linux it writes with `sync_file_range`,
//!   which commits neither the file's size nor the drive's cache, and returns from `flush` on that.
//!   Of 15 stores cut off, 7 opened again and 6 of these had lost acknowledged flushes. With a sync
//!   of our own of its file and folder, which `make_durable` adds, 12 of 15 were good, one had lost
//!   everything and two reported corruption on the first read. Values over 128 KiB lie in files of
//!   their own that nobody syncs. So nothing may be purged on its word (E1): a checkpoint of ours
//!   is the truth, and a machine that went down begins with an empty engine. `kill -9` and a clean
//!   close lost nothing.
//! - It may open empty, without an error, where it held data. The caller compares its applied id
//!   with the log.
//! - It panics on some damage. While it opens that is caught, and its first and last row are read
//!   before it counts as open; damage in between comes to light when it is read.
//! - Space: it holds about three times the live data, and its cleaning runs only on its own flush
//!   thread, so that thread stays on. Memory: the cache limit is soft, budget two to three times.
//! - It has no update since 2021. Its only known cure for a grown or slow folder is a fresh one.
//!
//! One moment (R3): a sled batch takes a lock of the whole process against every single read, but
//! two reads may see different batches, and sled has no snapshots. Here a readers-writer lock, the
//! *gate*, is held over a batch, and over all reads of one answer. A sequence counter with retries
//! would wait for a running batch all the same, inside sled, and could be starved by writers.
//!
//! Views: before a batch is applied, the former values of its keys are saved for every view that is
//! held and does not have them yet; a view reads those first and the tree second (E2). They are
//! kept in memory up to a limit and in the second tree beyond it.
//!
//! Failures: an error of sled is passed on and sled stops by itself; no error is retried, except
//! that the lock of a folder is awaited for a second, because sled lets go of it only when its
//! background threads have finished with an earlier instance.

mod former;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ::sled::{Config, Db, IVec, Tree};
use annulus_runtime::{Disk, Open, RealDisk};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use self::former::Former;
use crate::common::{
    APPLY, LastChanges, OPEN, READ, cut, guarded, is_environment, last_changes, ordered,
    read_within,
};
use crate::{Batch, Engine, EngineError, EngineStats, Row, View};

/// How often sled's thread flushes, syncs and cleans. Without it sled never frees space.
const FLUSH_EVERY_MS: u64 = 500;
/// The tree of former values that no longer fit into memory.
const OVERFLOW_TREE: &str = "former";
/// Keys that one batch of a range delete removes: readers of the whole process wait for a batch.
const DELETE_KEYS: usize = 256;
/// Tries and pauses for a locked folder: one second in all.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Sizes of a sled engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SledOptions {
    /// Pages kept in memory, bytes; sled takes two to three times as much.
    pub cache_bytes: u64,
    /// Former values that one view keeps in memory before they go to the disk, bytes (E2).
    pub view_bytes_most: usize,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self { cache_bytes: 128 * 1024 * 1024, view_bytes_most: 16 * 1024 * 1024 }
    }
}

/// See the module.
pub struct SledEngine {
    shared: Arc<Shared>,
}

/// What the engine and its views have in common. Locks are taken in the order of the fields.
struct Shared {
    /// Written over a batch, read over the reads of one answer.
    gate: RwLock<()>,
    /// The views that may still be held.
    views: Mutex<Vec<Weak<Former>>>,
    next_view: AtomicU64,
    view_bytes_most: usize,
    dir: PathBuf,
    overflow: Tree,
    tree: Tree,
    database: Db,
}

impl SledEngine {
    /// Opens the database in `dir`, creating what is missing. While the engine or a view of it
    /// lives, the folder is locked.
    ///
    /// # Errors
    /// `DoesNotOpen` when the folder is damaged, `Failed` when it is in use or the machine refuses.
    pub fn open(dir: &Path, options: SledOptions) -> Result<Self, EngineError> {
        guarded(dir, || Self::start(dir, options).map_err(|error| open_error(dir, &error)))
    }

    fn start(dir: &Path, options: SledOptions) -> ::sled::Result<Self> {
        let database = open_database(dir, options.cache_bytes)?;
        let tree = Tree::clone(&database);
        // The first page on either side: some damage shows only now.
        tree.first()?;
        tree.last()?;
        // Left over by views that were held when the process ended.
        let overflow = database.open_tree(OVERFLOW_TREE)?;
        overflow.clear()?;
        let shared = Shared {
            gate: RwLock::new(()),
            views: Mutex::new(Vec::new()),
            next_view: AtomicU64::new(0),
            view_bytes_most: options.view_bytes_most,
            dir: dir.to_owned(),
            overflow,
            tree,
            database,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    fn commit(&self, changes: &LastChanges) -> Result<(), EngineError> {
        let mut batch = ::sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&key[..], &value[..]),
                None => batch.remove(&key[..]),
            }
        }
        let _batch = self.shared.gate.write();
        self.shared
            .keep_former(changes)
            .and_then(|()| self.shared.tree.apply_batch(batch))
            .map_err(|error| EngineError::failed(APPLY, error))
    }
}

impl Shared {
    /// Saves what `changes` will overwrite for every held view that lacks it. Under the gate.
    fn keep_former(&self, changes: &LastChanges) -> ::sled::Result<()> {
        let mut held = Vec::new();
        self.views.lock().retain(|view| match view.upgrade() {
            Some(view) => {
                held.push(view);
                true
            }
            None => false,
        });
        for view in held {
            for (key, _) in changes.range::<Bytes, _>(view.range().clone()) {
                if view.lacks(key)? {
                    view.keep(key, self.value_of(key)?)?;
                }
            }
        }
        Ok(())
    }

    fn value_of(&self, key: &[u8]) -> ::sled::Result<Option<Bytes>> {
        Ok(self.tree.get(key)?.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn page(&self, range: Range<Bytes>, limit: usize) -> ::sled::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for row in self.tree.range(range).take(limit) {
            rows.push(owned(row?));
        }
        Ok(rows)
    }

    /// Deletes of the first keys of `range`.
    fn deletes(&self, range: Range<Bytes>, limit: usize) -> ::sled::Result<LastChanges> {
        let mut deletes = LastChanges::new();
        for key in self.tree.range(range).keys().take(limit) {
            deletes.insert(Bytes::copy_from_slice(&key?), None);
        }
        Ok(deletes)
    }
}

/// sled's rows hold on to whole pages; ours must not.
fn owned((key, value): (IVec, IVec)) -> Row {
    (Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value))
}

impl fmt::Debug for SledEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // sled's own prints every row.
        f.debug_struct("SledEngine").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

impl Engine for SledEngine {
    fn apply(&self, batch: Batch) -> Result<(), EngineError> {
        let changes = last_changes(batch)?;
        if changes.is_empty() { Ok(()) } else { self.commit(&changes) }
    }

    fn get(&self, keys: &[&[u8]]) -> Result<Vec<Option<Bytes>>, EngineError> {
        let _moment = self.shared.gate.read();
        keys.iter()
            .map(|key| self.shared.value_of(key))
            .collect::<::sled::Result<Vec<_>>>()
            .map_err(|error| EngineError::failed(READ, error))
    }

    fn get_within(
        &self,
        always: &[&[u8]],
        keys: &[&[u8]],
        bytes_most: usize,
    ) -> Result<Vec<Option<Bytes>>, EngineError> {
        let _moment = self.shared.gate.read();
        read_within(always, keys, bytes_most, |key| {
            self.shared.value_of(key).map_err(|error| EngineError::failed(READ, error))
        })
    }

    /// A page that is not cached is read from the file, and a running batch is waited for.
    fn may_block(&self) -> bool {
        true
    }

    fn rows(&self, range: Range<Bytes>, limit: usize) -> Result<Vec<Row>, EngineError> {
        let _moment = self.shared.gate.read();
        self.shared.page(ordered(range), limit).map_err(|error| EngineError::failed(READ, error))
    }

    fn view(&self, range: Range<Bytes>) -> Result<Arc<dyn View>, EngineError> {
        let shared = Arc::clone(&self.shared);
        let number = shared.next_view.fetch_add(1, Ordering::Relaxed);
        let overflow = shared.overflow.clone();
        let former = Former::new(number, ordered(range), shared.view_bytes_most, overflow);
        let former = Arc::new(former);
        {
            // No batch runs now, and the next one finds the view in the list.
            let _moment = shared.gate.read();
            shared.views.lock().push(Arc::downgrade(&former));
        }
        Ok(Arc::new(SledView { former, shared }))
    }

    fn delete_range(&self, range: Range<Bytes>) -> Result<(), EngineError> {
        let range = ordered(range);
        loop {
            // Batches, not single removes: a view may be held on the range.
            let deletes = self
                .shared
                .deletes(range.clone(), DELETE_KEYS)
                .map_err(|error| EngineError::failed(READ, error))?;
            if deletes.is_empty() {
                return Ok(());
            }
            self.commit(&deletes)?;
        }
    }

    fn make_durable(&self) -> Result<(), EngineError> {
        const ACTION: &str = "make its file durable";
        let shared = &self.shared;
        shared.database.flush().map_err(|error| EngineError::failed(ACTION, error))?;
        // sled writes its files itself, so they lie on the real disk whatever the node's disk is.
        RealDisk
            .open(&shared.dir.join("db"), Open::Read)
            .and_then(|file| file.sync_data())
            .and_then(|()| RealDisk.sync_dir(&shared.dir))
            .map_err(|error| EngineError::failed(ACTION, error))
    }

    fn stats(&self) -> EngineStats {
        // A folder that cannot be listed is reported by the next batch.
        EngineStats { bytes: self.shared.database.size_on_disk().unwrap_or(0) }
    }
}

/// The former values go first, while the database that they may lie in is still open.
struct SledView {
    former: Arc<Former>,
    shared: Arc<Shared>,
}

impl fmt::Debug for SledView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledView").field("range", self.former.range()).finish_non_exhaustive()
    }
}

impl SledView {
    fn read(&self, key: &[u8]) -> ::sled::Result<Option<Bytes>> {
        let _moment = self.shared.gate.read();
        match self.former.get(key)? {
            Some(value) => Ok(value),
            None => self.shared.value_of(key),
        }
    }
}

impl View for SledView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.read(key).map_err(|error| EngineError::failed(READ, error))
    }

    fn rows(&self, range: Range<Bytes>, limit: usize) -> Result<Vec<Row>, EngineError> {
        let range = cut(range, self.former.range());
        let _moment = self.shared.gate.read();
        self.former
            .page(&self.shared.tree, range, limit)
            .map_err(|error| EngineError::failed(READ, error))
    }
}

fn open_database(dir: &Path, cache_bytes: u64) -> ::sled::Result<Db> {
    let config =
        Config::new().path(dir).cache_capacity(cache_bytes).flush_every_ms(Some(FLUSH_EVERY_MS));
    let mut tries = 1;
    loop {
        match config.open() {
            Err(error) if is_locked(&error) && tries < LOCK_TRIES => {
                tries += 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// sled has no error of its own for this; the text is that of 0.34.7, its last release.
fn is_locked(error: &::sled::Error) -> bool {
    let ::sled::Error::Io(io) = error else { return false };
    io.to_string().starts_with("could not acquire lock")
}

fn open_error(dir: &Path, error: &::sled::Error) -> EngineError {
    match error {
        _ if is_locked(error) => EngineError::failed(OPEN, "it is in use"),
        ::sled::Error::Io(io) if is_environment(io) => EngineError::failed(OPEN, io),
        _ => EngineError::does_not_open(dir, error),
    }
}
