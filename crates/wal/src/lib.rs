//! The write-ahead log of a node: one log on the disk for all Raft replicas that the node holds.
//!
//! # Why one log
//!
//! Raft says: an entry counts, and a vote may be told, only when it would survive a power cut. So
//! every round of every group waits for a sync of the disk, and syncs are the scarcest thing that a
//! node has. This crate lets all groups share them. Whatever any group has queued while the last
//! sync was running is written together, as one *batch*, with one write and one sync. With one busy
//! group or with fifty, the disk sees the same stream of batches.
//!
//! What a group sees is a log of its own, a [`GroupLog`]: numbered entries to append, truncate and
//! purge, a vote to save, a hint how far the log is committed.
//!
//! ```text
//!  GroupLog ─┐  append, save_vote, …            Writer (one thread)
//!  GroupLog ─┼──► one lock: index + queue ──► take all ► write ► sync ► settle ► complete
//!  GroupLog ─┘        ▲                                                  │
//!                     └───────── places of durable entries ──────────────┘
//! ```
//!
//! An operation takes effect in the *index* and in the *queue* under one lock. So entries are
//! readable as soon as `append` returns, there is one order of everything, and completions run in
//! that order (L8). The writer is a loop without choices: it takes the whole queue, writes it,
//! syncs it, tells the index where the entries lie, and calls the completions. There is no mode
//! that completes before the sync (L9). Entries stay in memory until they are durable, and after
//! that as long as there is room; then they are read back from the disk, each under a checksum of
//! its own.
//!
//! If a write or a sync fails, nobody knows what is on the disk, and asking again proves nothing:
//! the kernel may have dropped the pages and call the file clean. So the first failure is the last
//! operation of this log: everything waiting and everything later completes with an error, and the
//! node restarts from what is really there.
//!
//! # What can happen to a batch
//!
//! A disk writes sectors of 512 bytes, each whole or not at all, in any order; a power cut in the
//! middle of a batch leaves any subset of its sectors. And sectors rot. A checksum that fails does
//! not tell which of the two it was, and the difference decides everything:
//!
//! - a *torn* batch was never synced, so nobody was ever told about it. It must be forgotten, or
//!   two nodes with doubtful tails wait for each other for ever;
//! - a *damaged* batch was synced and promised. Forgetting it means to vote twice in a term, or to
//!   lose an entry that was committed.
//!
//! The format exists to tell them apart (L3). A bad batch is torn if and only if both hold:
//!
//! 1. no later batch says that it was durable. Every batch carries a *durable mark*: up to here
//!    everything was synced when I was written;
//! 2. one of its sectors was never written. A sector that this log writes ends with a *tag*, made
//!    of the segment's random salt and the sector's position. An unwritten sector holds zeros, or,
//!    in a recycled file, the tag of the file's former life. Rot does not make either.
//!
//! Everything else is damage. It concerns the replicas that the batch's *manifest* names; the
//! manifest stands at both ends of the batch, under a checksum of its own, so that it is usually
//! readable when the records are not. If it is not readable, every replica of the node is
//! concerned. The manifest also repeats the hard state of the replicas in the batch, so that a vote
//! is not lost with its neighbour (L4). A damaged log is never mended: [`Wal::damage`] names file
//! and offset, the replica stops and is replaced under a new id (L5).
//!
//! # Segments
//!
//! The log is a row of files, `00000000000000000001.wal` and so on, by default 16 MiB each. A
//! segment is filled with zeros and synced before use, so that later syncs need not touch the file
//! system's own records. Its number is never used again, and its salt is random; both are in every
//! batch and record, and every checksum starts from the salt. So nothing from another segment, from
//! a former life of the file, or from a user's value that looks like a record is ever taken for
//! part of the log (L2).
//!
//! A batch that does not fit begins a new segment; a batch larger than a segment gets a segment of
//! its own size. The first batch of a segment
//!
//! - *seals* the segments before it: from now on they end there, whatever lies behind;
//! - holds the *hard state* of all replicas and the tombstones (L6): vote, committed and purge
//!   point, last entry, newest membership entry. That is the second copy of every vote, and what
//!   lets old segments go;
//! - then holds what was queued.
//!
//! When all entries in the oldest segments have been purged, durably, one of them is kept to be
//! recycled and the others are removed, oldest first. To recycle: fill with zeros what its last
//! life did not write, sync; rename, sync the folder; write the new header, which keeps the former
//! salt, sync.
//!
//! # Memberships
//!
//! An entry may be flagged as one that changes who is a member; the log does not look into it. The
//! hard state names the newest one (L6), so that a replica never starts with the members of an
//! older one without noticing:
//!
//! - a truncation falls back to the one before;
//! - a purge up to an entry of the log leaves the name, though not the entry: the checkpoint at the
//!   purge point knows its content;
//! - when the log gives up its entries for one that it never held (a reset, or a purge beyond its
//!   end), only what the commit hint covers stays named. The rest may be entries of a leader that
//!   was overruled, which no checkpoint knows.
//!
//! What the name becomes is written into the record of such a change: by the time of a recovery,
//! the segment with the entry may be gone.
//!
//! # Recovery
//!
//! Segments are read from the newest to the oldest, because a batch is judged by what later ones
//! say of it; then what counts is replayed from the oldest to the newest. Four things can be at the
//! end:
//!
//! - a file without a header: the power went while the segment was made. It is *unborn*, and
//!   ignored if nothing says that it held something, and both header blocks hold zeros or the
//!   former header;
//! - a torn batch: the log ends before it;
//! - whole batches above the highest durable mark. They may have been synced and promised, or may
//!   exist only in the page cache of a machine whose process was killed between write and sync. In
//!   that case the next power cut takes away what was just read. So they count, and are written
//!   *again*, into the first batch of a new segment that seals the old one below them. Until that
//!   batch is durable [`Wal::open`] does not return and nobody is told anything; if it is torn, the
//!   old segment counts as before;
//! - damage.
//!
//! A sound log never ends below a point up to which it was once durable: [`Wal::recovered_end`] says
//! why. Whoever was told such a point can therefore tell a log that was set back.
//!
//! Recovery never writes into an old segment. Segments that count for nothing any more are removed
//! when the new one is durable; one with damage in it is kept aside, as `….wal.damaged`.
//!
//! # Format, version 1
//!
//! All numbers are little-endian. `crc` is CRC-32 (IEEE); `crc*` is the same over the salt's eight
//! bytes and then the named bytes. An *identity* has 25 bytes: a flag (0 none, 1 some), term u64,
//! leader u64, index u64, zeros when there is none. A *vote* has 18: flag, term u64, leader u64,
//! committed u8. A *hard state* has 118: a vote and the identities committed, purged, last,
//! membership.
//!
//! A segment begins with its header, twice, at 0 and at 4096. One good copy is enough.
//!
//! ```text
//!  0  magic "ANNULWAL"           17  salt u64, never 0
//!  8  version u8 = 1             25  salt of the file's former life u64, 0 = none
//!  9  number u64                 33  crc of bytes 0..33, u32; zeros up to 4096
//! ```
//!
//! From 8192 on it holds batches, each of whole 4096-byte blocks. Every 512-byte sector of a batch
//! is 508 bytes of content and a 4-byte tag:
//! `(upper half of the salt | 1 << 31) xor sector number`, so that no tag is zero and the tags of
//! two lives differ everywhere. The content of a batch, without the tags:
//!
//! ```text
//!  head      64 bytes
//!  manifest
//!  records   one after another
//!  zeros     so that the batch fills its blocks
//!  manifest  the same bytes
//!  head      the same but for magic and checksum
//! ```
//!
//! ```text
//!  head                                              manifest
//!   0  magic "AWB<", at the end "AWB>"                seals: count u32, then each
//!   4  segment number u64                               segment u64, end u64, checksum u32
//!  12  offset of the batch in the file u64            replicas: count u32, then each
//!  20  blocks u32                                       group u64, replica u64
//!  24  durable mark: segment u64, offset u64            vital u8: entries, truncation, birth …
//!  40  manifest bytes u32                               identity of the first entry in the batch
//!  44  crc* of the manifest u32                         hard state after the batch
//!  48  bytes of all records u64
//!  56  crc* of records and zeros u32
//!  60  crc* of bytes 0..60 u32
//! ```
//!
//! The checksum in a seal is that of the first head of the batch that ends where the seal says. A
//! segment sealed at 8192, with checksum 0, counts for nothing: its content is written again behind
//! the seal.
//!
//! ```text
//!  record                                kinds and bodies
//!   0  crc* of bytes 4.. u32              1 create                2 destroy
//!   4  bytes of the whole record u32      3 vote                  4 committed: identity
//!   8  segment number u64                 5 entry: identity, identity before it,
//!  16  group u64                            membership u8 (1 if it changes members), payload
//!  24  replica u64                        6 truncate: last identity kept, membership
//!  32  kind u8                            7 purge: last identity dropped, membership
//!  33  body                               8 reset: identity that the log begins after, membership
//!                                         9 hard state
//!                                        10 damaged: offset u64, file, reason (length u16, UTF-8)
//! ```
//!
//! The membership in 6, 7 and 8 is the identity that the hard state names from then on.
//!
//! A damage record whose group and replica have all bits set says that replicas may have been lost
//! whose very birth is unreadable.
//!
//! # Code map
//!
//! `format` is the layout, `recovery` the judgement, both pure. `ledger` is the fold of changes
//! into hard state, `index` adds the entries. `segment` makes and reads files, `shared` is the lock
//! with queue and index, `writer` the loop, `log` the handles. `weaken` lets tests turn single
//! rules off, to show that each one is needed.
//!
//! Outside the fault model: a disk that loses a flush that it reported, and rot that writes zeros
//! or exact tags.

