//! The layout of physical keys (E3, E4). All numbers big-endian, so that byte order is key order.
//!
//! ```text
//! data     0x01 | prefix u64 | namespace u32 | micro-slice u16 | key
//! record   0x02 | group u64 | shard u64 | part u8 [| rest]     part 0 is the head
//! group    0x03 | group u64 | part u8 [| rest]                 applied id, membership, group time
//! node     0x04 | name                                         next prefix and the like
//! ```
//!
//! The first byte keeps the four families apart. A prefix is a node-local number, never used twice;
//! a shard's record names its prefix and its run of micro-slices.

use std::ops::Range;

use annulus_types::{GroupId, NamespaceId, ShardId, Token};
use bytes::{BufMut, Bytes, BytesMut};

const DATA: u8 = 1;
const RECORD: u8 = 2;
const GROUP: u8 = 3;
const NODE: u8 = 4;

/// Number of the key family of one replica of one shard on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(pub u64);

/// The key under which a value is stored.
#[must_use]
pub fn data(prefix: Prefix, namespace: NamespaceId, token: Token, key: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(15 + key.len());
    out.put_u8(DATA);
    out.put_u64(prefix.0);
    out.put_u32(namespace.0);
    out.put_u16(token.micro_slice());
    out.put_slice(key);
    out.freeze()
}

/// Bytes before the user's key in a data key.
pub const DATA_HEADER: usize = 15;

/// The user's part of a data key; `None` for keys of other families.
#[must_use]
pub fn user_key(physical: &[u8]) -> Option<&[u8]> {
    if physical.first() == Some(&DATA) { physical.get(DATA_HEADER..) } else { None }
}

/// All data keys of a prefix.
#[must_use]
pub fn data_range(prefix: Prefix) -> Range<Bytes> {
    let mut start = BytesMut::with_capacity(9);
    start.put_u8(DATA);
    start.put_u64(prefix.0);
    successor_range(start)
}

/// A key of a shard's record: `part` 0 is its head.
#[must_use]
pub fn record(group: GroupId, shard: ShardId, part: u8, rest: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(18 + rest.len());
    out.put_u8(RECORD);
    out.put_u64(group.0);
    out.put_u64(shard.0);
    out.put_u8(part);
    out.put_slice(rest);
    out.freeze()
}

/// All record keys of the shards of `group`.
#[must_use]
pub fn records_range(group: GroupId) -> Range<Bytes> {
    let mut start = BytesMut::with_capacity(9);
    start.put_u8(RECORD);
    start.put_u64(group.0);
    successor_range(start)
}

/// All record keys of one shard of `group`.
#[must_use]
pub fn record_range(group: GroupId, shard: ShardId) -> Range<Bytes> {
    let mut start = BytesMut::with_capacity(17);
    start.put_u8(RECORD);
    start.put_u64(group.0);
    start.put_u64(shard.0);
    successor_range(start)
}

/// A key of a group's own state.
#[must_use]
pub fn group(group: GroupId, part: u8, rest: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(10 + rest.len());
    out.put_u8(GROUP);
    out.put_u64(group.0);
    out.put_u8(part);
    out.put_slice(rest);
    out.freeze()
}

/// All keys of a group's own state.
#[must_use]
pub fn group_range(group: GroupId) -> Range<Bytes> {
    let mut start = BytesMut::with_capacity(9);
    start.put_u8(GROUP);
    start.put_u64(group.0);
    successor_range(start)
}

/// A key of the node itself.
#[must_use]
pub fn node(name: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + name.len());
    out.put_u8(NODE);
    out.put_slice(name.as_bytes());
    out.freeze()
}

/// From `start` to the first key that does not begin with it.
fn successor_range(start: BytesMut) -> Range<Bytes> {
    let mut end = start.clone();
    // The first byte is a family number below 255, so a carry always finds a place.
    for byte in end.iter_mut().rev() {
        let (next, overflow) = byte.overflowing_add(1);
        *byte = next;
        if !overflow {
            break;
        }
    }
    start.freeze()..end.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_pinned() {
        let key = data(Prefix(7), NamespaceId(1), Token(0xffc0_0000), b"k");
        assert_eq!(key.as_ref(), b"\x01\0\0\0\0\0\0\0\x07\0\0\0\x01\x03\xffk");
        assert_eq!(user_key(&key), Some(&b"k"[..]));
        let head = record(GroupId(2), ShardId(3), 0, &[]);
        assert_eq!(head.as_ref(), b"\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0");
        assert_eq!(group(GroupId(2), 1, b"x").as_ref(), b"\x03\0\0\0\0\0\0\0\x02\x01x");
        assert_eq!(node("prefix").as_ref(), b"\x04prefix");
    }

    #[test]
    fn ranges_end_where_the_next_number_begins() {
        for prefix in [0, 255, u64::MAX] {
            let range = data_range(Prefix(prefix));
            let key = data(Prefix(prefix), NamespaceId(u32::MAX), Token(u32::MAX), &[255; 40]);
            assert!(range.contains(&key), "{prefix}");
            assert!(!range.contains(&data(Prefix(prefix ^ 1), NamespaceId(0), Token(0), b"")));
        }
    }
}
