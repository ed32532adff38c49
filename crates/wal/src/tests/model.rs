//! What the log should do, in the plainest words, and scripts to compare the two.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use annulus_runtime::Random;
use annulus_types::{GroupId, ReplicaId};
use bytes::Bytes;

use super::disk::TestDisk;
use crate::weaken::Weakened;
use crate::{
    Completion, Entry, EntryId, LogState, Options, Position, StreamId, Vote, Wal, WalError, Writer,
};

pub(super) const DIR: &str = "/node/wal";

pub(super) fn stream(number: u64) -> StreamId {
    StreamId { group: GroupId(number), replica: ReplicaId(100 + number) }
}

pub(super) fn id(term: u64, leader: u64, index: u64) -> EntryId {
    EntryId { term, leader: ReplicaId(leader), index }
}

/// An entry whose payload no other entry of the stream has.
pub(super) fn entry(id: EntryId, len: usize) -> Entry {
    let seed = (id.term * 31 + id.leader.0 * 7 + id.index) as u8;
    let payload: Vec<u8> = (0..len).map(|at| seed.wrapping_add(at as u8)).collect();
    Entry { id, membership: false, payload: Bytes::from(payload) }
}

/// An entry, every third of which changes who is a member.
pub(super) fn mixed(id: EntryId, len: usize) -> Entry {
    Entry { membership: id.index.is_multiple_of(3), ..entry(id, len) }
}

pub(super) fn vote(term: u64) -> Vote {
    Vote { term, leader: ReplicaId(term % 3), committed: term % 2 == 1 }
}

pub(super) fn options() -> Options {
    Options { segment_bytes: 32 << 10, tail_bytes: 1 << 20 }
}

pub(super) fn open_with(
    disk: &TestDisk,
    options: &Options,
    weakened: Weakened,
) -> Result<(Wal, Writer), WalError> {
    let random = Random::seeded(disk.next_seed());
    let disk = Arc::new(disk.clone());
    Wal::open_weakened(disk, Path::new(DIR), options, move || random.u64(), weakened)
}

pub(super) fn open(disk: &TestDisk) -> (Wal, Writer) {
    open_with(disk, &options(), Weakened::default()).unwrap()
}

/// A completion that counts the calls with `Ok`.
pub(super) fn counted(count: &Arc<AtomicUsize>) -> Completion {
    let count = Arc::clone(count);
    Box::new(move |outcome| {
        if outcome.is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    })
}

pub(super) fn ignored() -> Completion {
    Box::new(|_| {})
}

#[derive(Clone, Debug)]
pub(super) enum Op {
    Create(StreamId),
    Destroy(StreamId),
    Vote(StreamId, Vote),
    Committed(StreamId, EntryId),
    Append(StreamId, Vec<Entry>),
    Truncate(StreamId, Option<EntryId>),
    Purge(StreamId, EntryId),
    Reset(StreamId, EntryId),
    /// The writer writes one batch.
    Write,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ModelLog {
    pub(super) state: LogState,
    pub(super) entries: BTreeMap<u64, Entry>,
    /// The membership entry that is the newest when no entry is left.
    pub(super) membership_below: Option<EntryId>,
}

impl ModelLog {
    fn end(&mut self) {
        let held = self.entries.last_key_value().map(|(_, entry)| entry.id);
        self.state.last = held.or(self.state.purged);
        let mut newest_first = self.entries.values().rev();
        let held = newest_first.find(|entry| entry.membership).map(|entry| entry.id);
        self.state.membership = held.or(self.membership_below);
    }

