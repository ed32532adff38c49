//! The shard manager: Raft group 0, which keeps the routing table and makes it come true.
//!
//! It knows the nodes and what each group shall look like, plans the way there, and carries plans
//! out step by step. The data path never needs it: nodes keep the table on disk, and groups decide
//! for themselves who leads and what they host (H7).
//!
//! Three things are kept apart. What is *wanted and stored* is the [`state`], changed by
//! [`command`]s only. What is *seen* is the [`sight`] of the leader of the moment. What is *done*
//! follows from both: [`executor`] for moves that are under way, [`schedule`] and [`planner`] for
//! new ones. All of these are pure; [`machine`] puts the state into group 0, [`manager`] and
//! [`driver`] put it to work.
//!
//! Reading order: [`plan`] (from the plan of a birth to a table), [`state`], [`command`],
//! [`machine`], [`sight`], [`executor`], [`planner`], [`planning`], [`voters`], `backoff`, [`schedule`],
//! [`manager`], `operators`, `courier`, [`driver`], [`adopt`] (a manager that lost its memory).

pub mod adopt;
mod backoff;
pub mod command;
mod courier;
pub mod driver;
pub mod executor;
pub mod machine;
pub mod manager;
mod operators;
pub mod plan;
pub mod planner;
pub mod planning;
pub mod schedule;
pub mod sight;
pub mod state;
#[cfg(test)]
mod testing;
pub mod voters;

pub use driver::Driver;
pub use machine::ManagerMachine;
pub use manager::Manager;
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
