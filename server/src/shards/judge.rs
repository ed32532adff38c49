//! Judges one mutation: does its condition hold, and what changes. Pure; what the engine holds for its
//! keys is given.
//!
//! Invariants: one mutation that changes something takes one revision, a batch too, and all of its keys
//! get that one (W1); nothing of a batch changes before all of its guards hold.

use std::collections::HashMap;

use annulus_engine::Batch;
use annulus_engine::key::{self, DATA_HEADER, Prefix};
use annulus_types::{NamespaceId, Revision, Token, token_of};
use bytes::Bytes;

use crate::operation::{Expect, Guard, Item, Op, Outcome, Point};
use crate::stored::{Head, Value};

/// Digits and sign of the longest number.
const NUMBER_BYTES: usize = 20;

/// What is known of a key while an entry is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) version: Revision,
    pub(super) bytes: u64,
    /// The number that the value spells. Of a stored value only if an operation of the entry counts.
    pub(super) number: Option<i64>,
}

/// The decimal number that a value spells.
pub(super) fn number_of(value: &[u8]) -> Option<i64> {
    if value.len() > NUMBER_BYTES {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

impl Op {
    /// Tokens and physical keys of everything that the mutation is about: the guards of a batch, then
    /// its items.
    pub(super) fn located(&self, prefix: Prefix) -> Vec<(Token, Bytes)> {
        let (namespace, keys): (NamespaceId, Vec<&Bytes>) = match self {
            Self::Put { namespace, key, .. }
            | Self::Delete { namespace, key, .. }
            | Self::Cas { namespace, key, .. }
            | Self::Incr { namespace, key, .. } => (*namespace, vec![key]),
            Self::Batch { namespace, guards, items } => {
                let guarded = guards.iter().map(|guard| &guard.key);
                let changed = items.iter().map(|item| match item {
                    Item::Put { key, .. } | Item::Delete { key } => key,
                });
                (*namespace, guarded.chain(changed).collect())
            }
            Self::Create { .. }
            | Self::Named { .. }
            | Self::OpenWriter { .. }
            | Self::CloseWriter { .. }
            | Self::OpStatus { .. } => return Vec::new(),
        };
        let located = keys.into_iter().map(|user_key| {
            let token = token_of(user_key);
            (token, key::data(prefix, namespace, token, user_key))
        });
        located.collect()
    }
}

fn holds(expect: Expect, found: Option<Known>) -> bool {
    match expect {
        Expect::Anything => true,
        Expect::Absent => found.is_none(),
        Expect::Version(version) => found.is_some_and(|known| known.version == version),
        Expect::Present => found.is_some(),
    }
}

/// The user's part of a physical key, in bytes.
fn key_bytes(physical: &Bytes) -> u64 {
    physical.len().saturating_sub(DATA_HEADER) as u64
}

/// What a mutation is judged by, and where its changes go.
pub(super) struct Scene<'a> {
    pub(super) head: &'a mut Head,
    /// Of every key that the entry names; absent means that the engine does not hold it.
    pub(super) known: &'a mut HashMap<Bytes, Option<Known>>,
    pub(super) batch: &'a mut Batch,
    pub(super) shard_time_ms: u64,
}

impl Scene<'_> {
    /// Judges a mutation. `keys` are its physical keys in the order of [`Op::located`].
    pub(super) fn judge(&mut self, op: Op, mut keys: impl Iterator<Item = Bytes>) -> Outcome {
        match op {
            Op::Batch { guards, items, .. } => self.judge_batch(&guards, items, keys),
            op => keys.next().map_or(Outcome::NotHere, |physical| self.judge_one(op, physical)),
        }
    }

    fn judge_one(&mut self, op: Op, physical: Bytes) -> Outcome {
        let found = self.found(&physical);
        match op {
            Op::Put { crc, value, .. } => self.put(physical, crc, value),
            Op::Cas { expect, crc, value, .. } if holds(expect, found) => {
                self.put(physical, crc, value)
            }
            Op::Delete { expect, .. } if holds(expect, found) => {
                if found.is_some() {
                    self.head.revision = self.next_revision();
                    self.remove(physical);
                }
                self.done(Revision(0))
            }
            Op::Cas { .. } | Op::Delete { .. } => failed(found),
            Op::Incr { delta, min, max, .. } => {
                let number = match found {
                    None => 0,
                    Some(Known { number: Some(number), .. }) => number,
                    Some(_) => return Outcome::NotANumber { at: self.point() },
                };
                let is_inside = |sum: &i64| {
                    min.is_none_or(|min| *sum >= min) && max.is_none_or(|max| *sum <= max)
                };
                let Some(sum) = number.checked_add(delta).filter(is_inside) else {
                    return Outcome::OutOfBounds { number, at: self.point() };
                };
                let text = Bytes::from(sum.to_string());
                self.put(physical, crc32fast::hash(&text), text);
                Outcome::Counted { number: sum, at: self.point() }
            }
            Op::Create { .. }
            | Op::Named { .. }
            | Op::OpenWriter { .. }
            | Op::CloseWriter { .. }
            | Op::OpStatus { .. }
            | Op::Batch { .. } => Outcome::NotHere,
        }
    }

    fn judge_batch(
        &mut self,
        guards: &[Guard],
        items: Vec<Item>,
        mut keys: impl Iterator<Item = Bytes>,
    ) -> Outcome {
        for (guard, physical) in guards.iter().zip(keys.by_ref()) {
            let found = self.found(&physical);
            if !holds(guard.expect, found) {
                return failed(found);
            }
        }
        let revision = self.next_revision();
        let mut changes = false;
        for (item, physical) in items.into_iter().zip(keys) {
            match item {
                Item::Put { crc, value, .. } => {
                    self.set(physical, crc, value, revision);
                    changes = true;
                }
                Item::Delete { .. } if self.found(&physical).is_some() => {
                    self.remove(physical);
                    changes = true;
                }
                Item::Delete { .. } => {}
            }
        }
        if !changes {
            return self.done(Revision(0));
        }
        self.head.revision = revision;
        self.done(revision)
    }

    fn found(&self, physical: &Bytes) -> Option<Known> {
        self.known.get(physical).copied().flatten()
    }

    fn next_revision(&self) -> Revision {
        Revision(self.head.revision.0 + 1)
    }

    fn point(&self) -> Point {
        let Head { revision, epoch, .. } = *self.head;
        Point { revision, epoch, shard_time_ms: self.shard_time_ms }
    }

    fn done(&self, version: Revision) -> Outcome {
        Outcome::done(version, self.point())
    }

    /// A mutation that sets one key.
    fn put(&mut self, physical: Bytes, crc: u32, value: Bytes) -> Outcome {
        let revision = self.next_revision();
        self.head.revision = revision;
        self.set(physical, crc, value, revision);
        self.done(revision)
    }

    fn set(&mut self, physical: Bytes, crc: u32, value: Bytes, revision: Revision) {
        self.discount(&physical);
        let bytes = value.len() as u64;
        self.head.keys += 1;
        self.head.bytes += bytes + key_bytes(&physical);
        let known = Known { version: revision, bytes, number: number_of(&value) };
        let stored = Value { revision, deadline_ms: 0, crc, value };
        self.batch.put(physical.clone(), stored.encode());
        self.known.insert(physical, Some(known));
    }

    fn remove(&mut self, physical: Bytes) {
        self.discount(&physical);
        self.batch.delete(physical.clone());
        self.known.insert(physical, None);
    }

    /// Takes a key out of the shard's counts.
    fn discount(&mut self, physical: &Bytes) {
        if let Some(known) = self.found(physical) {
            let bytes = known.bytes + key_bytes(physical);
            self.head.bytes = self.head.bytes.saturating_sub(bytes);
            self.head.keys = self.head.keys.saturating_sub(1);
        }
    }
}

fn failed(found: Option<Known>) -> Outcome {
    Outcome::PreconditionFailed { current: found.map(|known| known.version) }
}
