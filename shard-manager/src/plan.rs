//! From the plan of a birth to the first routing table. Pure.
//!
//! Ids come from the manager's incarnation and a counter (H5): the manager's own replicas take the
//! first counters, then every group in the order of its placement takes one for itself and one for
//! each member. Shard ids are the slice numbers. The same plan gives the same table everywhere.

use annulus_proto::convert::{ConvertError, cluster_of};
use annulus_proto::v1;
use annulus_ring::{PlacementError, PlacementNode, Settings, place};
use annulus_types::ids::allocated_id;
use annulus_types::{
    Epoch, GroupId, GroupRoute, MemberRole, MemberRoute, NodeInfo, ReplicaId, RoutingTable,
    ShardId, ShardRoute, TableVersion,
};

/// Counters below this belong to the manager's own replicas.
pub(crate) const FIRST_COUNTER: u32 = 16;

/// A plan that no cluster can be made from.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The placement refuses it.
    #[error("{0}")]
    Placement(#[from] PlacementError),
    /// A field makes no sense.
    #[error("{0}")]
    Field(#[from] ConvertError),
    /// A planned node lacks its description.
    #[error("a planned node has no description")]
    Node,
}

/// The nodes of a plan.
///
/// # Errors
/// When one lacks its description.
pub fn nodes_of(plan: &v1::Plan) -> Result<Vec<NodeInfo>, PlanError> {
    plan.nodes
        .iter()
        .map(|node| node.info.clone().map(NodeInfo::from).ok_or(PlanError::Node))
        .collect()
}

/// The first table of the cluster that `plan` describes.
///
/// # Errors
/// When the settings or nodes are outside their limits.
pub fn table_of(plan: &v1::Plan) -> Result<RoutingTable, PlanError> {
    let nodes = nodes_of(plan)?;
    let candidates: Vec<PlacementNode> = nodes
        .iter()
        .filter(|node| node.storage)
        .map(|node| PlacementNode { id: node.id, weight: node.weight, zone: node.zone.clone() })
        .collect();
    let settings =
        Settings { shards: plan.shards, lanes: plan.lanes, replication: plan.replication };
    let placement = place(&candidates, &settings)?;
    let mut counter = FIRST_COUNTER;
    let mut allocate = || {
        counter += 1;
        allocated_id(plan.incarnation, counter)
    };
    let mut groups = Vec::new();
    let mut shards = Vec::new();
    for placed in &placement.groups {
        let id = GroupId(allocate());
        let members = placed
            .members
            .iter()
            .map(|node| MemberRoute {
                node: *node,
                replica: ReplicaId(allocate()),
                role: MemberRole::Voter,
            })
            .collect();
        groups.push(GroupRoute {
            id,
            home: placed.home,
            lane: placed.lane,
            members,
            leader: None,
            term: 0,
            membership_index: 0,
        });
        shards.extend(placed.shards.iter().map(|slice| ShardRoute {
            id: ShardId(u64::from(*slice)),
            slice: *slice,
            parent: None,
            epoch: Epoch(1),
            group: id,
        }));
    }
    shards.sort_unstable_by_key(|shard| shard.slice);
    Ok(RoutingTable {
        cluster: cluster_of(&plan.cluster_id)?,
        version: TableVersion(1),
        shards,
        groups,
        nodes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(nodes: u32) -> v1::Plan {
        let node = |id| v1::PlannedNode {
            info: Some(v1::NodeInfo {
                id,
                weight: 100,
                storage: true,
                manager: true,
                ..Default::default()
            }),
            incarnation: 7,
        };
        v1::Plan {
            cluster_id: vec![1; 16].into(),
            era: 1,
            incarnation: 5,
            shards: 128,
            lanes: 4,
            replication: 3,
            nodes: (1..=nodes).map(node).collect(),
        }
    }

    #[test]
    fn every_slice_has_one_shard_and_no_id_is_used_twice() {
        let table = table_of(&plan(5)).unwrap();
        let slices: Vec<u32> = table.shards.iter().map(|shard| shard.slice).collect();
        assert_eq!(slices, (0..128).collect::<Vec<_>>());
        let mut ids: Vec<u64> = table
            .groups
            .iter()
            .flat_map(|group| {
                group.members.iter().map(|m| m.replica.0).chain(std::iter::once(group.id.0))
            })
            .collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!((ids.len(), count), (20 * 4, 20 * 4));
        assert!(table.groups.iter().all(|g| g.members[0].node == g.home));
        assert_eq!(table, table_of(&plan(5)).unwrap());
    }

    #[test]
    fn limits_are_named() {
        let wrong = v1::Plan { shards: 100, ..plan(3) };
        assert!(table_of(&wrong).unwrap_err().to_string().contains("shards"));
        assert!(table_of(&plan(0)).is_err());
    }
}
