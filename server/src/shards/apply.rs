//! Applies one entry to the shards of a group (W8, W9).
//!
//! 1. Everything that the engine holds for the keys of the entry is read at once.
//! 2. What has ended by time ends (W5): keys, each with a revision, and writers. In deadline order, 1,000
//!    per entry, and more if the entry's operations name more than half as many keys; the rest follows with
//!    the next entries, and until then it is there. An entry may consist of nothing but this.
//! 3. The operations are judged one by one; later ones see what earlier ones did. A named mutation
//!    passes its shard's writer table first (W3).
//! 4. Every row of a record that changed goes into the batch of the data.
//!
//! Nothing here may differ between replicas: order is that of the log or of numbers, time is the
//! entry's. An engine that cannot be read, or whose bytes do not match their checksum, is an error and
//! stops the replica; it never becomes a reply.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use annulus_engine::{Batch, Engine, EngineError};
use annulus_raft::{Applying, Operation};
use annulus_types::{Epoch, Revision, ShardId, Token};
use bytes::Bytes;

use super::deadlines::Deadlines;
use super::judge::{Known, Scene, number_of};
use super::{Applied, Held, ShardMachine, records, shard_of, unreadable};
use crate::operation::{Finding, Op, OpId, Outcome, Point};
use crate::stored::{Head, VALUE_HEADER, Value};
use crate::writers::{Refusal, RequestHash, Standing, Verdict, Writers};

/// The name of a mutation.
struct Name {
    id: OpId,
    token: Token,
    hash: RequestHash,
}

/// One operation of an entry.
struct Step {
    shard: ShardId,
    name: Option<Name>,
    /// `None`: it does not decode. It was proposed by a newer version than this one, or is a defect;
    /// refusing it is the same on every replica of this version (W8).
    op: Option<Op>,
    /// Tokens and physical keys, if the shard was there before the entry.
    keys: Vec<(Token, Bytes)>,
}

impl Step {
    fn of(operation: Operation) -> Self {
        let Operation { shard, body } = operation;
        let (name, op) = match Op::decode(body) {
            Ok(Op::Named { id, token, body }) => {
                let name = Name { id, token, hash: RequestHash::of(&body) };
                (Some(name), Op::decode(body).ok().filter(Op::is_mutation))
            }
            decoded => (None, decoded.ok()),
        };
        Self { shard, name, op, keys: Vec::new() }
    }
}

/// What the operations of one entry share.
struct Entry<'a> {
    group_time_ms: u64,
    /// It has no operations.
    is_idle: bool,
    /// How many keys and writers it may still end.
    ends_left: usize,
    known: HashMap<Bytes, Option<Known>>,
    batch: &'a mut Batch,
}

impl ShardMachine {
    /// Applies the operations of one entry; one reply each.
    pub(super) fn apply_entry(
        &self,
        at: &Applying,
        operations: Vec<Operation>,
        batch: &mut Batch,
    ) -> Result<Vec<Bytes>, EngineError> {
        let mut applied = self.applied.lock();
        let Applied { held: shards, created, ends_least } = &mut *applied;
        let mut steps: Vec<Step> = operations.into_iter().map(Step::of).collect();
        let known = self.known(shards, &mut steps)?;
        let mut entry = Entry {
            group_time_ms: at.group_time_ms,
            is_idle: steps.is_empty(),
            ends_left: ends_most(*ends_least, &steps),
            known,
            batch: &mut *batch,
        };
        let engine = self.shards.engine.as_ref();
        let mut changed = end_due(engine, shards, &mut entry)?;
        let mut replies = Vec::with_capacity(steps.len());
        for Step { shard, name, op, keys } in steps {
            let outcome = match (op, shards.get_mut(&shard)) {
                (Some(Op::Create { first, count, epoch }), None) => {
                    let held = self.create(first, count, epoch)?;
                    created.push(shard_of(self.group, shard, &held.head));
                    changed.insert(shard);
                    let outcome = Outcome::done(Revision(0), held.point(at.group_time_ms));
                    shards.insert(shard, held);
                    outcome
                }
                (Some(op), Some(held)) => {
                    let before = held.head.revision;
                    let outcome = held.judge(name, op, keys, &mut entry);
                    if held.head.revision != before {
                        changed.insert(shard);
                    }
                    outcome
                }
                _ => Outcome::NotHere,
            };
            replies.push(outcome.encode());
        }
        self.store(shards, &changed, entry.batch);
        Ok(replies)
    }

