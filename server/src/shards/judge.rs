//! Judges one mutation: does its condition hold, and what changes. Also what changes when a key ends by
//! time. Pure; what the engine holds for the keys is given.
//!
//! Invariants: one mutation that changes something takes one revision, a batch too, and all of its keys
//! get that one (W1); so does each key that ends; nothing of a batch changes before all of its guards hold.
//! Whatever sets or removes a key takes its former deadline out of the index; the time of the entry judges
//! no key, and a deadline is never nearer to the request than was asked for (W5).

use std::collections::HashMap;
use std::num::NonZeroU64;

use annulus_engine::Batch;
use annulus_engine::key::{self, DATA_HEADER, Prefix};
use annulus_types::{NamespaceId, Revision, Token, token_of};
use bytes::Bytes;

use super::deadlines::{Deadlines, Due};
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
    /// The shard time at which it ends, milliseconds; 0: never.
    pub(super) deadline_ms: u64,
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

    /// How many keys it names, and writers it opens: as many at most will have to end because of it.
    pub(super) fn names(&self) -> usize {
        match self {
            Self::Put { .. }
            | Self::Delete { .. }
            | Self::Cas { .. }
            | Self::Incr { .. }
            | Self::OpenWriter { .. } => 1,
            Self::Batch { guards, items, .. } => guards.len() + items.len(),
            Self::Create { .. }
            | Self::Named { .. }
            | Self::CloseWriter { .. }
            | Self::OpStatus { .. } => 0,
        }
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
    pub(super) deadlines: &'a mut Deadlines,
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
            Op::Put { crc, value, ttl_ms, .. } => {
                self.put(physical, crc, value, self.deadline_ms(ttl_ms))
            }
            Op::Cas { expect, crc, value, ttl_ms, .. } if holds(expect, found) => {
                self.put(physical, crc, value, self.deadline_ms(ttl_ms))
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
                let (number, deadline_ms) = match found {
                    None => (0, 0),
                    Some(Known { number: Some(number), deadline_ms, .. }) => (number, deadline_ms),
                    Some(_) => return Outcome::NotANumber { at: self.point() },
                };
                let is_inside = |sum: &i64| {
                    min.is_none_or(|min| *sum >= min) && max.is_none_or(|max| *sum <= max)
                };
                let Some(sum) = number.checked_add(delta).filter(is_inside) else {
                    return Outcome::OutOfBounds { number, at: self.point() };
                };
                let text = Bytes::from(sum.to_string());
                self.put(physical, crc32fast::hash(&text), text, deadline_ms);
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
                Item::Put { crc, value, ttl_ms, .. } => {
                    let deadline_ms = self.deadline_ms(ttl_ms);
                    self.set(physical, Value { revision, deadline_ms, crc, value });
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

    /// A key ends by time: deleted as by a delete that nobody sent.
    pub(super) fn end(&mut self, due: Due) {
        let Due { deadline_ms, physical, bytes } = due;
        self.head.revision = self.next_revision();
        // Its row says all that counts, so that nothing has to be read of it.
        let known = Known { version: Revision(0), bytes, number: None, deadline_ms };
        self.known.insert(physical.clone(), Some(known));
        self.remove(physical);
    }

    fn found(&self, physical: &Bytes) -> Option<Known> {
        self.known.get(physical).copied().flatten()
    }

    /// When that ends which is set now; 0: never. Times are cut to whole milliseconds: the entry's own may
    /// lie almost one before the request, and without another one so would the end.
    fn deadline_ms(&self, ttl_ms: Option<NonZeroU64>) -> u64 {
        let ends =
            |ttl_ms: NonZeroU64| self.shard_time_ms.saturating_add(ttl_ms.get()).saturating_add(1);
        ttl_ms.map_or(0, ends)
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
    fn put(&mut self, physical: Bytes, crc: u32, value: Bytes, deadline_ms: u64) -> Outcome {
        let revision = self.next_revision();
        self.head.revision = revision;
        self.set(physical, Value { revision, deadline_ms, crc, value });
        self.done(revision)
    }

    fn set(&mut self, physical: Bytes, stored: Value) {
        self.discount(&physical);
        let Value { revision: version, deadline_ms, .. } = stored;
        let bytes = stored.value.len() as u64;
        self.head.keys += 1;
        self.head.bytes += bytes + key_bytes(&physical);
        if deadline_ms != 0 {
            self.deadlines.set(&physical, deadline_ms, bytes, self.batch);
        }
        let known = Known { version, bytes, number: number_of(&stored.value), deadline_ms };
        self.batch.put(physical.clone(), stored.encode());
        self.known.insert(physical, Some(known));
    }

    fn remove(&mut self, physical: Bytes) {
        self.discount(&physical);
        self.batch.delete(physical.clone());
        self.known.insert(physical, None);
    }

    /// Takes a key out of the shard's counts and deadlines.
    fn discount(&mut self, physical: &Bytes) {
        if let Some(known) = self.found(physical) {
            let bytes = known.bytes + key_bytes(physical);
            self.head.bytes = self.head.bytes.saturating_sub(bytes);
            self.head.keys = self.head.keys.saturating_sub(1);
            if known.deadline_ms != 0 {
                self.deadlines.clear(physical, known.deadline_ms, self.batch);
            }
        }
    }
}

fn failed(found: Option<Known>) -> Outcome {
    Outcome::PreconditionFailed { current: found.map(|known| known.version) }
}
