//! An entry of ours: a header, then operations of many shards of the group (W5, W8, W9), or nothing more
//! for an entry at which all replicas take a digest (E5). One with no operations is a *time entry*: all that
//! it does is done by its time, under the rules of its version like any other.
//!
//! ```text
//! kind and version u16 | group time ms u64 | wall time ms u64 |
//!     kind 0, operations: count u32 | per operation: shard u64 | length u32 | bytes
//!     kind 1, digest:     nothing
//! ```
//!
//! Numbers are big-endian. The kind is in the upper four bits of the first number. The version, in the
//! other twelve, is that of the *state machine* under whose rules every replica applies the entry (W8),
//! not of this layout, which is the same for all versions so far. Wall time is information for people.
//! What an operation means is the machine's business.

use annulus_types::ShardId;
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::types::Malformed;

/// The state machine version that this build proposes, below 2^12.
pub const MACHINE_VERSION: u16 = 1;

/// The part of the first number that is the version.
const VERSION_BITS: u16 = 0x0fff;
/// The kind of an entry at which a digest is taken, where it stands in the first number.
const DIGEST: u16 = 1 << 12;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 22;
/// Bytes that an operation takes beside its own.
pub const OPERATION_OVERHEAD: usize = 12;

/// One operation on one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The shard that it names; refused at apply when that is not in the group (W8).
    pub shard: ShardId,
    /// What to do, in the machine's encoding.
    pub body: Bytes,
}

/// A decoded entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryBody {
    /// The state machine version it was proposed under.
    pub version: u16,
    /// The group's time, milliseconds.
    pub group_time_ms: u64,
    /// The proposer's wall clock, milliseconds since 1970.
    pub wall_ms: u64,
    /// In order of application; none in a time entry.
    pub operations: Vec<Operation>,
}

impl EntryBody {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let bodies: usize = self.operations.iter().map(|op| op.body.len()).sum();
        let size = HEADER_BYTES + self.operations.len() * OPERATION_OVERHEAD + bodies;
        let mut out = BytesMut::with_capacity(size);
        out.put_u16(self.version);
        out.put_u64(self.group_time_ms);
        out.put_u64(self.wall_ms);
        out.put_u32(u32::try_from(self.operations.len()).unwrap_or(u32::MAX));
        for operation in &self.operations {
            out.put_u64(operation.shard.0);
            out.put_u32(u32::try_from(operation.body.len()).unwrap_or(u32::MAX));
            out.put_slice(&operation.body);
        }
        out.freeze()
    }

    /// Reads the stored form; the operations share its buffer.
    ///
    /// # Errors
    /// When it is cut short or has bytes left over, or is of another kind.
    pub fn decode(mut bytes: Bytes) -> Result<Self, Malformed> {
        let short = |_| Malformed("entry is cut short");
        let version = bytes.try_get_u16().map_err(short)?;
        if version & !VERSION_BITS != 0 {
            return Err(Malformed("entry of another kind"));
        }
        let group_time_ms = bytes.try_get_u64().map_err(short)?;
        let wall_ms = bytes.try_get_u64().map_err(short)?;
        let count = bytes.try_get_u32().map_err(short)?;
        let mut operations = Vec::new();
        for _ in 0..count {
            let shard = ShardId(bytes.try_get_u64().map_err(short)?);
            let length = bytes.try_get_u32().map_err(short)? as usize;
            if bytes.len() < length {
                return Err(Malformed("entry is cut short"));
            }
            operations.push(Operation { shard, body: bytes.split_to(length) });
        }
        if bytes.has_remaining() {
            return Err(Malformed("entry has bytes left over"));
        }
        Ok(Self { version, group_time_ms, wall_ms, operations })
    }
}

/// An entry at which every replica takes a digest of its state (E5). It changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestBody {
    /// The state machine version it was proposed under.
    pub version: u16,
    /// The group's time, milliseconds.
    pub group_time_ms: u64,
    /// The proposer's wall clock, milliseconds since 1970.
    pub wall_ms: u64,
}

