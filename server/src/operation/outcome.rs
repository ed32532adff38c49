//! What became of an operation: the reply that its proposer gets, and what a writer table keeps of a
//! named one (W3). Pure.
//!
//! ```text
//! reply       0 u8: done | version u64 | point
//!             1 u8: precondition failed | exists u8 | current version u64
//!             2 u8: the shard is not in this group, or does not own the key
//!             3 u8: the operation id was used for something else, or is settled
//!             4 u8: the writer is not known
//!             5 u8: the operation id is none that its writer may use
//!             6 u8: the writer table is full
//!             7 u8: counted | number i64 | point
//!             8 u8: out of bounds | number i64 | point
//!             9 u8: the value is not a number | point
//!             10 u8: status | point | finding
//! point       revision u64 | epoch u64 | shard time ms u64
//! finding     0 u8: applied | version u64 | revision u64 | has number u8 | number i64
//!             1 u8: judged, and nothing changed
//!             2 u8: not applied
//!             3 u8: settled, result not kept
//!             4 u8: the writer has ended
//! ```
//!
//! Numbers are big-endian. Replies are stored in writer tables: a new layout takes a new kind.

use annulus_types::{Epoch, Revision};
use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};

use super::Undecodable;

/// Where a shard stood when it judged an operation: what a receipt says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// The shard's revision, the operation's own change included.
    pub revision: Revision,
    /// The shard's epoch.
    pub epoch: Epoch,
    /// The shard's time, milliseconds.
    pub shard_time_ms: u64,
}

/// What an operation's status is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It took effect, or there was nothing to change.
    Applied {
        /// Of the key after it, as [`Outcome::Done`] has it.
        version: Revision,
        /// The shard's after it.
        revision: Revision,
        /// The number after it, if it counted.
        number: Option<i64>,
    },
    /// It was judged, its condition did not hold, and nothing changed.
    Failed,
    /// It was never judged, and from now on it is refused.
    NotApplied,
    /// Its sender had its answer; what it was is not kept.
    NotKept,
    /// Its writer has ended: it cannot be applied any more; whether it was is not known.
    Ended,
}

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied (or changed nothing because there was nothing to change).
    Done {
        /// The key's version now; 0 when it does not exist. Of a batch: the version of every key
        /// that it has set. Of an opened writer: 0; its id is the revision.
        version: Revision,
        /// The shard's revision now.
        revision: Revision,
        /// The shard's epoch.
        epoch: Epoch,
        /// The shard's time, milliseconds.
        shard_time_ms: u64,
    },
    /// The key, or the first guarded one, is at another version.
    PreconditionFailed {
        /// The version found.
        current: Option<Revision>,
    },
    /// The shard is not here, or does not own the key.
    NotHere,
    /// The operation id was used for something else, or is settled.
    OpIdReused,
    /// The writer is not known: it was closed, ended by time, or never opened.
    WriterExpired,
    /// The operation id is none that its writer may use.
    OutsideWindow,
    /// The shard takes no more writers.
    WritersFull,
    /// A number was added to.
    Counted {
        /// The sum.
        number: i64,
        /// Its revision is the key's version.
        at: Point,
    },
    /// The sum would be outside of its bounds, or of 64 bits.
    OutOfBounds {
        /// The number as it is.
        number: i64,
        /// Where this was found.
        at: Point,
    },
    /// The key holds something else than a number.
    NotANumber {
        /// Where this was found.
        at: Point,
    },
    /// What is known of another operation.
    Status {
        /// What is known.
        finding: Finding,
        /// Where this was found.
        at: Point,
    },
}

const DONE: u8 = 0;
const PRECONDITION_FAILED: u8 = 1;
const NOT_HERE: u8 = 2;
const OP_ID_REUSED: u8 = 3;
const WRITER_EXPIRED: u8 = 4;
const OUTSIDE_WINDOW: u8 = 5;
const WRITERS_FULL: u8 = 6;
const COUNTED: u8 = 7;
const OUT_OF_BOUNDS: u8 = 8;
const NOT_A_NUMBER: u8 = 9;
const STATUS: u8 = 10;

const POINT_BYTES: usize = 24;

fn short(_: TryGetError) -> Undecodable {
    Undecodable("reply")
}

impl Point {
    fn put_into(self, out: &mut BytesMut) {
        out.put_u64(self.revision.0);
        out.put_u64(self.epoch.0);
        out.put_u64(self.shard_time_ms);
    }

    fn take(bytes: &mut Bytes) -> Result<Self, Undecodable> {
        Ok(Self {
            revision: Revision(bytes.try_get_u64().map_err(short)?),
            epoch: Epoch(bytes.try_get_u64().map_err(short)?),
            shard_time_ms: bytes.try_get_u64().map_err(short)?,
        })
    }
}

impl Finding {
    fn put_into(self, out: &mut BytesMut) {
        match self {
            Self::Applied { version, revision, number } => {
                out.put_u8(0);
                out.put_u64(version.0);
                out.put_u64(revision.0);
                out.put_u8(u8::from(number.is_some()));
                out.put_i64(number.unwrap_or_default());
            }
            Self::Failed => out.put_u8(1),
            Self::NotApplied => out.put_u8(2),
            Self::NotKept => out.put_u8(3),
            Self::Ended => out.put_u8(4),
        }
    }

