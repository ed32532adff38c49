//! What one operation of an entry says, and what its reply says. Pure.
//!
//! ```text
//! operation   kind u8
//!   1 put     namespace u32 | key | value crc u32 | value
//!   2 delete  namespace u32 | expect | key
//!   3 cas     namespace u32 | expect | key | value crc u32 | value
//!   4 create  first micro-slice u16 | micro-slices u16 | epoch u64
//!   5 named   writer u64 | seq u64 | lowest unacked u64 | token u32
//!             | mutation: an operation of kind 1, 2, 3 or 9 to 12
//!   6 open    token u32
//!   7 close   token u32 | writer u64
//!   8 status  token u32 | writer u64 | seq u64
//!   9 incr    namespace u32 | delta i64 | bounds u8 | [least i64] | [most i64] | key
//!   10 batch  namespace u32 | guards u16 | per guard: expect | key
//!             | items u16 | per item: 1 u8: put | key | value crc u32 | value length u32 | value
//!                                     2 u8: delete | key
//!                                     3 u8: put | ttl ms u64 | key | value crc u32
//!                                           | value length u32 | value
//!   11 put    namespace u32 | ttl ms u64 | key | value crc u32 | value
//!   12 cas    namespace u32 | ttl ms u64 | expect | key | value crc u32 | value
//! key         length u16 | bytes
//! expect      0 u8: anything | 1 u8: absent | 2 u8, version u64 | 3 u8: present
//! bounds      1: a least value follows | 2: a greatest value follows | 3: both
//! ```
//!
//! Numbers are big-endian. These bytes are in the log: a new layout takes a new kind. A repeated
//! mutation is recognised by its bytes (W3): what a request says must be encoded alike by every
//! version that may see its repetition.
//!
//! A ttl is the time to live of what is set, never 0: it ends that much, and one millisecond, after the shard
//! time of the entry, which is cut to whole milliseconds (W5). Without one what is set never ends, also where
//! something stood that would have.
//!
//! A token stands where no key tells which shard is meant; it decides after a shard was divided.
//! Replies are in [`outcome`].

pub mod outcome;

mod decode;
mod encode;

use std::num::NonZeroU64;

use annulus_types::{Epoch, NamespaceId, Revision, Token};
use bytes::Bytes;

pub use self::outcome::{Finding, Outcome, Point};

/// The version that a key must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Any, or no key.
    Anything,
    /// The key must not exist.
    Absent,
    /// Exactly this one.
    Version(Revision),
    /// The key must exist.
    Present,
}

/// Names a mutation within its shard (W3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpId {
    /// The writer, by the revision that its opening took.
    pub writer: Revision,
    /// Number of the mutation within the writer, from 1.
    pub seq: u64,
    /// The writer has the answers of all lower ones and will never repeat them.
    pub lowest_unacked: u64,
}

/// What must hold of a key for a batch to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Key.
    pub key: Bytes,
    /// The version it must have.
    pub expect: Expect,
}

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Sets a key.
    Put {
        /// Key.
        key: Bytes,
        /// CRC-32 of the value.
        crc: u32,
        /// Value.
        value: Bytes,
        /// Time to live, milliseconds; `None`: for ever.
        ttl_ms: Option<NonZeroU64>,
    },
    /// Removes a key.
    Delete {
        /// Key.
        key: Bytes,
    },
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets a key.
    Put {
        /// Namespace.
        namespace: NamespaceId,
        /// Key.
        key: Bytes,
        /// CRC-32 of the value.
        crc: u32,
        /// Value.
        value: Bytes,
        /// Time to live, milliseconds; `None`: for ever.
        ttl_ms: Option<NonZeroU64>,
    },
    /// Removes a key.
    Delete {
        /// Namespace.
        namespace: NamespaceId,
        /// Key.
        key: Bytes,
        /// The version it must have.
        expect: Expect,
    },
    /// Sets a key that is at a version.
    Cas {
        /// Namespace.
        namespace: NamespaceId,
        /// Key.
        key: Bytes,
        /// The version it must have.
        expect: Expect,
        /// CRC-32 of the value.
        crc: u32,
        /// Value.
        value: Bytes,
        /// Time to live, milliseconds; `None`: for ever.
        ttl_ms: Option<NonZeroU64>,
    },
    /// Brings a shard of a new cluster into being.
    Create {
        /// First micro-slice of its run.
        first: u16,
        /// Micro-slices in its run.
        count: u16,
        /// Its first epoch.
        epoch: Epoch,
    },
    /// A mutation with a name: it takes effect once, however often it comes (W3).
    Named {
        /// Its name.
        id: OpId,
        /// The token of its key.
        token: Token,
        /// The mutation, encoded: by these bytes a repetition is recognised.
        body: Bytes,
    },
    /// Opens a writer.
    OpenWriter {
        /// A token of the shard.
        token: Token,
    },
    /// Ends a writer.
    CloseWriter {
        /// A token of the shard.
        token: Token,
        /// The writer.
        writer: Revision,
    },
    /// Asks what became of a mutation, and refuses it for good if it is not known.
    OpStatus {
        /// The token of its key.
        token: Token,
        /// The writer.
        writer: Revision,
        /// The mutation.
        seq: u64,
    },
    /// Adds to the decimal number that a key holds; an absent key counts as 0. The key ends when it would
    /// have ended.
    Incr {
        /// Namespace.
        namespace: NamespaceId,
        /// Key.
        key: Bytes,
        /// What is added.
        delta: i64,
        /// The sum must not be below this.
        min: Option<i64>,
        /// The sum must not be above this.
        max: Option<i64>,
    },
    /// Changes several keys, all or none.
    Batch {
        /// Namespace.
        namespace: NamespaceId,
        /// What must hold, all of it.
        guards: Vec<Guard>,
        /// The changes, in order.
        items: Vec<Item>,
    },
}

/// Bytes that do not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} does not decode")]
pub struct Undecodable(pub &'static str);

const PUT: u8 = 1;
const DELETE: u8 = 2;
const CAS: u8 = 3;
const CREATE: u8 = 4;
const NAMED: u8 = 5;
const OPEN_WRITER: u8 = 6;
const CLOSE_WRITER: u8 = 7;
const OP_STATUS: u8 = 8;
const INCR: u8 = 9;
const BATCH: u8 = 10;
const PUT_TTL: u8 = 11;
const CAS_TTL: u8 = 12;

const HAS_MIN: u8 = 1;
const HAS_MAX: u8 = 2;

const ITEM_PUT: u8 = 1;
const ITEM_DELETE: u8 = 2;
const ITEM_PUT_TTL: u8 = 3;

impl Op {
    /// Whether a client may give it a name.
    #[must_use]
    pub fn is_mutation(&self) -> bool {
        match self {
            Self::Put { .. }
            | Self::Delete { .. }
            | Self::Cas { .. }
            | Self::Incr { .. }
            | Self::Batch { .. } => true,
            Self::Create { .. }
            | Self::Named { .. }
            | Self::OpenWriter { .. }
            | Self::CloseWriter { .. }
            | Self::OpStatus { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests;