    /// What the engine holds now for the keys that the steps name; fills in those keys.
    fn known(
        &self,
        shards: &BTreeMap<ShardId, Held>,
        steps: &mut [Step],
    ) -> Result<HashMap<Bytes, Option<Known>>, EngineError> {
        let mut keys: Vec<Bytes> = Vec::with_capacity(steps.len());
        let mut counted: HashSet<Bytes> = HashSet::new();
        for step in steps {
            let (Some(op), Some(held)) = (&step.op, shards.get(&step.shard)) else { continue };
            step.keys = op.located(held.head.prefix);
            let physical = step.keys.iter().map(|(_, physical)| physical.clone());
            if matches!(op, Op::Incr { .. }) {
                counted.extend(physical.clone());
            }
            keys.extend(physical);
        }
        let borrowed: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
        let values = self.shards.engine.get(&borrowed)?;
        let mut known = HashMap::with_capacity(keys.len());
        for (physical, stored) in keys.into_iter().zip(values) {
            let found = match stored {
                None => None,
                Some(stored) => Some(known_of(stored, counted.contains(&physical))?),
            };
            known.insert(physical, found);
        }
        Ok(known)
    }

    /// A new shard, under a prefix of its own.
    fn create(&self, first: u16, count: u16, epoch: Epoch) -> Result<Held, EngineError> {
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
        Ok(Held { head, writers: Writers::default(), deadlines: Deadlines::default() })
    }

    /// Puts what changed of the records into the batch.
    fn store(
        &self,
        shards: &mut BTreeMap<ShardId, Held>,
        changed: &BTreeSet<ShardId>,
        batch: &mut Batch,
    ) {
        for (shard, held) in shards {
            if changed.contains(shard) {
                batch.put(records::head_key(self.group, *shard), held.head.encode());
            }
            for (writer, row) in held.writers.take_changed() {
                let record = records::writer_key(self.group, *shard, writer);
                match row {
                    Some(row) => batch.put(record, row),
                    None => batch.delete(record),
                }
            }
        }
    }
}

/// What a stored value tells. One that is counted on is checked: a sum would hide that it is rotten.
fn known_of(stored: Bytes, counts: bool) -> Result<Known, EngineError> {
    let bytes = (stored.len() - VALUE_HEADER.min(stored.len())) as u64;
    let stored = Value::decode(stored).map_err(unreadable)?;
    let Value { revision: version, deadline_ms, crc, value } = stored;
    if counts && crc32fast::hash(&value) != crc {
        return Err(unreadable("a value does not match its checksum"));
    }
    let number = if counts { number_of(&value) } else { None };
    Ok(Known { version, bytes, number, deadline_ms })
}

/// How many keys and writers an entry may end. Twice as many as it can add: so while anything is left over,
/// each entry ends more than it adds, and what is left over comes to an end under any load. By the entry's
/// own bytes alone, whichever of its operations are refused, so that all replicas agree.
fn ends_most(least: usize, steps: &[Step]) -> usize {
    let named: usize = steps.iter().filter_map(|step| step.op.as_ref()).map(Op::names).sum();
    least.max(2 * named)
}

/// Ends what is due: shards in the order of their earliest deadlines, keys and writers in the order of
/// theirs, as many as the entry may. Returns the shards whose revision changed.
fn end_due(
    engine: &dyn Engine,
    shards: &mut BTreeMap<ShardId, Held>,
    entry: &mut Entry<'_>,
) -> Result<BTreeSet<ShardId>, EngineError> {
    let mut due: Vec<(Reverse<u64>, ShardId)> = Vec::new();
    for (shard, held) in shards.iter_mut() {
        let now_ms = held.head.shard_time_ms(entry.group_time_ms);
        held.deadlines.look(engine, held.head.prefix, now_ms, entry.is_idle)?;
        if let Some(end_ms) = held.next_end_ms()
            && end_ms <= now_ms
        {
            due.push((Reverse(now_ms - end_ms), *shard));
        }
    }
    due.sort_unstable();
    let mut changed = BTreeSet::new();
    for (_, shard) in due {
        if entry.ends_left == 0 {
            break;
        }
        let Some(held) = shards.get_mut(&shard) else { continue };
        let before = held.head.revision;
        held.end_due(engine, entry)?;
        if held.head.revision != before {
            changed.insert(shard);
        }
    }
    Ok(changed)
}

impl Held {
    /// Before this no key or writer ends, milliseconds of shard time. Exact if it is reached, at an entry
    /// that has looked.
    pub(super) fn next_end_ms(&self) -> Option<u64> {
        let ends = [self.deadlines.next_ms(), self.writers.next_end_ms()];
        ends.into_iter().flatten().min()
    }

    /// Ends what is due here, as long as something is left of what the entry may end.
    fn end_due(&mut self, engine: &dyn Engine, entry: &mut Entry<'_>) -> Result<(), EngineError> {
        let now_ms = self.head.shard_time_ms(entry.group_time_ms);
        let prefix = self.head.prefix;
        for due in self.deadlines.take_due(engine, prefix, now_ms, entry.ends_left)? {
            // Writers that ended before the key.
            entry.ends_left -= self.writers.expire(due.deadline_ms, entry.ends_left).len();
            if entry.ends_left == 0 {
                self.deadlines.give_back(&due);
                return Ok(());
            }
            self.scene(entry).end(due);
            entry.ends_left -= 1;
        }
        entry.ends_left -= self.writers.expire(now_ms, entry.ends_left).len();
        Ok(())
    }

