//! The shard manager: Raft group 0, which keeps the routing table.
//!
//! It plans the placement of a new cluster from nodes and settings alone, and tells every node what
//! it holds. The data path never needs it: nodes keep the table on disk, and groups decide for
//! themselves who leads and what they host.
//!
//! [`plan`] is pure: from a plan of the birth to a table. [`machine`] is group 0's replicated
//! machine. [`driver`] runs on whichever node leads group 0 and pushes the table.

pub mod driver;
pub mod machine;
pub mod plan;

pub use driver::Driver;
pub use machine::ManagerMachine;
pub use plan::{PlanError, table_of};

use annulus_types::ids::allocated_id;
use annulus_types::{GroupId, NodeId, ReplicaId};

/// Voters of the manager's group in a cluster of `nodes` nodes with the manager role.
#[must_use]
pub fn voter_count(nodes: usize) -> usize {
    match nodes {
        0..=2 => nodes.min(1),
        3..=8 => 3,
        _ => 5,
    }
}

/// The replicas of the manager's group at birth (H5): counters from 1, lowest node ids first.
#[must_use]
pub fn founders(incarnation: u32, managers: &[NodeId]) -> Vec<(ReplicaId, NodeId)> {
    let mut nodes = managers.to_vec();
    nodes.sort_unstable();
    nodes.truncate(voter_count(nodes.len()));
    (1u32..).map(|n| ReplicaId(allocated_id(incarnation, n))).zip(nodes).collect()
}

/// The manager's group.
pub const GROUP: GroupId = GroupId::MANAGER;
