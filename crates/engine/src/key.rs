//! The layout of physical keys (E3, E4). All numbers big-endian, so that byte order is key order.
//!
//! ```text
//! data     0x01 | prefix u64 | namespace u32 | micro-slice u16 | key
//! deadline 0x01 | prefix u64 | 0xffffffff | shard time ms u64 | namespace u32 | micro-slice u16 | key
//! record   0x02 | group u64 | shard u64 | part u8 [| rest]     part 0 is the head
//! group    0x03 | group u64 | part u8 [| rest]                 applied id, membership, group time
//! node     0x04 | name                                         next prefix and the like
//! ```
//!
//! The first byte keeps the four families apart. A prefix is a node-local number, never used twice;
//! a shard's record names its prefix and its run of micro-slices. Deadlines are the index of a shard's keys
//! by the time at which they end (W5). They lie in the range of its data, behind them, where a namespace
//! would have a number that none has: so they come, travel and go with the data.

use std::ops::Range;

use annulus_types::{GroupId, NamespaceId, ShardId, Token};
use bytes::{BufMut, Bytes, BytesMut};

const DATA: u8 = 1;
const RECORD: u8 = 2;
const GROUP: u8 = 3;
const NODE: u8 = 4;

/// Stands for the namespace in rows of deadlines.
const DEADLINES: u32 = u32::MAX;
/// Bytes of a data key before its namespace.
const PREFIX_BYTES: usize = 9;
/// Bytes of a deadline's row before the namespace of its key.
const DEADLINE_HEADER: usize = 21;

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

/// The user's part of a data key; `None` for keys of other families and for deadlines.
#[must_use]
pub fn user_key(physical: &[u8]) -> Option<&[u8]> {
    let is_data = physical.first() == Some(&DATA) && !is_deadline(physical);
    if is_data { physical.get(DATA_HEADER..) } else { None }
}

fn is_deadline(row: &[u8]) -> bool {
    let marker = row.get(PREFIX_BYTES..PREFIX_BYTES + 4);
    row.first() == Some(&DATA) && marker == Some(&DEADLINES.to_be_bytes()[..])
}

/// The row that says that the key whose data key this is ends at a shard time, milliseconds.
///
/// # Panics
/// When `data_key` is shorter than any data key.
#[must_use]
pub fn deadline(data_key: &[u8], deadline_ms: u64) -> Bytes {
    let (prefix, rest) = data_key.split_at(PREFIX_BYTES);
    let mut out = BytesMut::with_capacity(DEADLINE_HEADER + rest.len());
    out.put_slice(prefix);
    out.put_u32(DEADLINES);
    out.put_u64(deadline_ms);
    out.put_slice(rest);
    out.freeze()
}

/// What a deadline's row says: the shard time, milliseconds, and the data key that ends then; `None` for
/// other rows.
#[must_use]
pub fn deadline_of(row: &[u8]) -> Option<(u64, Bytes)> {
    if !is_deadline(row) {
        return None;
    }
    let time = <[u8; 8]>::try_from(row.get(PREFIX_BYTES + 4..DEADLINE_HEADER)?).ok()?;
    let (prefix, rest) = (row.get(..PREFIX_BYTES)?, row.get(DEADLINE_HEADER..)?);
    if rest.len() < DATA_HEADER - PREFIX_BYTES {
        return None;
    }
    let mut data_key = BytesMut::with_capacity(prefix.len() + rest.len());
    data_key.put_slice(prefix);
    data_key.put_slice(rest);
    Some((u64::from_be_bytes(time), data_key.freeze()))
}

/// Where the rows of the deadlines of a prefix begin that are not before a shard time, milliseconds.
#[must_use]
pub fn deadlines_from(prefix: Prefix, deadline_ms: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(DEADLINE_HEADER);
    out.put_u8(DATA);
    out.put_u64(prefix.0);
    out.put_u32(DEADLINES);
    out.put_u64(deadline_ms);
    out.freeze()
}

/// All deadlines of a prefix, the earliest first.
#[must_use]
pub fn deadlines_range(prefix: Prefix) -> Range<Bytes> {
    deadlines_from(prefix, 0)..data_range(prefix).end
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
    fn deadlines_lie_behind_the_data_of_their_prefix_in_the_order_of_time() {
        let key = data(Prefix(7), NamespaceId(1), Token(0xffc0_0000), b"k");
        let row = deadline(&key, 258);
        assert_eq!(
            row.as_ref(),
            b"\x01\0\0\0\0\0\0\0\x07\xff\xff\xff\xff\0\0\0\0\0\0\x01\x02\
              \0\0\0\x01\x03\xffk"
        );
        assert_eq!(deadline_of(&row), Some((258, key.clone())));
        assert_eq!((user_key(&row), deadline_of(&key)), (None, None));
        for length in 0..row.len() - 1 {
            assert_eq!(deadline_of(&row[..length]), None, "{length}");
        }
        let later = deadline(&data(Prefix(7), NamespaceId(0), Token(0), b""), 259);
        assert!(key < row && row < later);
        assert!(data_range(Prefix(7)).contains(&later));
        let all = deadlines_range(Prefix(7));
        assert!(all.contains(&row) && all.contains(&later) && !all.contains(&key));
        assert!(!all.contains(&deadline(&data(Prefix(8), NamespaceId(0), Token(0), b"k"), 0)));
        let until = all.start..deadlines_from(Prefix(7), 259);
        assert!(until.contains(&row) && !until.contains(&later));
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