    fn scene<'a>(&'a mut self, entry: &'a mut Entry<'_>) -> Scene<'a> {
        let shard_time_ms = self.head.shard_time_ms(entry.group_time_ms);
        Scene {
            head: &mut self.head,
            deadlines: &mut self.deadlines,
            known: &mut entry.known,
            batch: &mut *entry.batch,
            shard_time_ms,
        }
    }

    fn point(&self, group_time_ms: u64) -> Point {
        let Head { revision, epoch, .. } = self.head;
        Point { revision, epoch, shard_time_ms: self.head.shard_time_ms(group_time_ms) }
    }

    /// Judges one operation on this shard, which has to own whatever it names.
    fn judge(
        &mut self,
        name: Option<Name>,
        op: Op,
        keys: Vec<(Token, Bytes)>,
        entry: &mut Entry<'_>,
    ) -> Outcome {
        let group_time_ms = entry.group_time_ms;
        match op {
            Op::OpenWriter { token } if self.head.owns(token) => self.open_writer(group_time_ms),
            Op::CloseWriter { token, writer } if self.head.owns(token) => {
                self.writers.close(writer);
                Outcome::done(Revision(0), self.point(group_time_ms))
            }
            Op::OpStatus { token, writer, seq } if self.head.owns(token) => {
                self.op_status(writer, seq, group_time_ms)
            }
            op if op.is_mutation() => self.mutate(name, op, keys, entry),
            _ => Outcome::NotHere,
        }
    }

    fn open_writer(&mut self, group_time_ms: u64) -> Outcome {
        let id = Revision(self.head.revision.0 + 1);
        if !self.writers.open(id, self.head.shard_time_ms(group_time_ms)) {
            return Outcome::WritersFull;
        }
        self.head.revision = id;
        Outcome::done(Revision(0), self.point(group_time_ms))
    }

    fn op_status(&mut self, writer: Revision, seq: u64, group_time_ms: u64) -> Outcome {
        // Nothing is promised about a writer that may yet be opened.
        if writer > self.head.revision {
            return Outcome::OutsideWindow;
        }
        let finding = match self.writers.status(writer, seq) {
            Standing::Applied(outcome) => finding_of(outcome),
            Standing::NotApplied => Finding::NotApplied,
            Standing::SettledNotKept => Finding::NotKept,
            Standing::Unknown => Finding::Ended,
            Standing::NoRoom => return Outcome::OutsideWindow,
        };
        Outcome::Status { finding, at: self.point(group_time_ms) }
    }

    fn mutate(
        &mut self,
        name: Option<Name>,
        op: Op,
        keys: Vec<(Token, Bytes)>,
        entry: &mut Entry<'_>,
    ) -> Outcome {
        // The shard may have come into being in this very entry.
        let keys = if keys.is_empty() { op.located(self.head.prefix) } else { keys };
        let is_ours = |token: Token| {
            self.head.owns(token) && name.as_ref().is_none_or(|name| name.token == token)
        };
        if keys.is_empty() || !keys.iter().all(|(token, _)| is_ours(*token)) {
            return Outcome::NotHere;
        }
        let shard_time_ms = self.head.shard_time_ms(entry.group_time_ms);
        if let Some(name) = &name {
            match self.writers.admit(&name.id, name.hash, shard_time_ms) {
                Verdict::Fresh => {}
                Verdict::Replay(first) => return first,
                Verdict::Refused(Refusal::OpIdReused) => return Outcome::OpIdReused,
                Verdict::Refused(Refusal::WriterExpired) => return Outcome::WriterExpired,
                Verdict::Refused(Refusal::OutsideWindow) => return Outcome::OutsideWindow,
            }
        }
        let physical = keys.into_iter().map(|(_, physical)| physical);
        let outcome = self.scene(entry).judge(op, physical);
        if let Some(name) = &name {
            self.writers.record(&name.id, name.hash, outcome);
        }
        outcome
    }
}

/// What a kept result says to whoever asks for the status.
fn finding_of(outcome: Outcome) -> Finding {
    match outcome {
        Outcome::Done { version, revision, .. } => {
            Finding::Applied { version, revision, number: None }
        }
        Outcome::Counted { number, at } => {
            Finding::Applied { version: at.revision, revision: at.revision, number: Some(number) }
        }
        // The last six are no results of a mutation.
        Outcome::PreconditionFailed { .. }
        | Outcome::OutOfBounds { .. }
        | Outcome::NotANumber { .. }
        | Outcome::NotHere
        | Outcome::OpIdReused
        | Outcome::WriterExpired
        | Outcome::OutsideWindow
        | Outcome::WritersFull
        | Outcome::Status { .. } => Finding::Failed,
    }
}
