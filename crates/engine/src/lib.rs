//! The storage engine behind every replica: an ordered map of bytes with atomic batches.
//!
//! One engine per node holds the data and records of all its replicas, under the key layout of
//! [`key`] (E3, E4). The engine is a *view* of the log: it need not be durable at any moment, but
//! what survives a crash is a prefix of the applied batches (a batch is atomic and batches are
//! never reordered), so that replaying the log from the applied id that the engine itself holds
//! restores it. Nothing above this crate names a concrete engine.
//!
//! [`EngineKind`] lists the engines and [`open_or_move_aside`] is how a node starts one. All of
//! them pass one conformance suite (`tests/conformance`). A crash suite with real power cuts lives
//! outside this crate; what an engine may be trusted with follows from that suite (E1), not from
//! what its `make_durable` says.

pub mod key;

mod common;

pub mod fjall;
pub mod memory;
pub mod sled;

pub mod aside;
pub mod kind;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

pub use self::aside::{Opened, open_or_move_aside};
pub use self::fjall::{FjallEngine, FjallOptions};
pub use self::kind::{EngineKind, UnknownEngine, open};
pub use self::memory::MemoryEngine;
pub use self::sled::{SledEngine, SledOptions};

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sets a key.
    Put(Bytes, Bytes),
    /// Removes a key; removing an absent one is no error.
    Delete(Bytes),
}

/// Changes that become visible, and survive a crash, together or not at all. Later changes of one
/// key win over earlier ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// In order.
    pub changes: Vec<Change>,
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.changes.push(Change::Put(key.into(), value.into()));
    }

    /// Removes a key.
    pub fn delete(&mut self, key: impl Into<Bytes>) {
        self.changes.push(Change::Delete(key.into()));
    }
}

/// Why an engine could not do its work. Every one of them stops the replica (W8): none is an answer
/// to a client.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The folder does not hold an engine that opens; the caller moves it aside and refills. A
    /// folder in use and a disk that is full or forbids are `Failed`: moving would not help.
    #[error("the engine in {folder} does not open: {reason}")]
    DoesNotOpen {
        /// The folder.
        folder: String,
        /// What the engine said.
        reason: String,
    },
    /// Reading or writing failed.
    #[error("the engine failed to {action}: {reason}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// What the engine said.
        reason: String,
    },
}

/// Key and value of one row.
pub type Row = (Bytes, Bytes);

/// A read-only picture of a part of the engine at one moment. It never changes, however long it is
/// held and whatever is written meanwhile.
pub trait View: Send + Sync + Debug {
    /// The value of `key`, which must lie in the range that the view was made for.
    ///
    /// # Errors
    /// As the engine says.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Up to `limit` rows of `range` in key order (`range` is cut to the view's range). Fewer
    /// than `limit` rows mean that the range is exhausted. To go on, start at the last key with a
    /// zero byte appended.
    ///
    /// # Errors
    /// As the engine says.
    fn rows(&self, range: Range<Bytes>, limit: usize) -> Result<Vec<Row>, EngineError>;
}

/// Numbers for `status` and `/metrics`. All are approximations that cost nothing to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Bytes on disk, or in memory for the memory engine.
    pub bytes: u64,
}

/// An ordered map with atomic batches. All calls may block on a disk, unless [`Engine::may_block`] says
/// no; writers are serialised by the engine.
pub trait Engine: Send + Sync + Debug {
    /// Applies a batch atomically. Visible on return; durable only after [`Engine::make_durable`].
    /// Keys have 1 to 65,535 bytes and values less than 4 GiB; an empty batch does nothing.
    ///
    /// # Errors
    /// As the engine says; the batch is then applied as a whole or not at all after a restart, and
    /// the engine must not be used further. A key or value of a wrong length changes nothing.
    fn apply(&self, batch: Batch) -> Result<(), EngineError>;

    /// The values of `keys`, all read at one moment between batches (R3).
    ///
    /// # Errors
    /// As the engine says.
    fn get(&self, keys: &[&[u8]]) -> Result<Vec<Option<Bytes>>, EngineError>;

    /// As [`Engine::get`] of `always` and then `keys`, but ends with the value with which those of `keys`
    /// have `bytes_most` bytes together, so that nobody who asks for much holds all of it: fewer values
    /// than keys mean that the rest was left out. At least the first of `keys` is read.
    ///
    /// An engine that does not do better reads everything and then leaves out.
    ///
    /// # Errors
    /// As the engine says.
    fn get_within(
        &self,
        always: &[&[u8]],
        keys: &[&[u8]],
        bytes_most: usize,
    ) -> Result<Vec<Option<Bytes>>, EngineError> {
        let all: Vec<&[u8]> = always.iter().chain(keys).copied().collect();
        let mut values = self.get(&all)?.into_iter();
        common::read_within(always, keys, bytes_most, |_| Ok(values.next().flatten()))
    }

    /// Whether a read may wait on a disk. Whoever must not wait reads such an engine on another thread.
    fn may_block(&self) -> bool {
        true
    }

    /// Up to `limit` rows of `range` in key order, all read at one moment. As [`View::rows`].
    ///
    /// # Errors
    /// As the engine says.
    fn rows(&self, range: Range<Bytes>, limit: usize) -> Result<Vec<Row>, EngineError>;

    /// A picture of `range`, taken between batches. At most two are held at once per node (E2);
    /// memory spent on held ones is the engine's own business.
    ///
    /// # Errors
    /// As the engine says.
    fn view(&self, range: Range<Bytes>) -> Result<Arc<dyn View>, EngineError>;

    /// Removes every key of `range`. Not atomic: a crash may leave some of them, and the caller
    /// calls again. Used only on ranges that no record points to (E3).
    ///
    /// # Errors
    /// As the engine says.
    fn delete_range(&self, range: Range<Bytes>) -> Result<(), EngineError>;

    /// Returns once every batch applied before the call survives a power cut, as far as the engine
    /// itself can promise (E1 says what may be built on that promise).
    ///
    /// # Errors
    /// As the engine says.
    fn make_durable(&self) -> Result<(), EngineError>;

    /// Numbers about the whole engine.
    fn stats(&self) -> EngineStats;
}
