//! W8: replicas that have applied the same entries hold the same. Apply is deterministic, so with
//! all faults over the copies of a group are equal in everything but the numbers that a node gives
//! to itself.

use std::collections::BTreeMap;

use annulus_server::stored::Head;
use annulus_types::{GroupId, NodeId, ShardId};
use bytes::Bytes;

use super::Violation;

const RULE: &str = "W8 replicas are equal";

/// A shard as one replica holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShardCopy {
    /// Without the node's own prefix.
    pub(crate) head: Head,
    /// Keys without the prefix, and values, in order.
    pub(crate) rows: Vec<(Bytes, Bytes)>,
    /// What the shard's record holds beside the head, its writers first of all: keys and values, in order.
    pub(crate) record: Vec<(Bytes, Bytes)>,
}

/// A group as one replica holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupCopy {
    pub(crate) applied: u64,
    pub(crate) group_time_ms: u64,
    pub(crate) shards: BTreeMap<ShardId, ShardCopy>,
}

impl GroupCopy {
    fn difference(&self, other: &Self) -> Option<String> {
        if (self.applied, self.group_time_ms) != (other.applied, other.group_time_ms) {
            return Some(format!(
                "applied {} at {} ms and {} at {} ms",
                self.applied, self.group_time_ms, other.applied, other.group_time_ms
            ));
        }
        if !self.shards.keys().eq(other.shards.keys()) {
            return Some("not the same shards".to_owned());
        }
        for ((shard, one), two) in self.shards.iter().zip(other.shards.values()) {
            if one.head != two.head {
                return Some(format!("shard {shard}: {:?} and {:?}", one.head, two.head));
            }
            for (what, one, two) in
                [("rows", &one.rows, &two.rows), ("record", &one.record, &two.record)]
            {
                if let Some(at) = first_difference(one, two) {
                    return Some(format!("shard {shard}: {what} differ at {at}"));
                }
            }
        }
        None
    }
}

fn first_difference(one: &[(Bytes, Bytes)], two: &[(Bytes, Bytes)]) -> Option<String> {
    if one == two {
        return None;
    }
    let differing = one.iter().zip(two).find(|(one, two)| one != two);
    let key = differing.map(|((key, _), _)| key.escape_ascii().to_string());
    Some(key.unwrap_or_else(|| "their number".to_owned()))
}

/// Compares the copies of a group.
pub(crate) fn judge(group: GroupId, copies: &[(NodeId, GroupCopy)]) -> Option<Violation> {
    let ((first, one), others) = copies.split_first()?;
    others.iter().find_map(|(node, two)| {
        let difference = one.difference(two)?;
        let what = format!("group {group} on node {first} and node {node}: {difference}");
        Some(Violation::new(RULE, what))
    })
}

#[cfg(test)]
mod tests {
    use annulus_engine::key::Prefix;
    use annulus_types::{Epoch, Revision};

    use super::*;

    fn copy(revision: u64, value: &'static str) -> GroupCopy {
        let head = Head {
            prefix: Prefix(0),
            first: 0,
            count: 64,
            revision: Revision(revision),
            epoch: Epoch(1),
            time_offset_ms: 0,
            keys: 1,
            bytes: 2,
        };
        let rows = vec![(Bytes::from_static(b"k"), Bytes::from_static(value.as_bytes()))];
        let record = vec![(Bytes::from_static(b"w"), Bytes::from_static(b"1"))];
        let shards = BTreeMap::from([(ShardId(1), ShardCopy { head, rows, record })]);
        GroupCopy { applied: 9, group_time_ms: 1, shards }
    }

    #[test]
    fn every_difference_is_found() {
        let judged =
            |other: GroupCopy| judge(GroupId(1), &[(NodeId(1), copy(4, "v")), (NodeId(2), other)]);
        assert_eq!(judged(copy(4, "v")), None);
        let mut late = copy(4, "v");
        late.applied = 8;
        let mut empty = copy(4, "v");
        empty.shards.clear();
        let mut short = copy(4, "v");
        short.shards.values_mut().for_each(|shard| shard.rows.clear());
        let mut writer = copy(4, "v");
        for shard in writer.shards.values_mut() {
            shard.record[0].1 = Bytes::from_static(b"2");
        }
        for other in [copy(5, "v"), copy(4, "w"), late, empty, short, writer] {
            assert!(judged(other).is_some());
        }
    }
}
