//! The routing table: shard to group to members, and the address book.
//!
//! A table decides nothing (H7): a wrong route costs one redirect. For shards the higher epoch
//! wins, for groups the higher (membership log index, then term).

use crate::token::slice_bounds;
use crate::{ClusterId, Epoch, GroupId, NodeId, ReplicaId, ShardId, TableVersion, Token};

/// What a member may do in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRole {
    /// Counts in quorums.
    Voter,
    /// Only receives the log.
    Learner,
}

/// One seat of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRoute {
    /// The node that holds the seat.
    pub node: NodeId,
    /// The replica on it.
    pub replica: ReplicaId,
    /// What it may do.
    pub role: MemberRole,
}

/// One group and its members, home first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRoute {
    /// The group.
    pub id: GroupId,
    /// The node that is meant to lead it.
    pub home: NodeId,
    /// Its lane among the groups of its home.
    pub lane: u32,
    /// Its members, home first.
    pub members: Vec<MemberRoute>,
    /// The node believed to lead now.
    pub leader: Option<NodeId>,
    /// The term in which it leads.
    pub term: u64,
    /// Index of the membership entry that this was read from; 0 before the first is known.
    pub membership_index: u64,
}

/// One shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardRoute {
    /// Its id; equals the slice in a new cluster.
    pub id: ShardId,
    /// Its slice of the token space.
    pub slice: u32,
    /// The shard that it was split from.
    pub parent: Option<ShardId>,
    /// Counts changes of group or slice.
    pub epoch: Epoch,
    /// The group that hosts it.
    pub group: GroupId,
}

/// A node as the table knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// The node.
    pub id: NodeId,
    /// Client address, `host:port`.
    pub addr: String,
    /// Peer address, `host:port`.
    pub peer_addr: String,
    /// HTTP address, `host:port`.
    pub http_addr: String,
    /// Failure domain; empty when unset.
    pub zone: String,
    /// Weight in hundredths, at least 1.
    pub weight: u32,
    /// Whether the node takes the storage role.
    pub storage: bool,
    /// Whether the node takes the manager role.
    pub manager: bool,
}

/// The whole table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutingTable {
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Grows with every change.
    pub version: TableVersion,
    /// Shards in slice order; as many as slices.
    pub shards: Vec<ShardRoute>,
    /// Groups by id, without the manager's.
    pub groups: Vec<GroupRoute>,
    /// Nodes by id.
    pub nodes: Vec<NodeInfo>,
}

impl RoutingTable {
    /// The shard that owns `token`; `None` while the table is empty.
    #[must_use]
    pub fn shard_of(&self, token: Token) -> Option<&ShardRoute> {
        let shards = u32::try_from(self.shards.len()).ok()?;
        if !shards.is_power_of_two() {
            return None;
        }
        self.shards.get(token.slice(shards) as usize)
    }

    /// The group with this id.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<&GroupRoute> {
        self.groups.iter().find(|group| group.id == id)
    }

    /// The node with this id.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&NodeInfo> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// First and last token of a shard, both inclusive.
    #[must_use]
    pub fn bounds(&self, shard: &ShardRoute) -> (Token, Token) {
        slice_bounds(shard.slice, u32::try_from(self.shards.len()).unwrap_or(1).max(1))
    }
}