    fn take(bytes: &mut Bytes) -> Result<Self, Undecodable> {
        match bytes.try_get_u8().map_err(short)? {
            0 => {
                let version = Revision(bytes.try_get_u64().map_err(short)?);
                let revision = Revision(bytes.try_get_u64().map_err(short)?);
                let has_number = bytes.try_get_u8().map_err(short)? == 1;
                let number = bytes.try_get_i64().map_err(short)?;
                Ok(Self::Applied { version, revision, number: has_number.then_some(number) })
            }
            1 => Ok(Self::Failed),
            2 => Ok(Self::NotApplied),
            3 => Ok(Self::NotKept),
            4 => Ok(Self::Ended),
            _ => Err(Undecodable("finding")),
        }
    }
}

impl Outcome {
    /// A [`Outcome::Done`] at a point.
    #[must_use]
    pub fn done(version: Revision, at: Point) -> Self {
        let Point { revision, epoch, shard_time_ms } = at;
        Self::Done { version, revision, epoch, shard_time_ms }
    }

    /// The form in which a proposer gets it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.encoded_len());
        self.put_into(&mut out);
        out.freeze()
    }

    /// Bytes of that form.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        1 + match self {
            Self::Done { .. } | Self::Counted { .. } | Self::OutOfBounds { .. } => 8 + POINT_BYTES,
            Self::PreconditionFailed { .. } => 9,
            Self::NotHere
            | Self::OpIdReused
            | Self::WriterExpired
            | Self::OutsideWindow
            | Self::WritersFull => 0,
            Self::NotANumber { .. } => POINT_BYTES,
            Self::Status { finding: Finding::Applied { .. }, .. } => POINT_BYTES + 26,
            Self::Status { .. } => POINT_BYTES + 1,
        }
    }

    /// Appends that form.
    pub(crate) fn put_into(self, out: &mut BytesMut) {
        match self {
            Self::Done { version, revision, epoch, shard_time_ms } => {
                out.put_u8(DONE);
                out.put_u64(version.0);
                Point { revision, epoch, shard_time_ms }.put_into(out);
            }
            Self::PreconditionFailed { current } => {
                out.put_u8(PRECONDITION_FAILED);
                out.put_u8(u8::from(current.is_some()));
                out.put_u64(current.unwrap_or_default().0);
            }
            Self::NotHere => out.put_u8(NOT_HERE),
            Self::OpIdReused => out.put_u8(OP_ID_REUSED),
            Self::WriterExpired => out.put_u8(WRITER_EXPIRED),
            Self::OutsideWindow => out.put_u8(OUTSIDE_WINDOW),
            Self::WritersFull => out.put_u8(WRITERS_FULL),
            Self::Counted { number, at } => {
                out.put_u8(COUNTED);
                out.put_i64(number);
                at.put_into(out);
            }
            Self::OutOfBounds { number, at } => {
                out.put_u8(OUT_OF_BOUNDS);
                out.put_i64(number);
                at.put_into(out);
            }
            Self::NotANumber { at } => {
                out.put_u8(NOT_A_NUMBER);
                at.put_into(out);
            }
            Self::Status { finding, at } => {
                out.put_u8(STATUS);
                at.put_into(out);
                finding.put_into(out);
            }
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is cut short, has bytes left over, or is of an unknown kind.
    pub fn decode(mut bytes: Bytes) -> Result<Self, Undecodable> {
        let outcome = match bytes.try_get_u8().map_err(short)? {
            DONE => {
                let version = Revision(bytes.try_get_u64().map_err(short)?);
                Self::done(version, Point::take(&mut bytes)?)
            }
            PRECONDITION_FAILED => {
                let exists = bytes.try_get_u8().map_err(short)? == 1;
                let version = Revision(bytes.try_get_u64().map_err(short)?);
                Self::PreconditionFailed { current: exists.then_some(version) }
            }
            NOT_HERE => Self::NotHere,
            OP_ID_REUSED => Self::OpIdReused,
            WRITER_EXPIRED => Self::WriterExpired,
            OUTSIDE_WINDOW => Self::OutsideWindow,
            WRITERS_FULL => Self::WritersFull,
            COUNTED => {
                let number = bytes.try_get_i64().map_err(short)?;
                Self::Counted { number, at: Point::take(&mut bytes)? }
            }
            OUT_OF_BOUNDS => {
                let number = bytes.try_get_i64().map_err(short)?;
                Self::OutOfBounds { number, at: Point::take(&mut bytes)? }
            }
            NOT_A_NUMBER => Self::NotANumber { at: Point::take(&mut bytes)? },
            STATUS => {
                let at = Point::take(&mut bytes)?;
                Self::Status { finding: Finding::take(&mut bytes)?, at }
            }
            _ => return Err(Undecodable("reply kind")),
        };
        if bytes.has_remaining() { Err(Undecodable("reply")) } else { Ok(outcome) }
    }
}
