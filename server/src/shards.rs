//! The shards of this node: the replicated machine that changes them, and the reads that look at
//! them.
//!
//! Each group has one [`ShardMachine`]; all of them share one [`Shards`], in which readers find a
//! shard by token. `apply` carries out an entry, `judge` says what a mutation does to its keys,
//! `deadlines` which keys end by time, `records` how shards' records lie in the engine, `snapshot` how shards
//! leave and enter, `graves` what becomes of data that no record names any more.
//!
//! # Invariants
//!
//! - Every operation is judged by the shard that it names (W8): not in this group, or not the owner
//!   of the key, and it is refused at apply, whatever any route said.
//! - One operation that changes something takes one revision of its shard (W1); no change, no
//!   revision.
//! - A named mutation takes effect once (W3): its shard's writer table is part of the shard's record,
//!   changed by the batch of the data and sent with them.
//! - An answer's data, revision, epoch and shard time are read at one point (R3): the keys, the head of
//!   the record and the row of the group, in one read of the engine.
//! - A reader holds its [`Shard`] from check to last byte (E6); until then its data stay. A head that
//!   names another prefix than the one that was read means that the shard was switched under the read:
//!   it starts over.
//! - Keys end by applied entries (W5). A read judges no time: a key past its deadline is there until an entry
//!   has ended it, on every replica the same one.

mod apply;
mod deadlines;
mod graves;
mod judge;
mod records;
mod snapshot;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use annulus_engine::key::{self, Prefix};
use annulus_engine::{Batch, Engine, EngineError, Row};
use annulus_raft::machine::{group_time_of, state_key};
use annulus_raft::{Applying, FileSpec, Import, Machine, Operation};
use annulus_types::limits::ENDS_PER_ENTRY;
use annulus_types::{GroupId, NamespaceId, ShardId, Token, token_of};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use self::deadlines::Deadlines;
use self::graves::Graves;
use crate::stored::{Head, Value};
use crate::weaken::{Weaken, Weakened};
use crate::writers::Writers;

/// A shard that this node hosts. Never changes; a switched shard is another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its id.
    pub id: ShardId,
    /// The group that hosts it.
    pub group: GroupId,
    prefix: Prefix,
    first: u16,
    count: u16,
}

impl Shard {
    /// Whether its run holds `token`. The record that is read with the data has the last word.
    #[must_use]
    pub fn owns(&self, token: Token) -> bool {
        let micro = token.micro_slice();
        micro >= self.first && micro - self.first < self.count
    }
}

/// What one read saw, all at one point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The head of the shard's record.
    pub head: Head,
    /// The value, if the key exists.
    pub value: Option<Value>,
}

/// What one read of several keys of a shard saw, all at one point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenAll {
    /// The head of the shard's record.
    pub head: Head,
    /// The shard's time, milliseconds (W5).
    pub shard_time_ms: u64,
    /// The values of the leading keys; `None` where a key does not exist.
    pub values: Vec<Option<Value>>,
}

impl SeenAll {
    /// Bytes of all values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.values.iter().flatten().map(|value| value.value.len()).sum()
    }
}

/// All shards of this node, by their first micro-slice.
pub struct Shards {
    engine: Arc<dyn Engine>,
    by_first: RwLock<BTreeMap<u16, Arc<Shard>>>,
    next_prefix: Mutex<u64>,
    graves: Graves,
    weakened: Weakened,
}

const NEXT_PREFIX: &str = "next-prefix";

fn unreadable(error: impl std::fmt::Display) -> EngineError {
    EngineError::Failed { action: "read a shard", reason: error.to_string() }
}

impl Shards {
    /// Reads what the engine says about itself; shards come with their groups. Data that no record
    /// names, because a crash cut their installation or their end short, are left to
    /// [`Shards::sweep`].
    ///
    /// # Errors
    /// As the engine says, or when a record does not decode.
    pub fn open(engine: Arc<dyn Engine>) -> Result<Arc<Self>, EngineError> {
        Self::open_weakened(engine, Weakened::default())
    }

    fn open_weakened(
        engine: Arc<dyn Engine>,
        weakened: Weakened,
    ) -> Result<Arc<Self>, EngineError> {
        let stored = engine.get(&[&key::node(NEXT_PREFIX)])?.into_iter().next().flatten();
        let next = match stored {
            None => 1,
            Some(bytes) => {
                let bytes: [u8; 8] = bytes.as_ref().try_into().map_err(unreadable)?;
                u64::from_be_bytes(bytes)
            }
        };
        let survey = graves::survey(engine.as_ref())?;
        let next_prefix = Mutex::new(next.max(survey.next));
        let graves = Graves::of(survey.orphans);
        let by_first = RwLock::default();
        Ok(Arc::new(Self { engine, by_first, next_prefix, graves, weakened }))
    }

