//! Records: one change of one replica's log each, framed with its own checksum, so that an entry
//! can be read back alone.
//!
//! Invariants:
//! - L1: an entry's record carries its whole identity and that of the entry before it;
//! - L2: every record carries its segment's number and a checksum that starts from the salt.

use std::ops::Range;

use annulus_types::{GroupId, ReplicaId};
use bytes::{BufMut, Bytes};

use super::{Cursor, Salt};
use crate::{Damage, EntryId, LogState, StreamId, Vote};

/// Bytes before a record's body: checksum, length, segment number, owner, kind.
const FRAME_BYTES: usize = 33;
/// The longest text in a record, bytes.
const TEXT_BYTES: usize = 1024;

/// What a record says about one replica's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The replica is born, with an empty log.
    Create,
    /// The replica is gone for good: a tombstone.
    Destroy,
    Vote(Vote),
    Committed(EntryId),
    /// An entry; its payload travels beside the change.
    Entry {
        id: EntryId,
        prev: Option<EntryId>,
        /// Whether it changes who is a member.
        membership: bool,
    },
    /// Entries after `after` are dropped. Here as in the next two, `membership` is that of the hard
    /// state from then on: the entry that it names may lie in a segment that is gone.
    Truncate {
        after: Option<EntryId>,
        membership: Option<EntryId>,
    },
    /// Entries up to `upto` are dropped.
    Purge {
        upto: EntryId,
        membership: Option<EntryId>,
    },
    /// All entries are dropped; the log goes on after `after` (L7).
    Reset {
        after: EntryId,
        membership: Option<EntryId>,
    },
    /// The hard state at the start of a segment (L6): a copy of what earlier records made.
    State(LogState),
    /// The log is damaged and must not be used (L5). Of [`StreamId::NODE`]: replicas may have been
    /// lost whose very birth is unreadable.
    Damaged(Damage),
}

impl Change {
    /// Whether a replica that misses this record holds a wrong log, or does not know its fate. What
    /// the others say is hard state, and repeated in the manifest.
    pub(crate) fn is_vital(&self) -> bool {
        match self {
            Self::Create
            | Self::Destroy
            | Self::Entry { .. }
            | Self::Truncate { .. }
            | Self::Reset { .. }
            | Self::Damaged(_) => true,
            Self::Vote(_) | Self::Committed(_) | Self::Purge { .. } | Self::State(_) => false,
        }
    }

    /// Whether entries that lie in older segments may be needed no more because of it.
    pub(crate) fn releases(&self) -> bool {
        matches!(
            self,
            Self::Destroy | Self::Truncate { .. } | Self::Purge { .. } | Self::Reset { .. }
        )
    }

    /// The kind, then the body.
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Create => out.put_u8(1),
            Self::Destroy => out.put_u8(2),
            Self::Vote(vote) => {
                out.put_u8(3);
                put_vote(out, Some(*vote));
            }
            Self::Committed(id) => {
                out.put_u8(4);
                put_id(out, Some(*id));
            }
            Self::Entry { id, prev, membership } => {
                out.put_u8(5);
                put_id(out, Some(*id));
                put_id(out, *prev);
                out.put_u8(u8::from(*membership));
            }
            Self::Truncate { after, membership } => {
                out.put_u8(6);
                put_id(out, *after);
                put_id(out, *membership);
            }
            Self::Purge { upto, membership } => {
                out.put_u8(7);
                put_id(out, Some(*upto));
                put_id(out, *membership);
            }
            Self::Reset { after, membership } => {
                out.put_u8(8);
                put_id(out, Some(*after));
                put_id(out, *membership);
            }
            Self::State(state) => {
                out.put_u8(9);
                put_state(out, state);
            }
            Self::Damaged(damage) => {
                out.put_u8(10);
                out.put_u64_le(damage.offset);
                put_text(out, &damage.file);
                put_text(out, &damage.reason);
            }
        }
    }

    fn decode(kind: u8, body: &mut Cursor<'_>) -> Option<Self> {
        Some(match kind {
            1 => Self::Create,
            2 => Self::Destroy,
            3 => Self::Vote(take_vote(body)??),
            4 => Self::Committed(take_id(body)??),
            5 => {
                let (id, prev) = (take_id(body)??, take_id(body)?);
                Self::Entry { id, prev, membership: body.flag()? }
            }
            6 => Self::Truncate { after: take_id(body)?, membership: take_id(body)? },
            7 => Self::Purge { upto: take_id(body)??, membership: take_id(body)? },
            8 => Self::Reset { after: take_id(body)??, membership: take_id(body)? },
            9 => Self::State(take_state(body)?),
            10 => {
                let offset = body.u64()?;
                Self::Damaged(Damage { file: body.text()?, offset, reason: body.text()? })
            }
            _ => return None,
        })
    }
}

/// A change on its way to the disk.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) stream: StreamId,
    pub(crate) change: Change,
    /// Empty for all but entries.
    pub(crate) payload: Bytes,
}

impl Record {
    pub(crate) fn new(stream: StreamId, change: Change) -> Self {
        Self { stream, change, payload: Bytes::new() }
    }
}

