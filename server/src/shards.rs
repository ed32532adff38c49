//! The shards of this node: the replicated machine that changes them, and the reads that look at
//! them.
//!
//! Each group has one [`ShardMachine`]; all of them share one [`Shards`], in which readers find a
//! shard by token. `judge` says what an operation does to a key, `snapshot` how shards leave and
//! enter, `graves` what becomes of data that no record names any more.
//!
//! # Invariants
//!
//! - Every operation is judged by the shard that it names (W8): not in this group, or not the owner
//!   of the key, and it is refused at apply, whatever any route said.
//! - One operation that changes something takes one revision of its shard (W1); no change, no
//!   revision.
//! - An answer's data and revision are read at one point (R3): the key and the head of the record,
//!   in one read of the engine.
//! - A reader holds its [`Shard`] from check to last byte (E6); until then its data stay. A head that
//!   names another prefix than the one that was read means that the shard was switched under the read:
//!   it starts over.

mod graves;
mod judge;
mod snapshot;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use annulus_engine::key::{self, Prefix};
use annulus_engine::{Batch, Engine, EngineError, Row};
use annulus_raft::{Applying, FileSpec, Import, Machine, Operation};
use annulus_types::{GroupId, NamespaceId, Revision, ShardId, Token, token_of};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use self::graves::Graves;
use self::judge::{Known, apply_to_key};
use crate::operation::{Op, Outcome};
use crate::stored::{Head, VALUE_HEADER, Value};

/// A shard that this node hosts. Never changes; a switched shard is another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its id.
    pub id: ShardId,
    /// The group that hosts it.
    pub group: GroupId,
    prefix: Prefix,
    first: u16,
}

/// What one read saw, all at one point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The head of the shard's record.
    pub head: Head,
    /// The value, if the key exists.
    pub value: Option<Value>,
}

/// All shards of this node, by their first micro-slice.
pub struct Shards {
    engine: Arc<dyn Engine>,
    by_first: RwLock<BTreeMap<u16, Arc<Shard>>>,
    next_prefix: Mutex<u64>,
    graves: Graves,
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
        Ok(Arc::new(Self { engine, by_first: RwLock::default(), next_prefix, graves }))
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
        let head_key = key::record(shard.group, shard.id, 0, &[]);
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
        let token = token_of(user_key);
        let head_key = key::record(shard.group, shard.id, 0, &[]);
        let data_key = key::data(shard.prefix, namespace, token, user_key);
        let mut found = self.engine.get(&[&head_key, &data_key])?.into_iter();
        let (head, value) = (found.next().flatten(), found.next().flatten());
        let Some(head) = head else { return Ok(None) };
        let head = Head::decode(head).map_err(unreadable)?;
        if head.prefix != shard.prefix || !head.owns(token) {
            return Ok(None);
        }
        let value = value.map(Value::decode).transpose().map_err(unreadable)?;
        if let Some(value) = &value
            && crc32fast::hash(&value.value) != value.crc
        {
            return Err(unreadable("a value does not match its checksum"));
        }
        Ok(Some(Seen { head, value }))
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

/// The replicated machine of one group's shards.
pub struct ShardMachine {
    group: GroupId,
    shards: Arc<Shards>,
    applied: Mutex<Applied>,
}

#[derive(Default)]
struct Applied {
    heads: BTreeMap<ShardId, Head>,
    /// Shards of the batch in the making.
    created: Vec<Shard>,
}

impl ShardMachine {
    /// Reads the records of the group's shards and makes them known to readers.
    ///
    /// # Errors
    /// As the engine says, or when a record does not decode.
    pub fn open(group: GroupId, shards: Arc<Shards>) -> Result<Arc<Self>, EngineError> {
        let mut applied = Applied::default();
        // A group holds at most every shard; a record has one row so far.
        let rows = shards.engine.rows(key::records_range(group), usize::MAX)?;
        for (record, head) in rows {
            let Some(id) = record.get(9..17).and_then(|id| <[u8; 8]>::try_from(id).ok()) else {
                return Err(unreadable("a record's key is cut short"));
            };
            let id = ShardId(u64::from_be_bytes(id));
            let head = Head::decode(head).map_err(unreadable)?;
            applied.heads.insert(id, head);
            shards.by_first.write().insert(head.first, Arc::new(shard_of(group, id, &head)));
        }
        Ok(Arc::new(Self { group, shards, applied: Mutex::new(applied) }))
    }