mod format;
mod index;
mod ledger;
mod log;
mod recovery;
mod segment;
mod shared;
#[cfg(test)]
mod tests;
mod weaken;
mod writer;

use std::fmt;

use annulus_types::{GroupId, ReplicaId};
use bytes::Bytes;

pub use format::Position;
pub use log::{GroupLog, Wal};
pub use writer::Writer;

/// One replica's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    /// The group.
    pub group: GroupId,
    /// The seat of this node in it.
    pub replica: ReplicaId,
}

impl StreamId {
    /// Stands for the replicas that nobody knows of any more; ids of real ones are below 2^53 (H5).
    pub(crate) const NODE: Self = Self { group: GroupId(u64::MAX), replica: ReplicaId(u64::MAX) };
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.replica)
    }
}

/// The identity of an entry (L1): one term can have several leaders, so all three are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// The term.
    pub term: u64,
    /// The replica that led when the entry was proposed.
    pub leader: ReplicaId,
    /// The place in the log.
    pub index: u64,
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {}, {})", self.term, self.leader, self.index)
    }
}

/// A vote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vote {
    /// The term.
    pub term: u64,
    /// The candidate.
    pub leader: ReplicaId,
    /// Whether a quorum is known to have granted it.
    pub committed: bool,
}

/// An entry. The log does not look into the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which one it is.
    pub id: EntryId,
    /// Whether it changes who is a member. The log keeps the place of the newest such entry in its
    /// hard state.
    pub membership: bool,
    /// At most 1 GiB.
    pub payload: Bytes,
}

