//! What the engine holds for a shard: the head of its record, values, and deadlines. Pure.
//!
//! ```text
//! head    version u8 = 1 | prefix u64 | first micro-slice u16 | micro-slices u16 | revision u64
//!         | epoch u64 | time offset ms i64 | keys u64 | bytes u64
//! value   version u8 = 1 | revision u64 | deadline ms u64 (0: none) | crc u32 | value
//! ending  version u8 = 1 | bytes of the value u64       the row of a deadline
//! ```
//!
//! Numbers are big-endian. A value's revision is the key's version. Its CRC-32 is the client's, and
//! covers the value alone: it is checked whenever a value is read. A deadline is shown to people; when it is
//! reached the key is still there, until an entry ends it (W5).

use annulus_engine::key::Prefix;
use annulus_types::{Epoch, Revision, Token};
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::operation::Undecodable;

const HEAD_VERSION: u8 = 1;
const VALUE_VERSION: u8 = 1;
const ENDING_VERSION: u8 = 1;

/// The head of a shard's record on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Where its data lie (E3). Node-local.
    pub prefix: Prefix,
    /// First micro-slice of its run.
    pub first: u16,
    /// Micro-slices in its run.
    pub count: u16,
    /// Mutations so far (W1).
    pub revision: Revision,
    /// Changes of group or slice so far.
    pub epoch: Epoch,
    /// Shard time minus group time, milliseconds (W5).
    pub time_offset_ms: i64,
    /// Live keys.
    pub keys: u64,
    /// Bytes of live keys and values.
    pub bytes: u64,
}

impl Head {
    /// Whether the shard's run holds `token`.
    #[must_use]
    pub fn owns(&self, token: Token) -> bool {
        let micro = token.micro_slice();
        micro >= self.first && micro - self.first < self.count
    }

    /// The shard's time at a group time, milliseconds.
    #[must_use]
    pub fn shard_time_ms(&self, group_time_ms: u64) -> u64 {
        group_time_ms.saturating_add_signed(self.time_offset_ms)
    }

    /// The group time at which the shard's time is this, milliseconds.
    #[must_use]
    pub fn group_time_ms(&self, shard_time_ms: u64) -> u64 {
        shard_time_ms.saturating_add_signed(self.time_offset_ms.saturating_neg())
    }

    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(53);
        out.put_u8(HEAD_VERSION);
        out.put_u64(self.prefix.0);
        out.put_u16(self.first);
        out.put_u16(self.count);
        out.put_u64(self.revision.0);
        out.put_u64(self.epoch.0);
        out.put_i64(self.time_offset_ms);
        out.put_u64(self.keys);
        out.put_u64(self.bytes);
        out.freeze()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When it is cut short or of an unknown version.
    pub fn decode(mut bytes: Bytes) -> Result<Self, Undecodable> {
        if bytes.len() != 53 || bytes.get_u8() != HEAD_VERSION {
            return Err(Undecodable("shard record"));
        }
        Ok(Self {
            prefix: Prefix(bytes.get_u64()),
            first: bytes.get_u16(),
            count: bytes.get_u16(),
            revision: Revision(bytes.get_u64()),
            epoch: Epoch(bytes.get_u64()),
            time_offset_ms: bytes.get_i64(),
            keys: bytes.get_u64(),
            bytes: bytes.get_u64(),
        })
    }
}

/// A stored value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The revision that wrote it: the key's version.
    pub revision: Revision,
    /// The shard time at which it ends; 0: never.
    pub deadline_ms: u64,
    /// CRC-32 of `value`, made by the client.
    pub crc: u32,
    /// The value.
    pub value: Bytes,
}

/// Bytes before the value.
pub const VALUE_HEADER: usize = 21;

impl Value {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(VALUE_HEADER + self.value.len());
        out.put_u8(VALUE_VERSION);
        out.put_u64(self.revision.0);
        out.put_u64(self.deadline_ms);
        out.put_u32(self.crc);
        out.put_slice(&self.value);
        out.freeze()
    }

    /// Reads the stored form; the value shares its buffer. Does not check the CRC.
    ///
    /// # Errors
    /// When it is cut short or of an unknown version.
    pub fn decode(mut bytes: Bytes) -> Result<Self, Undecodable> {
        if bytes.len() < VALUE_HEADER || bytes.get_u8() != VALUE_VERSION {
            return Err(Undecodable("stored value"));
        }
        Ok(Self {
            revision: Revision(bytes.get_u64()),
            deadline_ms: bytes.get_u64(),
            crc: bytes.get_u32(),
            value: bytes,
        })
    }
}

/// What the row of a deadline holds beside the key that ends: enough to count it out without a look at its
/// value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Bytes of the value.
    pub bytes: u64,
}

impl Ending {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(9);
        out.put_u8(ENDING_VERSION);
        out.put_u64(self.bytes);
        out.freeze()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When it is cut short or of an unknown version.
    pub fn decode(mut bytes: Bytes) -> Result<Self, Undecodable> {
        if bytes.len() != 9 || bytes.get_u8() != ENDING_VERSION {
            return Err(Undecodable("deadline"));
        }
        Ok(Self { bytes: bytes.get_u64() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_pinned() {
        let head = Head {
            prefix: Prefix(1),
            first: 8,
            count: 8,
            revision: Revision(2),
            epoch: Epoch(3),
            time_offset_ms: -4,
            keys: 5,
            bytes: 6,
        };
        let bytes = head.encode();
        assert_eq!(
            bytes.as_ref(),
            b"\x01\0\0\0\0\0\0\0\x01\0\x08\0\x08\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\
              \xff\xff\xff\xff\xff\xff\xff\xfc\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x06"
        );
        assert_eq!(Head::decode(bytes.clone()), Ok(head));
        assert!(Head::decode(bytes.slice(..52)).is_err());
        let value = Value {
            revision: Revision(1),
            deadline_ms: 2,
            crc: 3,
            value: Bytes::from_static(b"v"),
        };
        assert_eq!(value.encode().as_ref(), b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03v");
        assert_eq!(Value::decode(value.encode()), Ok(value));
        let ending = Ending { bytes: 5 };
        assert_eq!(ending.encode().as_ref(), b"\x01\0\0\0\0\0\0\0\x05");
        assert_eq!(Ending::decode(ending.encode()), Ok(ending));
        assert!(Ending::decode(ending.encode().slice(..8)).is_err());
    }

    #[test]
    fn shard_time_and_group_time_are_one_offset_apart() {
        for (offset, group_ms, shard_ms) in [(0, 7, 7), (5, 7, 12), (-5, 7, 2)] {
            let head = Head {
                prefix: Prefix(0),
                first: 0,
                count: 1,
                revision: Revision(0),
                epoch: Epoch(1),
                time_offset_ms: offset,
                keys: 0,
                bytes: 0,
            };
            assert_eq!(head.shard_time_ms(group_ms), shard_ms);
            assert_eq!(head.group_time_ms(shard_ms), group_ms);
        }
    }

    #[test]
    fn a_run_owns_its_micro_slices_only() {
        let head = Head {
            prefix: Prefix(0),
            first: 8,
            count: 8,
            revision: Revision(0),
            epoch: Epoch(1),
            time_offset_ms: 0,
            keys: 0,
            bytes: 0,
        };
        let token = |micro: u32| Token(micro << 22);
        assert!(head.owns(token(8)) && head.owns(Token((16 << 22) - 1)));
        assert!(!head.owns(token(7)) && !head.owns(token(16)));
    }
}
