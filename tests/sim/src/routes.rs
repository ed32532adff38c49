//! What a simulated cluster is born with: addresses, lives, and the first state of its manager.
//!
//! Groups and shards are those of the birth during the whole run; who sits where changes, and is asked
//! of the groups. Ids are given out as the manager gives them out (H5).
//!
//! Pure. Fails only on settings that no cluster can have.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use annulus_proto::convert::cluster_bytes;
use annulus_proto::v1;
use annulus_shard_manager::state::{StateExt as _, from_plan};
use annulus_types::token::MICRO_SLICES;
use annulus_types::{
    ClusterId, GroupId, MemberRoute, NodeId, NodeInfo, ReplicaId, RoutingTable, ShardId, Token,
};

/// Machines of a simulated cluster, numbered from 1.
pub(crate) const NODES: u32 = 4;
/// Those that the cluster is born with; the others join.
pub(crate) const FOUNDERS: u32 = 3;
/// Replicas of each group.
pub(crate) const REPLICATION: u32 = 3;
/// Groups per founder.
const LANES: u32 = 1;
const PEER_PORT: u16 = 7401;

/// One group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupRoute {
    pub(crate) id: GroupId,
    pub(crate) shards: Vec<ShardId>,
}

/// The birth of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Routes {
    pub(crate) shards: u32,
    /// By id, without the manager's.
    pub(crate) groups: Vec<GroupRoute>,
    /// What the manager begins with.
    pub(crate) first: v1::ManagerState,
}

pub(crate) fn machine_ids() -> impl Iterator<Item = NodeId> {
    (1..=NODES).map(NodeId)
}

pub(crate) fn founder_ids() -> impl Iterator<Item = NodeId> {
    (1..=FOUNDERS).map(NodeId)
}

/// The host of a node in the simulated network.
pub(crate) fn host_of(node: NodeId) -> IpAddr {
    IpAddr::from([10, 0, 0, u8::try_from(node.0).unwrap_or(u8::MAX)])
}

/// Where a node listens for its peers.
pub(crate) fn peer_addr(node: NodeId) -> SocketAddr {
    SocketAddr::new(host_of(node), PEER_PORT)
}

pub(crate) fn info_of(node: NodeId) -> NodeInfo {
    NodeInfo {
        id: node,
        addr: SocketAddr::new(host_of(node), PEER_PORT - 1).to_string(),
        peer_addr: peer_addr(node).to_string(),
        http_addr: SocketAddr::new(host_of(node), PEER_PORT + 1).to_string(),
        zone: String::new(),
        weight: 100,
        storage: true,
        manager: true,
    }
}

/// The members with which `replica` of `node` founds its group, if it is to do so: one founding
/// replica, the home's, and only while the table has the group as it was founded.
pub(crate) fn founders(
    table: &RoutingTable,
    group: GroupId,
    node: NodeId,
    replica: ReplicaId,
) -> BTreeMap<ReplicaId, NodeId> {
    let own = |member: &MemberRoute| (member.node, member.replica) == (node, replica);
    match table.group(group) {
        Some(route)
            if route.home == node
                && route.membership_index == 0
                && route.members.iter().any(own) =>
        {
            route.members.iter().map(|member| (member.replica, member.node)).collect()
        }
        _ => BTreeMap::new(),
    }
}

impl Routes {
    /// `incarnation`: the manager's, 21 bits. `lives`: of the founders' data folders.
    pub(crate) fn new(
        shards: u32,
        cluster: ClusterId,
        incarnation: u32,
        lives: &BTreeMap<NodeId, u64>,
    ) -> anyhow::Result<Self> {
        let planned = |node: NodeId| v1::PlannedNode {
            info: Some(v1::NodeInfo::from(&info_of(node))),
            incarnation: lives.get(&node).copied().unwrap_or(0),
        };
        let plan = v1::Plan {
            cluster_id: cluster_bytes(cluster),
            era: 1,
            incarnation,
            shards,
            lanes: LANES,
            replication: REPLICATION,
            nodes: founder_ids().map(planned).collect(),
        };
        let first = from_plan(&plan)?;
        let table = first.table();
        let of_group = |group: GroupId| {
            let shards = table.shards.iter().filter(move |shard| shard.group == group);
            GroupRoute { id: group, shards: shards.map(|shard| shard.id).collect() }
        };
        let groups = table.groups.iter().map(|group| of_group(group.id)).collect();
        Ok(Self { shards, groups, first })
    }

