//! The writer table of a shard: what makes a repeated mutation take effect once (W3). Pure.
//!
//! # The problem
//!
//! A client proposes a mutation and hears nothing. It may have been applied, it may be lost, or it may
//! still be on its way: in a queue of the leader, in the log of a leader that was deposed, in a network.
//! Repeating it is the only way to go on, and repeating it must not apply it twice. So mutations have
//! names, and the shard remembers by name what it answered.
//!
//! # Writers
//!
//! Nothing can be remembered for ever, and what is forgotten must not come back as new. A client
//! therefore opens a *writer* first, by an entry of its own that takes a revision of the shard; the
//! revision is the writer's id and is never used again. A mutation of a writer that the table does not
//! hold is refused, so a writer may be forgotten as a whole at any time: what it sent, and what is still
//! on its way, can then never be applied. An opening whose answer is lost leaves an idle writer and no
//! other trace. Had the first mutation opened its writer by itself, its repetition would have no name.
//!
//! A writer ends when it is closed, or when it was not used for ten minutes of shard time; nothing else
//! ends it. A full table refuses *new* writers: to make room by ending an old one would let a late
//! mutation of it fail that its client still counts on.
//!
//! # Inside a writer
//!
//! Mutations are numbered from 1. Each one says below which number its client has all answers
//! (`lowest_unacked`). The table believes the highest such number that came with an executed mutation:
//! results below it are dropped, and what comes with a lower number is late for ever and refused. At or
//! above it, a number that has a result is a repetition and gets that result, if it is the same request:
//! results are kept with a hash of it, so that a client that gives one number to two mutations is told.
//! Everything else is new and executed, with a window of [`WRITER_WINDOW`] numbers, so that what is kept
//! has a bound.
//!
//! A result is whatever the first execution answered, a failed condition too: a repetition must not
//! succeed where the original had failed.
//!
//! # Asking afterwards
//!
//! "Not applied" is an answer only if it stays true. The question is an entry; if it finds no result it
//! leaves a mark, and what bears the marked number later is refused. At most [`WRITER_WINDOW`] marks are
//! kept per writer; a client that has more questions than it may have mutations under way is refused.
//!
//! # Invariants
//!
//! - A mutation is executed at most once: between [`Verdict::Fresh`] and [`Writers::record`] nothing else
//!   happens to the table.
//! - Replicas agree: the table depends on entries alone. Time is shard time (W5), order is by number,
//!   limits are constants of the state machine version.
//! - Replays and refusals change the time of the last use and nothing else.
//! - A writer has at most [`WRITER_WINDOW`] results and as many marks.
//!
//! # Rows
//!
//! One row per writer, part 1 of the shard's record, named by the writer's id:
//!
//! ```text
//! writer   version u8 = 1 | last used ms u64 | lowest unacked u64 | kept u32
//!          | per kept, by number: seq u64 | 0 u8: refused for good
//!                               | seq u64 | 1 u8 | hash 16 bytes | length u8 | reply
//! ```
//!
//! Numbers are big-endian, replies as in [`crate::operation::outcome`]. All operations of a writer in
//! one entry change its row once.

use std::collections::{BTreeMap, BTreeSet};

use annulus_types::Revision;
use annulus_types::limits::{SHARD_RESULT_BYTES, SHARD_WRITERS, WRITER_IDLE, WRITER_WINDOW};
use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};

use crate::operation::{OpId, Outcome, Undecodable};
use crate::weaken::{Weaken, Weakened};

const IDLE_MS: u64 = WRITER_IDLE.as_millis() as u64;

const ROW_VERSION: u8 = 1;
const REFUSED: u8 = 0;
const RESULT: u8 = 1;

/// Bytes of a row before what is kept.
const ROW_HEAD: usize = 21;

/// Tells requests under one operation id apart: murmur3 (x64, 128 bit, seed 0) of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHash(u128);

impl RequestHash {
    /// The hash of an encoded mutation.
    #[must_use]
    pub fn of(request: &[u8]) -> Self {
        let mut reader = request;
        // Reading from a slice cannot fail; the crate's signature allows for readers that can.
        Self(murmur3::murmur3_x64_128(&mut reader, 0).unwrap_or_default())
    }
}

/// What to do with a named mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Execute it and [record](Writers::record) the result.
    Fresh,
    /// It was executed: answer this again.
    Replay(Outcome),
    /// Do not execute it.
    Refused(Refusal),
}

/// Why a named mutation is not executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its number was used by another request, or is settled.
    OpIdReused,
    /// The writer is not in the table.
    WriterExpired,
    /// Its number is too far from the lowest one without an answer.
    OutsideWindow,
}

/// What is known of a mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It was judged, with this outcome.
    Applied(Outcome),
    /// It was not judged and never will be.
    NotApplied,
    /// Its client had the answer; it is not kept.
    SettledNotKept,
    /// The writer is not in the table.
    Unknown,
    /// Nothing is known, and there is no room to remember that it was asked for.
    NoRoom,
}

