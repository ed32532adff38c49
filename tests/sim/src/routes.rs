//! Who holds what: the placement of a fresh cluster of three nodes, as the manager would make it,
//! with ids given out in order. It never changes during a run, so there is no manager.
//!
//! Pure. Fails only on settings that no cluster can have.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use annulus_ring::{PlacementNode, Settings, place};
use annulus_types::token::MICRO_SLICES;
use annulus_types::{GroupId, NodeId, NodeInfo, ReplicaId, ShardId, Token};

/// Nodes of a simulated cluster, numbered from 1.
pub(crate) const NODES: u32 = 3;
/// Groups per node on average.
const LANES: u32 = 2;
const PEER_PORT: u16 = 7401;

/// One group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupRoute {
    pub(crate) id: GroupId,
    /// The node that initialises it.
    pub(crate) home: NodeId,
    /// Home first.
    pub(crate) members: Vec<(NodeId, ReplicaId)>,
    pub(crate) shards: Vec<ShardId>,
}

impl GroupRoute {
    /// The replica on `node`.
    pub(crate) fn replica_on(&self, node: NodeId) -> Option<ReplicaId> {
        self.members.iter().find(|(member, _)| *member == node).map(|(_, replica)| *replica)
    }

    /// What the replica on `node` is opened with: the home alone initialises its group.
    pub(crate) fn founders(&self, node: NodeId) -> BTreeMap<ReplicaId, NodeId> {
        if node != self.home {
            return BTreeMap::new();
        }
        self.members.iter().map(|(member, replica)| (*replica, *member)).collect()
    }
}

/// The whole table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Routes {
    pub(crate) shards: u32,
    /// By id.
    pub(crate) groups: Vec<GroupRoute>,
    pub(crate) nodes: Vec<NodeInfo>,
}

pub(crate) fn node_ids() -> impl Iterator<Item = NodeId> {
    (1..=NODES).map(NodeId)
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

impl Routes {
    pub(crate) fn new(shards: u32) -> anyhow::Result<Self> {
        let nodes: Vec<PlacementNode> =
            node_ids().map(|id| PlacementNode { id, weight: 100, zone: String::new() }).collect();
        let placement = place(&nodes, &Settings { shards, lanes: LANES, replication: NODES })?;
        let mut next_replica = 0;
        let mut groups = Vec::new();
        for (id, placed) in (1..).zip(placement.groups) {
            let mut members = Vec::new();
            for node in placed.members {
                next_replica += 1;
                members.push((node, ReplicaId(next_replica)));
            }
            let shards = placed.shards.into_iter().map(|slice| ShardId(u64::from(slice))).collect();
            groups.push(GroupRoute { id: GroupId(id), home: placed.home, members, shards });
        }
        Ok(Self { shards, groups, nodes: node_ids().map(info_of).collect() })
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
    fn six_groups_hold_every_shard_once_and_sit_on_every_node() {
        for shards in [8, 16] {
            let routes = Routes::new(shards).unwrap();
            assert_eq!(routes.groups.len(), 6);
            let mut held: Vec<u64> =
                routes.groups.iter().flat_map(|group| &group.shards).map(|shard| shard.0).collect();
            held.sort_unstable();
            assert_eq!(held, (0..u64::from(shards)).collect::<Vec<_>>());
            for group in &routes.groups {
                assert_eq!(group.members[0].0, group.home);
                assert!(node_ids().all(|node| group.replica_on(node).is_some()));
                assert_eq!(group.founders(group.home).len(), 3);
            }
            let (first, count) = routes.run_of(ShardId(1));
            assert_eq!((u32::from(first), u32::from(count)), (1024 / shards, 1024 / shards));
            let token = Token(u32::from(first) << 22);
            assert_eq!(routes.shard_of(token), ShardId(1));
        }
    }
}