    /// The replica with which a node begins in the manager's group, if it is one of its founders.
    pub(crate) fn manager_seat(&self, node: NodeId) -> Option<ReplicaId> {
        let founders = self.manager_founders();
        founders.iter().find(|(_, founder)| **founder == node).map(|(replica, _)| *replica)
    }

    /// The members with which `replica` founds the manager's group: the first of them does.
    pub(crate) fn found_manager(&self, replica: ReplicaId) -> BTreeMap<ReplicaId, NodeId> {
        let founders = self.manager_founders();
        if founders.keys().next() == Some(&replica) { founders } else { BTreeMap::new() }
    }

    fn manager_founders(&self) -> BTreeMap<ReplicaId, NodeId> {
        let members = self.first.manager.iter().flat_map(|group| &group.members);
        members.map(|member| (ReplicaId(member.replica), NodeId(member.node))).collect()
    }

    /// The shard that owns `token`.
    pub(crate) fn shard_of(&self, token: Token) -> ShardId {
        ShardId(u64::from(token.slice(self.shards)))
    }

    /// The group that hosts `shard`; `None` for a shard that does not exist.
    pub(crate) fn group_of(&self, shard: ShardId) -> Option<&GroupRoute> {
        self.groups.iter().find(|group| group.shards.contains(&shard))
    }

    /// First micro-slice of a shard, and how many it has.
    pub(crate) fn run_of(&self, shard: ShardId) -> (u16, u16) {
        let count = u16::try_from(MICRO_SLICES / self.shards.max(1)).unwrap_or(u16::MAX);
        let slice = u16::try_from(shard.0).unwrap_or(u16::MAX);
        (slice.saturating_mul(count), count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_of_a_birth_hold_every_shard_once() {
        let lives = founder_ids().map(|node| (node, 70 + u64::from(node.0))).collect();
        for shards in [8, 16] {
            let routes = Routes::new(shards, ClusterId([3; 16]), 5, &lives).unwrap();
            assert_eq!(routes.groups.len(), 3);
            let mut held: Vec<u64> =
                routes.groups.iter().flat_map(|group| &group.shards).map(|shard| shard.0).collect();
            held.sort_unstable();
            assert_eq!(held, (0..u64::from(shards)).collect::<Vec<_>>());
            let table = routes.first.table();
            for group in &table.groups {
                assert_eq!((group.members[0].node, group.members.len()), (group.home, 3));
                let own = group.members[0].replica;
                assert_eq!(founders(&table, group.id, group.home, own).len(), 3);
                let other = &group.members[1];
                assert!(founders(&table, group.id, other.node, other.replica).is_empty());
            }
            let (first, count) = routes.run_of(ShardId(1));
            assert_eq!((u32::from(first), u32::from(count)), (1024 / shards, 1024 / shards));
            let token = Token(u32::from(first) << 22);
            assert_eq!(routes.shard_of(token), ShardId(1));
        }
    }

    #[test]
    fn one_founder_begins_the_managers_group() {
        let routes = Routes::new(8, ClusterId([3; 16]), 5, &BTreeMap::new()).unwrap();
        let seats: Vec<ReplicaId> =
            machine_ids().filter_map(|node| routes.manager_seat(node)).collect();
        assert_eq!(seats.len(), 3);
        let founding: Vec<usize> =
            seats.iter().map(|replica| routes.found_manager(*replica).len()).collect();
        assert_eq!(founding, [3, 0, 0]);
    }
}
