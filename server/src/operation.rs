//! What one operation of an entry says, and what its reply says. Pure.
//!
//! ```text
//! operation   kind u8
//!   1 put     namespace u32 | key length u16 | key | value crc u32 | value
//!   2 delete  namespace u32 | expect | key length u16 | key
//!   3 cas     namespace u32 | expect | key length u16 | key | value crc u32 | value
//!   4 create  first micro-slice u16 | micro-slices u16 | epoch u64
//! expect      0 u8: anything | 1 u8: absent | 2 u8, version u64
//! reply       0 u8: done | version u64 | revision u64 | epoch u64 | shard time ms u64
//!             1 u8: precondition failed | exists u8 | current version u64
//!             2 u8: the shard is not in this group, or does not own the key
//! ```
//!
//! Numbers are big-endian. These bytes are in the log: a new layout takes a new kind.

use annulus_types::{Epoch, NamespaceId, Revision};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The version that a key must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Any, or no key.
    Anything,
    /// The key must not exist.
    Absent,
    /// Exactly this one.
    Version(Revision),
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
}

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied (or changed nothing because there was nothing to change).
    Done {
        /// The key's version now; 0 when it does not exist.
        version: Revision,
        /// The shard's revision now.
        revision: Revision,
        /// The shard's epoch.
        epoch: Epoch,
        /// The shard's time, milliseconds.
        shard_time_ms: u64,
    },
    /// The key is at another version.
    PreconditionFailed {
        /// The version found.
        current: Option<Revision>,
    },
    /// The shard is not here, or does not own the key.
    NotHere,
}

/// Bytes that do not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} does not decode")]
pub struct Undecodable(pub &'static str);

const PUT: u8 = 1;
const DELETE: u8 = 2;
const CAS: u8 = 3;
const CREATE: u8 = 4;

fn put_key(out: &mut BytesMut, key: &Bytes) {
    // Keys are at most 4 KiB.
    out.put_u16(u16::try_from(key.len()).unwrap_or(u16::MAX));
    out.put_slice(key);
}

fn put_expect(out: &mut BytesMut, expect: Expect) {
    match expect {
        Expect::Anything => out.put_u8(0),
        Expect::Absent => out.put_u8(1),
        Expect::Version(version) => {
            out.put_u8(2);
            out.put_u64(version.0);
        }
    }
}

impl Op {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Put { namespace, key, crc, value } => {
                out.reserve(11 + key.len() + value.len());
                out.put_u8(PUT);
                out.put_u32(namespace.0);
                put_key(&mut out, key);
                out.put_u32(*crc);
                out.put_slice(value);
            }
            Self::Delete { namespace, key, expect } => {
                out.put_u8(DELETE);
                out.put_u32(namespace.0);
                put_expect(&mut out, *expect);
                put_key(&mut out, key);
            }
            Self::Cas { namespace, key, expect, crc, value } => {
                out.reserve(20 + key.len() + value.len());
                out.put_u8(CAS);
                out.put_u32(namespace.0);
                put_expect(&mut out, *expect);
                put_key(&mut out, key);
                out.put_u32(*crc);
                out.put_slice(value);
            }
            Self::Create { first, count, epoch } => {
                out.put_u8(CREATE);
                out.put_u16(*first);
                out.put_u16(*count);
                out.put_u64(epoch.0);
            }
        }
        out.freeze()
    }

    /// Reads the stored form; key and value share its buffer.
    ///
    /// # Errors
    /// When it is cut short, has bytes left over, or is of an unknown kind.
    pub fn decode(mut bytes: Bytes) -> Result<Self, Undecodable> {
        let short = |_| Undecodable("operation");
        let op = match bytes.try_get_u8().map_err(short)? {
            PUT => {
                let namespace = NamespaceId(bytes.try_get_u32().map_err(short)?);
                let key = take_key(&mut bytes)?;
                let crc = bytes.try_get_u32().map_err(short)?;
                Self::Put { namespace, key, crc, value: std::mem::take(&mut bytes) }
            }
            DELETE => {
                let namespace = NamespaceId(bytes.try_get_u32().map_err(short)?);
                let expect = take_expect(&mut bytes)?;
                Self::Delete { namespace, expect, key: take_key(&mut bytes)? }
            }
            CAS => {
                let namespace = NamespaceId(bytes.try_get_u32().map_err(short)?);
                let expect = take_expect(&mut bytes)?;
                let key = take_key(&mut bytes)?;
                let crc = bytes.try_get_u32().map_err(short)?;
                Self::Cas { namespace, key, expect, crc, value: std::mem::take(&mut bytes) }
            }
            CREATE => {
                let first = bytes.try_get_u16().map_err(short)?;
                let count = bytes.try_get_u16().map_err(short)?;
                Self::Create { first, count, epoch: Epoch(bytes.try_get_u64().map_err(short)?) }
            }
            _ => return Err(Undecodable("operation kind")),
        };
        if bytes.has_remaining() { Err(Undecodable("operation")) } else { Ok(op) }
    }
}

