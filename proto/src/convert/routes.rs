//! The routing table. Decoding insists on what `RoutingTable::shard_of` relies on: as many shards
//! as slices, a power of two, in slice order. An empty table (a node before its cluster's birth)
//! passes.

use annulus_types::{
    Epoch, GroupId, GroupRoute, MemberRole, MemberRoute, NodeId, NodeInfo, ReplicaId, RoutingTable,
    ShardId, ShardRoute, TableVersion, limits,
};

use super::{ConvertError, cluster_bytes, cluster_of};
use crate::v1;

impl From<&MemberRoute> for v1::MemberRoute {
    fn from(member: &MemberRoute) -> Self {
        let learner = match member.role {
            MemberRole::Voter => false,
            MemberRole::Learner => true,
        };
        Self { node: member.node.0, replica: member.replica.0, learner }
    }
}

impl From<v1::MemberRoute> for MemberRoute {
    fn from(wire: v1::MemberRoute) -> Self {
        Self {
            node: NodeId(wire.node),
            replica: ReplicaId(wire.replica),
            role: if wire.learner { MemberRole::Learner } else { MemberRole::Voter },
        }
    }
}

impl From<&GroupRoute> for v1::GroupRoute {
    fn from(group: &GroupRoute) -> Self {
        Self {
            id: group.id.0,
            home: group.home.0,
            lane: group.lane,
            members: group.members.iter().map(v1::MemberRoute::from).collect(),
            leader: group.leader.map(|node| node.0),
            term: group.term,
            membership_index: group.membership_index,
        }
    }
}

impl From<v1::GroupRoute> for GroupRoute {
    fn from(wire: v1::GroupRoute) -> Self {
        Self {
            id: GroupId(wire.id),
            home: NodeId(wire.home),
            lane: wire.lane,
            members: wire.members.into_iter().map(MemberRoute::from).collect(),
            leader: wire.leader.map(NodeId),
            term: wire.term,
            membership_index: wire.membership_index,
        }
    }
}

impl From<&ShardRoute> for v1::ShardRoute {
    fn from(shard: &ShardRoute) -> Self {
        Self {
            id: shard.id.0,
            slice: shard.slice,
            parent: shard.parent.map(|id| id.0),
            epoch: shard.epoch.0,
            group: shard.group.0,
        }
    }
}

impl From<v1::ShardRoute> for ShardRoute {
    fn from(wire: v1::ShardRoute) -> Self {
        Self {
            id: ShardId(wire.id),
            slice: wire.slice,
            parent: wire.parent.map(ShardId),
            epoch: Epoch(wire.epoch),
            group: GroupId(wire.group),
        }
    }
}

impl From<&NodeInfo> for v1::NodeInfo {
    fn from(node: &NodeInfo) -> Self {
        Self {
            id: node.id.0,
            addr: node.addr.clone(),
            peer_addr: node.peer_addr.clone(),
            http_addr: node.http_addr.clone(),
            zone: node.zone.clone(),
            weight: node.weight,
            storage: node.storage,
            manager: node.manager,
        }
    }
}

impl From<v1::NodeInfo> for NodeInfo {
    fn from(wire: v1::NodeInfo) -> Self {
        Self {
            id: NodeId(wire.id),
            addr: wire.addr,
            peer_addr: wire.peer_addr,
            http_addr: wire.http_addr,
            zone: wire.zone,
            weight: wire.weight,
            storage: wire.storage,
            manager: wire.manager,
        }
    }
}

impl From<&RoutingTable> for v1::RoutingTable {
    fn from(table: &RoutingTable) -> Self {
        Self {
            cluster_id: cluster_bytes(table.cluster),
            version: table.version.0,
            shards: table.shards.iter().map(v1::ShardRoute::from).collect(),
            groups: table.groups.iter().map(v1::GroupRoute::from).collect(),
            nodes: table.nodes.iter().map(v1::NodeInfo::from).collect(),
        }
    }
}

impl TryFrom<v1::RoutingTable> for RoutingTable {
    type Error = ConvertError;

    fn try_from(wire: v1::RoutingTable) -> Result<Self, ConvertError> {
        let cluster = cluster_of(&wire.cluster_id)?;
        check_slices(&wire.shards)?;
        Ok(Self {
            cluster,
            version: TableVersion(wire.version),
            shards: wire.shards.into_iter().map(ShardRoute::from).collect(),
            groups: wire.groups.into_iter().map(GroupRoute::from).collect(),
            nodes: wire.nodes.into_iter().map(NodeInfo::from).collect(),
        })
    }
}

fn check_slices(shards: &[v1::ShardRoute]) -> Result<(), ConvertError> {
    let count = shards.len();
    let allowed = count == 0 || (count.is_power_of_two() && count <= limits::SHARDS as usize);
    if !allowed {
        let problem = format!("a power of two up to {} expected, got {count}", limits::SHARDS);
        return Err(ConvertError { field: "shards", problem });
    }
    match shards.iter().enumerate().find(|(place, shard)| shard.slice as usize != *place) {
        Some((place, shard)) => {
            let problem = format!("slice {} stands at place {place}", shard.slice);
            Err(ConvertError { field: "shards", problem })
        }
        None => Ok(()),
    }
}