    /// The shard that owns `token`, if this node hosts it.
    #[must_use]
    pub fn find(&self, token: Token) -> Option<Arc<Shard>> {
        let by_first = self.by_first.read();
        by_first.range(..=token.micro_slice()).next_back().map(|(_, shard)| Arc::clone(shard))
    }

    /// All shards, in order of their slices.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Shard>> {
        self.by_first.read().values().cloned().collect()
    }

    /// The head of a shard's record.
    ///
    /// # Errors
    /// As the engine says.
    pub fn head(&self, shard: &Shard) -> Result<Option<Head>, EngineError> {
        let head_key = records::head_key(shard.group, shard.id);
        let found = self.engine.get(&[&head_key])?.into_iter().next().flatten();
        found.map(Head::decode).transpose().map_err(unreadable)
    }

    /// Reads a key. `None` when the shard was switched or does not own the token: look it up again.
    ///
    /// # Errors
    /// As the engine says, and when stored bytes do not decode or do not match their checksum: the
    /// replica's state is then not to be trusted.
    pub fn read(
        &self,
        shard: &Shard,
        namespace: NamespaceId,
        user_key: &[u8],
    ) -> Result<Option<Seen>, EngineError> {
        let seen = self.read_all(shard, namespace, &[user_key], usize::MAX)?;
        Ok(seen.map(|SeenAll { head, values, .. }| Seen {
            head,
            value: values.into_iter().next().flatten(),
        }))
    }

    /// Reads keys of a shard, until the stored values have `bytes_most` bytes together, but at least the
    /// first: fewer values than keys mean that the rest was left out. `None` when the shard was switched or
    /// does not own all of the keys: look them up again.
    ///
    /// # Errors
    /// As [`Shards::read`].
    pub fn read_all(
        &self,
        shard: &Shard,
        namespace: NamespaceId,
        user_keys: &[&[u8]],
        bytes_most: usize,
    ) -> Result<Option<SeenAll>, EngineError> {
        let tokens: Vec<Token> = user_keys.iter().map(|user_key| token_of(user_key)).collect();
        let data: Vec<Bytes> = user_keys
            .iter()
            .zip(&tokens)
            .map(|(user_key, token)| key::data(shard.prefix, namespace, *token, user_key))
            .collect();
        let data: Vec<&[u8]> = data.iter().map(AsRef::as_ref).collect();
        let head_key = records::head_key(shard.group, shard.id);
        let state_key = state_key(shard.group);
        let found = self.engine.get_within(&[&head_key, &state_key], &data, bytes_most)?;
        let mut found = found.into_iter();
        let (head, state) = (found.next().flatten(), found.next().flatten());
        let Some(head) = head else { return Ok(None) };
        let head = Head::decode(head).map_err(unreadable)?;
        if head.prefix != shard.prefix || !tokens.iter().all(|token| head.owns(*token)) {
            return Ok(None);
        }
        let shard_time_ms = head.shard_time_ms(group_time_of(state.as_deref())?);
        let mut values = found.map(checked).collect::<Result<Vec<_>, _>>()?;
        if self.weakened.is(Weaken::ReadsJudgeTime) {
            let is_over = |value: &Value| (1..=shard_time_ms).contains(&value.deadline_ms);
            for value in &mut values {
                if value.as_ref().is_some_and(is_over) {
                    *value = None;
                }
            }
        }
        Ok(Some(SeenAll { head, shard_time_ms, values }))
    }

    /// Whether reads may wait on a disk.
    #[must_use]
    pub fn may_block(&self) -> bool {
        self.engine.may_block()
    }

    /// Takes a prefix that was never used on this node. The number is stored before it is used, in a
    /// batch of its own: a crash wastes numbers, and never gives one twice.
    fn take_prefix(&self) -> Result<Prefix, EngineError> {
        let mut next = self.next_prefix.lock();
        let taken = *next;
        let mut batch = Batch::default();
        batch.put(key::node(NEXT_PREFIX), (taken + 1).to_be_bytes().to_vec());
        self.engine.apply(batch)?;
        *next = taken + 1;
        Ok(Prefix(taken))
    }

    /// Readers find these shards of a group from now on, and no others. The data of the former ones
    /// stay until nobody holds them.
    fn switch(&self, group: GroupId, shards: Vec<Shard>) {
        let mut by_first = self.by_first.write();
        by_first.retain(|_, former| {
            if former.group == group {
                self.graves.add(former.prefix, Arc::downgrade(former));
            }
            former.group != group
        });
        for shard in shards {
            by_first.insert(shard.first, Arc::new(shard));
        }
    }

    /// Deletes data that no record names and no reader holds any more (E3, E6); returns of how many
    /// prefixes. May take long and blocks.
    ///
    /// # Errors
    /// As the engine says; what is left is tried again by the next call.
    pub fn sweep(&self) -> Result<usize, EngineError> {
        let free = self.graves.take_free();
        for (deleted, prefix) in free.iter().enumerate() {
            if let Err(error) = self.engine.delete_range(key::data_range(*prefix)) {
                free[deleted..].iter().for_each(|left| self.graves.add(*left, Weak::new()));
                return Err(error);
            }
        }
        Ok(free.len())
    }
}