    /// The log goes on after `upto`. If it held that entry, all before it led there; if not, only
    /// what was committed is known to.
    fn begin_after(&mut self, upto: EntryId) {
        let kept = self.entries.split_off(&(upto.index + 1));
        let was_held = self.entries.contains_key(&upto.index);
        let committed = self.state.committed.map(|id| id.index);
        let dropped = std::mem::replace(&mut self.entries, kept);
        for entry in dropped.into_values() {
            if entry.membership && (was_held || Some(entry.id.index) <= committed) {
                self.membership_below = Some(entry.id);
            }
        }
        self.state.purged = Some(upto);
        self.end();
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Model {
    pub(super) logs: BTreeMap<StreamId, ModelLog>,
    pub(super) tombstones: BTreeSet<StreamId>,
}

impl Model {
    fn log(&mut self, stream: StreamId) -> &mut ModelLog {
        self.logs.get_mut(&stream).unwrap()
    }

    pub(super) fn apply(&mut self, op: &Op) {
        match op {
            Op::Create(stream) => {
                self.logs.insert(*stream, ModelLog::default());
            }
            Op::Destroy(stream) => {
                self.logs.remove(stream);
                self.tombstones.insert(*stream);
            }
            Op::Vote(stream, vote) => self.log(*stream).state.vote = Some(*vote),
            Op::Committed(stream, id) => self.log(*stream).state.committed = Some(*id),
            Op::Append(stream, entries) => {
                let log = self.log(*stream);
                log.entries.extend(entries.iter().map(|entry| (entry.id.index, entry.clone())));
                log.end();
            }
            Op::Truncate(stream, after) => {
                let log = self.log(*stream);
                log.entries.retain(|index, _| after.is_some_and(|after| *index <= after.index));
                log.end();
            }
            Op::Purge(stream, upto) => self.log(*stream).begin_after(*upto),
            Op::Reset(stream, after) => {
                let log = self.log(*stream);
                log.begin_after(*after);
                if log.state.committed.is_some_and(|committed| committed.index > after.index) {
                    log.state.committed = Some(*after);
                }
            }
            Op::Write => {}
        }
    }
}

/// What a log says about one stream.
pub(super) fn observe_log(wal: &Wal, stream: StreamId) -> Result<ModelLog, WalError> {
    let log = wal.log(stream)?;
    let entries =
        log.entries(log.state().purged.map_or(0, |id| id.index + 1)..u64::MAX, usize::MAX)?;
    let entries: BTreeMap<u64, Entry> =
        entries.into_iter().map(|entry| (entry.id.index, entry)).collect();
    let flagged = entries.values().filter(|entry| entry.membership).map(|entry| entry.id);
    let (flagged, listed) = (flagged.collect::<Vec<_>>(), log.memberships());
    if flagged != listed {
        return Err(WalError::Refused { reason: format!("{flagged:?} listed as {listed:?}") });
    }
    let membership_below = log.membership_below();
    Ok(ModelLog { state: log.state(), entries, membership_below })
}

/// What a log says about everything.
pub(super) fn observe(wal: &Wal) -> Result<Model, String> {
    let mut model = Model::default();
    for stream in wal.streams() {
        let log = observe_log(wal, stream).map_err(|error| format!("{stream}: {error}"))?;
        model.logs.insert(stream, log);
    }
    model.tombstones = wal.tombstones().into_iter().collect();
    Ok(model)
}

/// A script as far as it went.
pub(super) struct Run {
    /// The state before the first operation and after each one.
    pub(super) models: Vec<Model>,
    /// How many operations were acknowledged, directly or by a later one.
    pub(super) acknowledged: usize,
    /// Segments that were recycled.
    pub(super) recycled: u64,
    /// Up to here the log said that it was durable.
    pub(super) told: Position,
}

impl Run {
    pub(super) fn last(&self) -> &Model {
        self.models.last().unwrap()
    }

    /// Whether a state lies between what was acknowledged and what was asked for.
    pub(super) fn allows(&self, observed: &Model) -> bool {
        self.models[self.acknowledged..].contains(observed)
    }
}

/// Plays a script until its end or until the disk fails.
pub(super) fn play(disk: &TestDisk, script: &[Op], weakened: Weakened) -> Run {
    let mut models = vec![Model::default()];
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let (mut recycled, mut told) = (0, Position::default());
    if let Ok((wal, mut writer)) = open_with(disk, &options(), weakened) {
        for (nth, op) in script.iter().enumerate() {
            let so_far = Arc::clone(&acknowledged);
            let done: Completion = Box::new(move |outcome| {
                if outcome.is_ok() {
                    so_far.fetch_max(nth + 1, Ordering::SeqCst);
                }
            });
            let log = |stream: &StreamId| wal.log(*stream).unwrap();
            match op {
                Op::Create(stream) => wal.create(*stream, done),
                Op::Destroy(stream) => wal.destroy(*stream, done),
                Op::Vote(stream, vote) => log(stream).save_vote(*vote, done),
                Op::Committed(stream, id) => log(stream).save_committed(*id),
                Op::Append(stream, entries) => log(stream).append(entries.clone(), done),
                Op::Truncate(stream, after) => log(stream).truncate_after(*after),
                Op::Purge(stream, upto) => log(stream).purge(*upto),
                Op::Reset(stream, after) => log(stream).reset(*after, done),
                Op::Write => {
                    if writer.step().is_err() {
                        break;
                    }
                }
            }
            let mut model = models.last().unwrap().clone();
            model.apply(op);
            models.push(model);
        }
        recycled = wal.stats().recycled;
        told = wal.durable_position();
    }
    Run { models, acknowledged: acknowledged.load(Ordering::SeqCst), recycled, told }
}

/// The life of a log with everything in it, by hand: one replica that votes in spring and is silent
/// ever after, one that fills segments and is purged, so that a segment is recycled; leaders and
/// members change, logs are truncated and reset, replicas die. A segment holds six blocks.
pub(super) fn story() -> Vec<Op> {
    let (quiet, busy, other) = (stream(1), stream(2), stream(3));
    let big = |index| vec![mixed(id(2, 7, index), 9000)];
    let mut ops = vec![
        Op::Create(quiet),
        Op::Create(busy),
        Op::Vote(quiet, vote(4)),
        Op::Append(quiet, vec![mixed(id(4, 7, 0), 10)]),
        Op::Write,
    ];
    for index in 0..5 {
        ops.push(Op::Append(busy, big(index)));
        ops.push(Op::Write);
    }
    ops.extend([
        Op::Committed(busy, id(2, 7, 4)),
        Op::Create(other),
        Op::Vote(other, vote(2)),
        Op::Append(other, (0..4).map(|index| mixed(id(2, 8, index), 300)).collect()),
        Op::Write,
        // Another leader of the same term.
        Op::Truncate(other, Some(id(2, 8, 1))),
        Op::Append(other, vec![mixed(id(2, 9, 2), 700)]),
        Op::Vote(other, vote(3)),
        Op::Write,
        Op::Purge(quiet, id(4, 7, 0)),
        Op::Purge(busy, id(2, 7, 4)),
        Op::Purge(other, id(2, 9, 2)),
        Op::Write,
        Op::Append(busy, big(5)),
        Op::Write,
        Op::Append(busy, big(6)),
        Op::Append(other, vec![mixed(id(5, 9, 3), 40), mixed(id(5, 9, 4), 0)]),
        Op::Write,
        Op::Reset(other, id(6, 9, 20)),
        Op::Append(other, vec![mixed(id(6, 9, 21), 5000)]),
        Op::Write,
        Op::Destroy(other),
        Op::Vote(busy, vote(5)),
        Op::Write,
    ]);
    ops
}

/// A script by dice.
pub(super) fn dice(seed: u64, len: usize) -> Vec<Op> {
    let random = Random::seeded(seed);
    let below = |limit: usize| random.below(limit as u64) as usize;
    let mut model = Model::default();
    let mut ops = Vec::new();
    let mut term = 1;
    while ops.len() < len {
        let stream = stream(1 + random.below(4));
        let Some(log) = model.logs.get(&stream) else {
            if model.tombstones.contains(&stream) {
                ops.push(Op::Write);
            } else {
                ops.push(Op::Create(stream));
                model.apply(&Op::Create(stream));
            }
            continue;
        };
        let next = log.state.last.map_or(0, |last| last.index + 1);
        let held: Vec<EntryId> = log.entries.values().map(|entry| entry.id).collect();
        let one = held.get(below(held.len().max(1))).copied();
        let op = match (below(100), one) {
            (0..=9, _) => {
                term += 1;
                Op::Vote(stream, vote(term))
            }
            (10..=49, _) => {
                let sizes = [0, 30, 400, 508, 700, 4100, 9000];
                let leader = 7 + random.below(3);
                let ids = (next..=next + random.below(3)).map(|index| id(term, leader, index));
                Op::Append(stream, ids.map(|id| mixed(id, sizes[below(sizes.len())])).collect())
            }
            (50..=55, Some(one)) => Op::Committed(stream, one),
            (56..=61, one) => Op::Truncate(stream, one.or(log.state.purged)),
            (62..=72, Some(one)) => Op::Purge(stream, one),
            // Beyond the end.
            (73, _) => Op::Purge(stream, id(term, 8, next + 2)),
            (74..=75, _) => Op::Reset(stream, id(term, 7, next + 10)),
            (76, _) => Op::Destroy(stream),
            _ => Op::Write,
        };
        model.apply(&op);
        ops.push(op);
    }
    // Also what would wait for company is written.
    ops.extend([Op::Create(stream(9)), Op::Write]);
    ops
}