impl DigestBody {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES);
        out.put_u16(DIGEST | self.version);
        out.put_u64(self.group_time_ms);
        out.put_u64(self.wall_ms);
        out.freeze()
    }

    fn decode(mut bytes: Bytes) -> Result<Self, Malformed> {
        let short = |_| Malformed("entry is cut short");
        let version = bytes.try_get_u16().map_err(short)? & VERSION_BITS;
        let group_time_ms = bytes.try_get_u64().map_err(short)?;
        let wall_ms = bytes.try_get_u64().map_err(short)?;
        if bytes.has_remaining() {
            return Err(Malformed("entry has bytes left over"));
        }
        Ok(Self { version, group_time_ms, wall_ms })
    }
}

/// An entry of either kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// See [`EntryBody`].
    Operations(EntryBody),
    /// See [`DigestBody`].
    Digest(DigestBody),
}

impl Decoded {
    /// Reads the stored form.
    ///
    /// # Errors
    /// When it is cut short, has bytes left over, or is of a kind that this build does not know.
    pub fn read(bytes: Bytes) -> Result<Self, Malformed> {
        let kind = match bytes[..] {
            [first, second, ..] => u16::from_be_bytes([first, second]) & !VERSION_BITS,
            _ => return Err(Malformed("entry is cut short")),
        };
        match kind {
            0 => EntryBody::decode(bytes).map(Self::Operations),
            DIGEST => DigestBody::decode(bytes).map(Self::Digest),
            _ => Err(Malformed("entry of an unknown kind")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_round_trip_and_every_cut_is_refused() {
        let body = EntryBody {
            version: MACHINE_VERSION,
            group_time_ms: 5,
            wall_ms: 6,
            operations: vec![
                Operation { shard: ShardId(1), body: Bytes::from_static(b"one") },
                Operation { shard: ShardId(2), body: Bytes::new() },
            ],
        };
        let bytes = body.encode();
        assert_eq!(
            bytes.as_ref(),
            b"\0\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x06\0\0\0\x02\
              \0\0\0\0\0\0\0\x01\0\0\0\x03one\0\0\0\0\0\0\0\x02\0\0\0\0"
        );
        for end in 0..bytes.len() {
            assert!(EntryBody::decode(bytes.slice(..end)).is_err(), "{end}");
        }
        let mut longer = BytesMut::from(bytes.as_ref());
        longer.put_u8(0);
        assert!(EntryBody::decode(longer.freeze()).is_err());
        assert_eq!(EntryBody::decode(bytes.clone()).unwrap(), body);
        assert_eq!(Decoded::read(bytes).unwrap(), Decoded::Operations(body));
    }

    #[test]
    fn time_entries_have_no_operations_and_their_bytes_are_pinned() {
        let (version, operations) = (MACHINE_VERSION, Vec::new());
        let body = EntryBody { version, group_time_ms: 5, wall_ms: 6, operations };
        let bytes = body.encode();
        assert_eq!(bytes.as_ref(), b"\0\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x06\0\0\0\0");
        for end in 0..bytes.len() {
            assert!(Decoded::read(bytes.slice(..end)).is_err(), "{end}");
        }
        assert_eq!(Decoded::read(bytes).unwrap(), Decoded::Operations(body));
    }

    #[test]
    fn digest_entries_are_told_apart_and_their_bytes_are_pinned() {
        let body = DigestBody { version: MACHINE_VERSION, group_time_ms: 5, wall_ms: 6 };
        let bytes = body.encode();
        assert_eq!(bytes.as_ref(), b"\x10\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x06");
        assert_eq!(Decoded::read(bytes.clone()).unwrap(), Decoded::Digest(body));
        assert!(EntryBody::decode(bytes.clone()).is_err());
        for end in 0..bytes.len() {
            assert!(Decoded::read(bytes.slice(..end)).is_err(), "{end}");
        }
        let mut longer = BytesMut::from(bytes.as_ref());
        longer.put_u8(0);
        assert!(Decoded::read(longer.freeze()).is_err());
        let mut unknown = BytesMut::from(bytes.as_ref());
        unknown[0] = 0x20;
        assert!(Decoded::read(unknown.freeze()).is_err());
    }
}