/// A stored value, whole.
fn checked(stored: Option<Bytes>) -> Result<Option<Value>, EngineError> {
    let value = stored.map(Value::decode).transpose().map_err(unreadable)?;
    if let Some(value) = &value
        && crc32fast::hash(&value.value) != value.crc
    {
        return Err(unreadable("a value does not match its checksum"));
    }
    Ok(value)
}

/// The replicated machine of one group's shards.
pub struct ShardMachine {
    group: GroupId,
    shards: Arc<Shards>,
    applied: Mutex<Applied>,
}

/// A shard's record as the last entry has left it.
struct Held {
    head: Head,
    writers: Writers,
    deadlines: Deadlines,
}

struct Applied {
    held: BTreeMap<ShardId, Held>,
    /// Shards of the batch in the making.
    created: Vec<Shard>,
    /// How many keys and writers any entry may end (W5): [`ENDS_PER_ENTRY`], fewer in some tests.
    ends_least: usize,
}

impl ShardMachine {
    /// Reads the records of the group's shards and makes them known to readers.
    ///
    /// # Errors
    /// As the engine says, or when a record does not decode.
    pub fn open(group: GroupId, shards: Arc<Shards>) -> Result<Arc<Self>, EngineError> {
        let held = records::load(shards.engine.as_ref(), group)?;
        {
            let mut by_first = shards.by_first.write();
            for (shard, Held { head, .. }) in &held {
                by_first.insert(head.first, Arc::new(shard_of(group, *shard, head)));
            }
        }
        let applied = Applied { held, created: Vec::new(), ends_least: ENDS_PER_ENTRY };
        Ok(Arc::new(Self { group, shards, applied: Mutex::new(applied) }))
    }

    /// The shards that the group hosts here.
    #[must_use]
    pub fn hosted(&self) -> Vec<ShardId> {
        self.applied.lock().held.keys().copied().collect()
    }
}

fn shard_of(group: GroupId, id: ShardId, head: &Head) -> Shard {
    Shard { id, group, prefix: head.prefix, first: head.first, count: head.count }
}

impl Machine for ShardMachine {
    fn apply(
        &self,
        at: &Applying,
        operations: Vec<Operation>,
        batch: &mut Batch,
    ) -> Result<Vec<Bytes>, EngineError> {
        self.apply_entry(at, operations, batch)
    }

    fn batch_visible(&self) {
        let created = std::mem::take(&mut self.applied.lock().created);
        if created.is_empty() {
            return;
        }
        let mut by_first = self.shards.by_first.write();
        for shard in created {
            by_first.insert(shard.first, Arc::new(shard));
        }
    }

    fn next_end_ms(&self) -> Option<u64> {
        let applied = self.applied.lock();
        let ends = applied.held.values().filter_map(|held| {
            let end_ms = held.next_end_ms()?;
            Some(held.head.group_time_ms(end_ms))
        });
        ends.min()
    }

    fn files(&self) -> Vec<FileSpec> {
        snapshot::files(self.group, &self.applied.lock().held)
    }

    fn export(&self, file: u64, row: Row) -> Result<Row, EngineError> {
        snapshot::export(self.group, ShardId(file), row)
    }

    fn import(self: Arc<Self>) -> Box<dyn Import> {
        Box::new(snapshot::Incoming::new(self))
    }

    /// The records are rows of the group, and go with them: only what is in memory is forgotten here.
    fn destroy(&self, _batch: &mut Batch) {
        let mut applied = self.applied.lock();
        applied.held.clear();
        applied.created.clear();
        // Readers find none of them any more; their data go when the last one has gone (E6).
        self.shards.switch(self.group, Vec::new());
    }
}

#[cfg(test)]
mod tests;
