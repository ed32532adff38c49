//! Tests of the planner: golden scripts, laws, the least bytes, the edges of its input, its flows.

mod edges;
mod flows;
mod laws;
mod least;
mod scripts;

use annulus_ring::{PlacementNode, Settings, place};
use annulus_types::{GroupId, NodeId};

use super::{NodeState, PlanGroup, PlanNode, Seat};

/// A node that is up.
fn node(id: u32, weight: u32, zone: &str) -> PlanNode {
    PlanNode { id: NodeId(id), weight, zone: zone.to_owned(), state: NodeState::Up }
}

/// Nodes `1..=many` of weight 100, in no zone.
fn equal_nodes(many: u32) -> Vec<PlanNode> {
    (1..=many).map(|id| node(id, 100, "")).collect()
}

/// The groups of a fresh cluster, numbered from 1; `bytes` of the number of shards and the id.
fn fresh(
    nodes: &[PlanNode],
    settings: &Settings,
    bytes: impl Fn(u64, u64) -> u64,
) -> Vec<PlanGroup> {
    let nodes: Vec<PlacementNode> = nodes
        .iter()
        .map(|node| PlacementNode { id: node.id, weight: node.weight, zone: node.zone.clone() })
        .collect();
    let placement = place(&nodes, settings).unwrap();
    (1u64..)
        .zip(placement.groups)
        .map(|(id, placed)| PlanGroup {
            id: GroupId(id),
            home: placed.home,
            lane: placed.lane,
            members: placed.members.iter().map(|node| seat(*node)).collect(),
            bytes: bytes(placed.shards.len() as u64, id),
            shards: placed.shards.len() as u32,
        })
        .collect()
}

/// A seat that is not damaged.
fn seat(node: NodeId) -> Seat {
    Seat { node, damaged: false }
}

/// A group with bytes, at home on its first member in lane 0.
fn group(id: u64, members: &[u32], bytes: u64) -> PlanGroup {
    PlanGroup {
        id: GroupId(id),
        home: NodeId(members[0]),
        lane: 0,
        members: members.iter().map(|node| seat(NodeId(*node))).collect(),
        bytes,
        shards: 1,
    }
}

/// The nodes of a group's members, ascending.
fn members(group: &PlanGroup) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = group.members.iter().map(|seat| seat.node).collect();
    nodes.sort_unstable();
    nodes
}
