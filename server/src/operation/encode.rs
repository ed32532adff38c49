//! Writes operations as they lie in the log.

use std::num::NonZeroU64;

use annulus_types::Token;
use bytes::{BufMut, Bytes, BytesMut};

use super::{
    BATCH, CAS, CAS_TTL, CLOSE_WRITER, CREATE, DELETE, Expect, Guard, HAS_MAX, HAS_MIN, INCR,
    ITEM_DELETE, ITEM_PUT, ITEM_PUT_TTL, Item, NAMED, OP_STATUS, OPEN_WRITER, Op, OpId, PUT,
    PUT_TTL,
};

/// Bytes of a name before its mutation.
const NAME_BYTES: usize = 29;
/// Above what any operation takes beside its keys and values.
const FIXED_BYTES: usize = 40;
/// Above what a guard or an item takes beside its key and value.
const ITEM_BYTES: usize = 19;

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
        Expect::Present => out.put_u8(3),
    }
}

/// The kind says whether there is one.
fn put_ttl(out: &mut BytesMut, ttl_ms: Option<NonZeroU64>) {
    if let Some(ttl_ms) = ttl_ms {
        out.put_u64(ttl_ms.get());
    }
}

fn put_name(out: &mut BytesMut, id: &OpId, token: Token) {
    out.put_u8(NAMED);
    out.put_u64(id.writer.0);
    out.put_u64(id.seq);
    out.put_u64(id.lowest_unacked);
    out.put_u32(token.0);
}

fn put_incr(out: &mut BytesMut, delta: i64, min: Option<i64>, max: Option<i64>) {
    out.put_i64(delta);
    let mut bounds = 0;
    if min.is_some() {
        bounds |= HAS_MIN;
    }
    if max.is_some() {
        bounds |= HAS_MAX;
    }
    out.put_u8(bounds);
    for bound in [min, max].into_iter().flatten() {
        out.put_i64(bound);
    }
}

fn put_batch(out: &mut BytesMut, guards: &[Guard], items: &[Item]) {
    // Both are at most 1,000.
    out.put_u16(u16::try_from(guards.len()).unwrap_or(u16::MAX));
    for guard in guards {
        put_expect(out, guard.expect);
        put_key(out, &guard.key);
    }
    out.put_u16(u16::try_from(items.len()).unwrap_or(u16::MAX));
    for item in items {
        match item {
            Item::Put { key, crc, value, ttl_ms } => {
                out.put_u8(if ttl_ms.is_some() { ITEM_PUT_TTL } else { ITEM_PUT });
                put_ttl(out, *ttl_ms);
                put_key(out, key);
                out.put_u32(*crc);
                // Values are at most 8 MiB.
                out.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
                out.put_slice(value);
            }
            Item::Delete { key } => {
                out.put_u8(ITEM_DELETE);
                put_key(out, key);
            }
        }
    }
}

impl Op {
    /// No less than the stored form takes.
    pub(super) fn bytes_most(&self) -> usize {
        FIXED_BYTES
            + match self {
                Self::Put { key, value, .. } | Self::Cas { key, value, .. } => {
                    key.len() + value.len()
                }
                Self::Delete { key, .. } | Self::Incr { key, .. } => key.len(),
                Self::Named { body, .. } => body.len(),
                Self::Batch { guards, items, .. } => {
                    let guards = guards.iter().map(|guard| ITEM_BYTES + guard.key.len());
                    let items = items.iter().map(|item| match item {
                        Item::Put { key, value, .. } => ITEM_BYTES + key.len() + value.len(),
                        Item::Delete { key } => ITEM_BYTES + key.len(),
                    });
                    guards.sum::<usize>() + items.sum::<usize>()
                }
                Self::Create { .. }
                | Self::OpenWriter { .. }
                | Self::CloseWriter { .. }
                | Self::OpStatus { .. } => 0,
            }
    }

    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.bytes_most());
        self.put_into(&mut out);
        out.freeze()
    }

    /// The stored form of an [`Op::Named`] around this mutation, without another copy of its value.
    #[must_use]
    pub fn encode_named(&self, id: &OpId, token: Token) -> Bytes {
        let mut out = BytesMut::with_capacity(NAME_BYTES + self.bytes_most());
        put_name(&mut out, id, token);
        self.put_into(&mut out);
        out.freeze()
    }

    fn put_into(&self, out: &mut BytesMut) {
        match self {
            Self::Put { namespace, key, crc, value, ttl_ms } => {
                out.put_u8(if ttl_ms.is_some() { PUT_TTL } else { PUT });
                out.put_u32(namespace.0);
                put_ttl(out, *ttl_ms);
                put_key(out, key);
                out.put_u32(*crc);
                out.put_slice(value);
            }
            Self::Delete { namespace, key, expect } => {
                out.put_u8(DELETE);
                out.put_u32(namespace.0);
                put_expect(out, *expect);
                put_key(out, key);
            }
            Self::Cas { namespace, key, expect, crc, value, ttl_ms } => {
                out.put_u8(if ttl_ms.is_some() { CAS_TTL } else { CAS });
                out.put_u32(namespace.0);
                put_ttl(out, *ttl_ms);
                put_expect(out, *expect);
                put_key(out, key);
                out.put_u32(*crc);
                out.put_slice(value);
            }
            Self::Create { first, count, epoch } => {
                out.put_u8(CREATE);
                out.put_u16(*first);
                out.put_u16(*count);
                out.put_u64(epoch.0);
            }
            Self::Named { id, token, body } => {
                put_name(out, id, *token);
                out.put_slice(body);
            }
            Self::OpenWriter { token } => {
                out.put_u8(OPEN_WRITER);
                out.put_u32(token.0);
            }
            Self::CloseWriter { token, writer } => {
                out.put_u8(CLOSE_WRITER);
                out.put_u32(token.0);
                out.put_u64(writer.0);
            }
            Self::OpStatus { token, writer, seq } => {
                out.put_u8(OP_STATUS);
                out.put_u32(token.0);
                out.put_u64(writer.0);
                out.put_u64(*seq);
            }
            Self::Incr { namespace, key, delta, min, max } => {
                out.put_u8(INCR);
                out.put_u32(namespace.0);
                put_incr(out, *delta, *min, *max);
                put_key(out, key);
            }
            Self::Batch { namespace, guards, items } => {
                out.put_u8(BATCH);
                out.put_u32(namespace.0);
                put_batch(out, guards, items);
            }
        }
    }
}