    /// The shards that the group hosts here.
    #[must_use]
    pub fn hosted(&self) -> Vec<ShardId> {
        self.applied.lock().heads.keys().copied().collect()
    }

    /// What the engine holds now for the keys that `ops` name.
    fn known(
        &self,
        heads: &BTreeMap<ShardId, Head>,
        ops: &[(ShardId, Option<Op>)],
    ) -> Result<HashMap<Bytes, Option<Known>>, EngineError> {
        let keys: Vec<Bytes> = ops
            .iter()
            .filter_map(|(shard, op)| Some(op.as_ref()?.physical(heads.get(shard)?.prefix)?.1))
            .collect();
        let borrowed: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
        let values = self.shards.engine.get(&borrowed)?;
        let mut known = HashMap::with_capacity(keys.len());
        for (physical, value) in keys.into_iter().zip(values) {
            let value = match value {
                None => None,
                Some(bytes) => {
                    let held = (bytes.len() - VALUE_HEADER.min(bytes.len())) as u64;
                    let version = Value::decode(bytes).map_err(unreadable)?.revision;
                    Some(Known { version, bytes: held })
                }
            };
            known.insert(physical, value);
        }
        Ok(known)
    }
}

fn shard_of(group: GroupId, id: ShardId, head: &Head) -> Shard {
    Shard { id, group, prefix: head.prefix, first: head.first }
}

impl Machine for ShardMachine {
    fn apply(
        &self,
        at: &Applying,
        operations: Vec<Operation>,
        batch: &mut Batch,
    ) -> Result<Vec<Bytes>, EngineError> {
        let mut applied = self.applied.lock();
        let Applied { heads, created } = &mut *applied;
        // Bytes that do not decode were proposed by a newer version than this one knows, or are a
        // defect; refusing them is the same on every replica of this version (W8).
        let ops: Vec<(ShardId, Option<Op>)> =
            operations.into_iter().map(|op| (op.shard, Op::decode(op.body).ok())).collect();
        let mut known = self.known(heads, &ops)?;
        let mut changed = BTreeMap::new();
        let mut replies = Vec::with_capacity(ops.len());
        for (shard, op) in ops {
            let outcome = match (op, heads.get_mut(&shard)) {
                (Some(Op::Create { first, count, epoch }), None) => {
                    let prefix = self.shards.take_prefix()?;
                    let head = Head {
                        prefix,
                        first,
                        count,
                        revision: Revision(0),
                        epoch,
                        time_offset_ms: 0,
                        keys: 0,
                        bytes: 0,
                    };
                    heads.insert(shard, head);
                    created.push(shard_of(self.group, shard, &head));
                    changed.insert(shard, ());
                    let shard_time_ms = head.shard_time_ms(at.group_time_ms);
                    Outcome::Done {
                        version: Revision(0),
                        revision: Revision(0),
                        epoch,
                        shard_time_ms,
                    }
                }
                (Some(op), Some(head)) => match op.physical(head.prefix) {
                    Some((token, physical)) if head.owns(token) => {
                        let found = known.get(&physical).copied().flatten();
                        let time = head.shard_time_ms(at.group_time_ms);
                        let before = head.revision;
                        let slot = physical.clone();
                        let (outcome, now) = apply_to_key(op, physical, found, head, time, batch);
                        known.insert(slot, now);
                        if head.revision != before {
                            changed.insert(shard, ());
                        }
                        outcome
                    }
                    _ => Outcome::NotHere,
                },
                _ => Outcome::NotHere,
            };
            replies.push(outcome.encode());
        }
        for shard in changed.into_keys() {
            if let Some(head) = heads.get(&shard) {
                batch.put(key::record(self.group, shard, 0, &[]), head.encode());
            }
        }
        Ok(replies)
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

    fn files(&self) -> Vec<FileSpec> {
        snapshot::files(self.group, &self.applied.lock().heads)
    }

    fn export(&self, file: u64, row: Row) -> Result<Row, EngineError> {
        snapshot::export(self.group, ShardId(file), row)
    }

    fn import(self: Arc<Self>) -> Box<dyn Import> {
        Box::new(snapshot::Incoming::new(self))
    }

    fn destroy(&self, batch: &mut Batch) {
        let mut applied = self.applied.lock();
        for shard in std::mem::take(&mut applied.heads).into_keys() {
            batch.delete(key::record(self.group, shard, 0, &[]));
        }
        applied.created.clear();
        // Readers find none of them any more; their data go when the last one has gone (E6).
        self.shards.switch(self.group, Vec::new());
    }
}

#[cfg(test)]
mod tests;
