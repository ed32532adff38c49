//! What several tests of this crate begin with.

use annulus_proto::v1;
use annulus_proto::v1::manager_command::Command;

use crate::command::{Outcome, Refusal, apply};

/// Equal nodes with both roles, from id 1, in the life 7.
pub fn node_of(id: u32) -> v1::NodeInfo {
    v1::NodeInfo {
        id,
        peer_addr: format!("10.0.0.{id}:1"),
        weight: 100,
        storage: true,
        manager: true,
        ..Default::default()
    }
}

/// The plan of a birth with so many equal nodes.
pub fn plan_of(nodes: u32) -> v1::Plan {
    let node = |id| v1::PlannedNode { info: Some(node_of(id)), incarnation: 7 };
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

/// Applies a command to a state.
pub fn put(
    state: &mut v1::ManagerState,
    command: Command,
    now_ms: u64,
) -> Result<Outcome, Refusal> {
    let command = v1::ManagerCommand { command: Some(command) };
    let (next, outcome) = apply(Some(&*state), &command, now_ms)?;
    *state = next;
    Ok(outcome)
}