fn take_key(bytes: &mut Bytes) -> Result<Bytes, Undecodable> {
    let length = usize::from(bytes.try_get_u16().map_err(|_| Undecodable("key"))?);
    if bytes.len() < length {
        return Err(Undecodable("key"));
    }
    Ok(bytes.split_to(length))
}

fn take_expect(bytes: &mut Bytes) -> Result<Expect, Undecodable> {
    let short = |_| Undecodable("expected version");
    match bytes.try_get_u8().map_err(short)? {
        0 => Ok(Expect::Anything),
        1 => Ok(Expect::Absent),
        2 => Ok(Expect::Version(Revision(bytes.try_get_u64().map_err(short)?))),
        _ => Err(Undecodable("expected version")),
    }
}

impl Outcome {
    /// The form in which a proposer gets it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(33);
        match self {
            Self::Done { version, revision, epoch, shard_time_ms } => {
                out.put_u8(0);
                out.put_u64(version.0);
                out.put_u64(revision.0);
                out.put_u64(epoch.0);
                out.put_u64(*shard_time_ms);
            }
            Self::PreconditionFailed { current } => {
                out.put_u8(1);
                out.put_u8(u8::from(current.is_some()));
                out.put_u64(current.unwrap_or_default().0);
            }
            Self::NotHere => out.put_u8(2),
        }
        out.freeze()
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is cut short or of an unknown kind.
    pub fn decode(mut bytes: Bytes) -> Result<Self, Undecodable> {
        let short = |_| Undecodable("reply");
        match bytes.try_get_u8().map_err(short)? {
            0 => Ok(Self::Done {
                version: Revision(bytes.try_get_u64().map_err(short)?),
                revision: Revision(bytes.try_get_u64().map_err(short)?),
                epoch: Epoch(bytes.try_get_u64().map_err(short)?),
                shard_time_ms: bytes.try_get_u64().map_err(short)?,
            }),
            1 => {
                let exists = bytes.try_get_u8().map_err(short)? == 1;
                let version = Revision(bytes.try_get_u64().map_err(short)?);
                Ok(Self::PreconditionFailed { current: exists.then_some(version) })
            }
            2 => Ok(Self::NotHere),
            _ => Err(Undecodable("reply kind")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_round_trip_and_their_bytes_are_pinned() {
        let (namespace, key) = (NamespaceId(0), Bytes::from_static(b"k"));
        let value = Bytes::from_static(b"v");
        let ops = [
            Op::Put { namespace, key: key.clone(), crc: 9, value: value.clone() },
            Op::Delete { namespace, key: key.clone(), expect: Expect::Anything },
            Op::Delete { namespace, key: key.clone(), expect: Expect::Absent },
            Op::Cas { namespace, key, expect: Expect::Version(Revision(3)), crc: 9, value },
            Op::Create { first: 8, count: 8, epoch: Epoch(1) },
        ];
        assert_eq!(ops[0].encode().as_ref(), b"\x01\0\0\0\0\0\x01k\0\0\0\x09v");
        assert_eq!(
            ops[3].encode().as_ref(),
            b"\x03\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\x01k\0\0\0\x09v"
        );
        assert_eq!(ops[4].encode().as_ref(), b"\x04\0\x08\0\x08\0\0\0\0\0\0\0\x01");
        for op in ops {
            assert_eq!(Op::decode(op.encode()).unwrap(), op);
        }
        assert!(Op::decode(Bytes::new()).is_err());
        assert!(Op::decode(Bytes::from_static(b"\x09")).is_err());
    }

    #[test]
    fn outcomes_round_trip() {
        for outcome in [
            Outcome::Done {
                version: Revision(0),
                revision: Revision(7),
                epoch: Epoch(1),
                shard_time_ms: 8,
            },
            Outcome::PreconditionFailed { current: None },
            Outcome::PreconditionFailed { current: Some(Revision(0)) },
            Outcome::NotHere,
        ] {
            assert_eq!(Outcome::decode(outcome.encode()).unwrap(), outcome);
        }
    }
}
