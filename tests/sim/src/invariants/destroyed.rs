//! H4: a replica is destroyed only when its group does not count on it any more. A leader with an open gate
//! knows every committed membership, and a replica that lost its seat never gets it back: no voter of such a
//! leader's membership is ever one that its node has destroyed.

use std::collections::BTreeSet;

use annulus_types::{GroupId, NodeId, ReplicaId};
use annulus_wal::StreamId;

use super::Violation;

const RULE: &str = "H4 nothing is destroyed without proof";

/// Judges a group by its leader's voters. `tombstones`: of the node with this id, if it runs.
pub(crate) fn judge<'a>(
    group: GroupId,
    mut voters: impl Iterator<Item = (NodeId, ReplicaId)>,
    tombstones: impl Fn(NodeId) -> Option<&'a BTreeSet<StreamId>>,
) -> Option<Violation> {
    let (node, replica) = voters.find(|(node, replica)| {
        let stream = StreamId { group, replica: *replica };
        tombstones(*node).is_some_and(|destroyed| destroyed.contains(&stream))
    })?;
    let what =
        format!("replica {replica} of group {group} votes, and node {node} has destroyed it");
    Some(Violation::new(RULE, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_voter_with_a_tombstone_is_found() {
        let destroyed = BTreeSet::from([StreamId { group: GroupId(1), replica: ReplicaId(12) }]);
        let found = |node: u32, replica: u64| {
            let voters = [(NodeId(1), ReplicaId(11)), (NodeId(node), ReplicaId(replica))];
            let of_node = |node: NodeId| (node == NodeId(2)).then_some(&destroyed);
            judge(GroupId(1), voters.into_iter(), of_node).is_some()
        };
        assert!(found(2, 12));
        assert!(!found(2, 13) && !found(3, 12));
    }
}