/// What is kept of a mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Result { hash: RequestHash, outcome: Outcome },
    RefusedForGood,
}

impl Kept {
    /// Bytes in a row.
    fn bytes(&self) -> u64 {
        match self {
            Self::Result { outcome, .. } => 26 + outcome.encoded_len() as u64,
            Self::RefusedForGood => 9,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Writer {
    last_used_ms: u64,
    lowest_unacked: u64,
    kept: BTreeMap<u64, Kept>,
}

/// How large a table may grow before it refuses new writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    writers: usize,
    result_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { writers: SHARD_WRITERS, result_bytes: SHARD_RESULT_BYTES }
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writers {
    writers: BTreeMap<Revision, Writer>,
    /// In the order in which they will end: last use, then id.
    by_use: BTreeSet<(u64, Revision)>,
    /// Of everything kept, as rows hold it.
    result_bytes: u64,
    /// Writers whose rows differ from what is stored.
    changed: BTreeSet<Revision>,
    limits: Limits,
    weakened: Weakened,
}

impl Writers {
    /// Opens the writer `id`, a revision just taken. Returns whether there was room.
    #[must_use]
    pub fn open(&mut self, id: Revision, now_ms: u64) -> bool {
        let Limits { writers, result_bytes } = self.limits;
        if self.writers.len() >= writers || self.result_bytes >= result_bytes {
            return false;
        }
        let opened = Writer { last_used_ms: now_ms, lowest_unacked: 1, kept: BTreeMap::new() };
        let former = self.writers.insert(id, opened);
        assert!(former.is_none(), "a revision is taken once, {id} was there");
        self.by_use.insert((now_ms, id));
        self.changed.insert(id);
        true
    }

    /// Ends a writer. Returns whether it was there.
    pub fn close(&mut self, id: Revision) -> bool {
        let Some(ended) = self.writers.remove(&id) else { return false };
        self.by_use.remove(&(ended.last_used_ms, id));
        self.result_bytes -= ended.kept.values().map(Kept::bytes).sum::<u64>();
        self.changed.insert(id);
        true
    }

    /// When the next writer ends if it is not used before, milliseconds.
    #[must_use]
    pub fn next_end_ms(&self) -> Option<u64> {
        self.by_use.first().map(|(used, _)| used.saturating_add(IDLE_MS))
    }

    /// Ends the writers that were not used for too long, `most` at most, and returns them in the order
    /// in which they were due.
    pub fn expire(&mut self, now_ms: u64, most: usize) -> Vec<Revision> {
        let mut ended = Vec::new();
        while ended.len() < most
            && let Some(&(used, id)) = self.by_use.first()
            && used.saturating_add(IDLE_MS) <= now_ms
        {
            self.close(id);
            ended.push(id);
        }
        ended
    }

    /// Says what to do with a mutation. After [`Verdict::Fresh`] the caller executes it and records
    /// the result before anything else.
    pub fn admit(&mut self, id: &OpId, hash: RequestHash, now_ms: u64) -> Verdict {
        let Some(writer) = self.writers.get_mut(&id.writer) else {
            return Verdict::Refused(Refusal::WriterExpired);
        };
        let verdict = writer.judge(id, hash);
        if writer.last_used_ms < now_ms {
            self.by_use.remove(&(writer.last_used_ms, id.writer));
            self.by_use.insert((now_ms, id.writer));
            writer.last_used_ms = now_ms;
            self.changed.insert(id.writer);
        }
        if self.weakened.is(Weaken::EveryMutationIsFresh) { Verdict::Fresh } else { verdict }
    }

    /// Keeps the result of a mutation that was just executed, and drops those that nobody will ask for.
    pub fn record(&mut self, id: &OpId, hash: RequestHash, outcome: Outcome) {
        let Some(writer) = self.writers.get_mut(&id.writer) else { return };
        if writer.lowest_unacked < id.lowest_unacked {
            writer.lowest_unacked = id.lowest_unacked;
            let kept = writer.kept.split_off(&id.lowest_unacked);
            let settled = std::mem::replace(&mut writer.kept, kept);
            self.result_bytes -= settled.values().map(Kept::bytes).sum::<u64>();
        }
        let result = Kept::Result { hash, outcome };
        self.result_bytes += result.bytes();
        if let Some(former) = writer.kept.insert(id.seq, result) {
            self.result_bytes -= former.bytes();
        }
        self.changed.insert(id.writer);
    }

    /// What is known of a mutation; if nothing is, it is refused from now on. Not a use of the writer.
    pub fn status(&mut self, id: Revision, seq: u64) -> Standing {
        let Some(writer) = self.writers.get_mut(&id) else { return Standing::Unknown };
        if seq < writer.lowest_unacked {
            return Standing::SettledNotKept;
        }
        match writer.kept.get(&seq) {
            Some(Kept::Result { outcome, .. }) => return Standing::Applied(*outcome),
            Some(Kept::RefusedForGood) => return Standing::NotApplied,
            None => {}
        }
        if writer.marks() >= WRITER_WINDOW {
            return Standing::NoRoom;
        }
        let mark = Kept::RefusedForGood;
        self.result_bytes += mark.bytes();
        writer.kept.insert(seq, mark);
        self.changed.insert(id);
        Standing::NotApplied
    }

    /// The rows that changed since the last call, by writer; one without a row has ended.
    pub fn take_changed(&mut self) -> Vec<(Revision, Option<Bytes>)> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed.map(|id| (id, self.writers.get(&id).map(Writer::encode))).collect()
    }

    /// All rows, by writer.
    pub fn rows(&self) -> impl Iterator<Item = (Revision, Bytes)> {
        self.writers.iter().map(|(id, writer)| (*id, writer.encode()))
    }

    /// Takes a writer back from its row.
    ///
    /// # Errors
    /// When the row does not decode, or the writer is there already.
    pub fn restore(&mut self, id: Revision, row: Bytes) -> Result<(), Undecodable> {
        let writer = Writer::decode(row)?;
        if self.writers.contains_key(&id) {
            return Err(Undecodable("a second row of a writer"));
        }
        self.by_use.insert((writer.last_used_ms, id));
        self.result_bytes += writer.kept.values().map(Kept::bytes).sum::<u64>();
        self.writers.insert(id, writer);
        Ok(())
    }

    /// Turns a rule off.
    #[cfg(test)]
    pub(crate) fn weaken(&mut self, rule: Weaken) {
        self.weakened = Weakened::by(rule);
    }
}

impl Writer {
    fn judge(&self, id: &OpId, hash: RequestHash) -> Verdict {
        if id.seq < self.lowest_unacked {
            return Verdict::Refused(Refusal::OpIdReused);
        }
        match self.kept.get(&id.seq) {
            Some(Kept::Result { hash: first, outcome }) if *first == hash => {
                Verdict::Replay(*outcome)
            }
            Some(_) => Verdict::Refused(Refusal::OpIdReused),
            None => {
                let lowest = self.lowest_unacked.max(id.lowest_unacked);
                let is_inside = id.seq >= lowest && id.seq - lowest < WRITER_WINDOW;
                if is_inside { Verdict::Fresh } else { Verdict::Refused(Refusal::OutsideWindow) }
            }
        }
    }

    fn marks(&self) -> u64 {
        self.kept.values().filter(|kept| matches!(kept, Kept::RefusedForGood)).count() as u64
    }

    fn encode(&self) -> Bytes {
        let kept: u64 = self.kept.values().map(Kept::bytes).sum();
        let mut out = BytesMut::with_capacity(ROW_HEAD + usize::try_from(kept).unwrap_or(0));
        out.put_u8(ROW_VERSION);
        out.put_u64(self.last_used_ms);
        out.put_u64(self.lowest_unacked);
        // At most two windows.
        out.put_u32(u32::try_from(self.kept.len()).unwrap_or(u32::MAX));
        for (seq, kept) in &self.kept {
            out.put_u64(*seq);
            match kept {
                Kept::RefusedForGood => out.put_u8(REFUSED),
                Kept::Result { hash, outcome } => {
                    out.put_u8(RESULT);
                    out.put_u128(hash.0);
                    // The longest reply has 51 bytes.
                    out.put_u8(u8::try_from(outcome.encoded_len()).unwrap_or(u8::MAX));
                    outcome.put_into(&mut out);
                }
            }
        }
        out.freeze()
    }

    fn decode(mut bytes: Bytes) -> Result<Self, Undecodable> {
        let short = |_: TryGetError| Undecodable("writer");
        if bytes.try_get_u8().map_err(short)? != ROW_VERSION {
            return Err(Undecodable("writer version"));
        }
        let last_used_ms = bytes.try_get_u64().map_err(short)?;
        let lowest_unacked = bytes.try_get_u64().map_err(short)?;
        let mut kept = BTreeMap::new();
        for _ in 0..bytes.try_get_u32().map_err(short)? {
            let seq = bytes.try_get_u64().map_err(short)?;
            let one = match bytes.try_get_u8().map_err(short)? {
                REFUSED => Kept::RefusedForGood,
                RESULT => {
                    let hash = RequestHash(bytes.try_get_u128().map_err(short)?);
                    let length = usize::from(bytes.try_get_u8().map_err(short)?);
                    if bytes.len() < length {
                        return Err(Undecodable("writer"));
                    }
                    Kept::Result { hash, outcome: Outcome::decode(bytes.split_to(length))? }
                }
                _ => return Err(Undecodable("what a writer keeps")),
            };
            if kept.insert(seq, one).is_some() {
                return Err(Undecodable("a second result of one number"));
            }
        }
        if bytes.has_remaining() {
            return Err(Undecodable("writer"));
        }
        Ok(Self { last_used_ms, lowest_unacked, kept })
    }
}

#[cfg(test)]
mod tests;