/// The records of a batch, laid out before it is known which segment they go to.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    pub(crate) bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl Frames {
    pub(crate) fn of(records: &[Record]) -> Self {
        let mut frames = Self::default();
        for record in records {
            frames.push(record);
        }
        frames
    }

    fn push(&mut self, record: &Record) {
        let start = self.bytes.len();
        self.starts.push(start);
        // Checksum, length and segment number: filled in below and by `stamp`.
        self.bytes.put_bytes(0, 16);
        put_stream(&mut self.bytes, record.stream);
        record.change.encode(&mut self.bytes);
        self.bytes.extend_from_slice(&record.payload);
        let len = (self.bytes.len() - start) as u32;
        self.bytes[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
    }

    /// Where each record lies in `bytes`.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let ends = self.starts.iter().skip(1).copied().chain([self.bytes.len()]);
        self.starts.iter().copied().zip(ends).map(|(start, end)| start..end)
    }

    /// Binds all records to the segment that they are written to.
    pub(crate) fn stamp(&mut self, number: u64, salt: Salt) {
        let ranges: Vec<_> = self.ranges().collect();
        for range in ranges {
            let frame = &mut self.bytes[range];
            frame[8..16].copy_from_slice(&number.to_le_bytes());
            let crc = salt.crc(&frame[4..]);
            frame[..4].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

/// A record as read.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) stream: StreamId,
    pub(crate) change: Change,
    /// Where the payload begins in the record.
    pub(crate) payload_at: usize,
    /// Bytes of the whole record.
    pub(crate) len: usize,
}

/// The record at the front of `bytes`.
pub(crate) fn decode(bytes: &[u8], number: u64, salt: Salt) -> Option<Decoded> {
    let mut cursor = Cursor(bytes);
    let crc = cursor.u32()?;
    let len = cursor.u32()? as usize;
    let record = bytes.get(..len)?;
    if len < FRAME_BYTES || crc != salt.crc(&record[4..]) || cursor.u64()? != number {
        return None;
    }
    let stream = take_stream(&mut cursor)?;
    let kind = cursor.u8()?;
    let mut body = Cursor(&record[FRAME_BYTES..]);
    let change = Change::decode(kind, &mut body)?;
    let payload_at = len - body.0.len();
    let whole = matches!(change, Change::Entry { .. }) || payload_at == len;
    whole.then_some(Decoded { stream, change, payload_at, len })
}

pub(super) fn put_stream(out: &mut Vec<u8>, stream: StreamId) {
    out.put_u64_le(stream.group.0);
    out.put_u64_le(stream.replica.0);
}

pub(super) fn take_stream(cursor: &mut Cursor<'_>) -> Option<StreamId> {
    Some(StreamId { group: GroupId(cursor.u64()?), replica: ReplicaId(cursor.u64()?) })
}

/// Always 25 bytes: a flag, then an identity, zeros when there is none.
pub(super) fn put_id(out: &mut Vec<u8>, id: Option<EntryId>) {
    out.put_u8(u8::from(id.is_some()));
    let id = id.unwrap_or_default();
    out.put_u64_le(id.term);
    out.put_u64_le(id.leader.0);
    out.put_u64_le(id.index);
}

/// The outer `None` means that the bytes are not an identity.
pub(super) fn take_id(cursor: &mut Cursor<'_>) -> Option<Option<EntryId>> {
    let present = cursor.flag()?;
    let (term, leader, index) = (cursor.u64()?, ReplicaId(cursor.u64()?), cursor.u64()?);
    Some(present.then_some(EntryId { term, leader, index }))
}

/// Always 18 bytes: a flag, then a vote, zeros when there is none.
fn put_vote(out: &mut Vec<u8>, vote: Option<Vote>) {
    out.put_u8(u8::from(vote.is_some()));
    let vote = vote.unwrap_or_default();
    out.put_u64_le(vote.term);
    out.put_u64_le(vote.leader.0);
    out.put_u8(u8::from(vote.committed));
}

/// The outer `None` means that the bytes are not a vote.
fn take_vote(cursor: &mut Cursor<'_>) -> Option<Option<Vote>> {
    let present = cursor.flag()?;
    let (term, leader, committed) = (cursor.u64()?, ReplicaId(cursor.u64()?), cursor.flag()?);
    Some(present.then_some(Vote { term, leader, committed }))
}

/// Always 118 bytes.
pub(super) fn put_state(out: &mut Vec<u8>, state: &LogState) {
    put_vote(out, state.vote);
    put_id(out, state.committed);
    put_id(out, state.purged);
    put_id(out, state.last);
    put_id(out, state.membership);
}

pub(super) fn take_state(cursor: &mut Cursor<'_>) -> Option<LogState> {
    Some(LogState {
        vote: take_vote(cursor)?,
        committed: take_id(cursor)?,
        purged: take_id(cursor)?,
        last: take_id(cursor)?,
        membership: take_id(cursor)?,
    })
}

/// Texts are for people: a long one is cut.
fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.put_u16_le(end as u16);
    out.extend_from_slice(&text.as_bytes()[..end]);
}