/// What a log holds, apart from its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The newest vote.
    pub vote: Option<Vote>,
    /// The newest commit hint.
    pub committed: Option<EntryId>,
    /// Entries up to this one were dropped.
    pub purged: Option<EntryId>,
    /// The last entry of the log, or `purged` when none is held.
    pub last: Option<EntryId>,
    /// The newest membership entry at or below `last` that the log has held and that is known to
    /// have led there. At or below `purged` its content is in the checkpoint.
    pub membership: Option<EntryId>,
}

/// Called once, with the outcome, on the thread of the writer, or at once when an operation is
/// refused. Must not block.
pub type Completion = Box<dyn FnOnce(Result<(), WalError>) + Send>;

/// Damage in acknowledged data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file's name in the folder of the log.
    pub file: String,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// What is wrong there.
    pub reason: String,
}

/// Settings of a log.
#[derive(Clone, Debug)]
pub struct Options {
    /// Length of a segment, bytes; rounded up to whole blocks of 4 KiB.
    pub segment_bytes: u64,
    /// Payloads kept in memory when they are durable, bytes, over all replicas.
    pub tail_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, tail_bytes: 64 << 20 }
    }
}

/// Counts since the log was opened, and its size now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Lengths of all segment files, bytes.
    pub bytes_on_disk: u64,
    /// Segment files.
    pub segments: u64,
    /// Segments that were recycled.
    pub recycled: u64,
    /// Batches written.
    pub batches: u64,
    /// Syncs of files, those of new segments included.
    pub syncs: u64,
    /// Bytes of all batches.
    pub bytes_written: u64,
    /// Records written, without repeated hard state.
    pub records: u64,
}

/// Why an operation did not happen, or is not known to have happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// The disk failed. After a failed write or sync nothing is acknowledged any more, and what was
    /// under way may or may not be on the disk.
    #[error("the log could not {action}: {reason}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// What the disk said.
        reason: String,
    },
    /// The log was closed, or its writer is gone.
    #[error("the log is closed")]
    Closed,
    /// The replica's log must not be used any more (L5).
    #[error("the log is damaged in {file} at byte {offset}: {reason}")]
    Damaged {
        /// The file's name in the folder of the log.
        file: String,
        /// Bytes from the start of the file.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// The replica was destroyed; ids are never used again.
    #[error("the replica was destroyed")]
    Destroyed,
    /// The replica was never created.
    #[error("the replica is not in the log")]
    Unknown,
    /// The operation does not fit the log; nothing has changed.
    #[error("refused: {reason}")]
    Refused {
        /// What does not fit.
        reason: String,
    },
}

impl WalError {
    fn damaged(Damage { file, offset, reason }: Damage) -> Self {
        Self::Damaged { file, offset, reason }
    }
}
