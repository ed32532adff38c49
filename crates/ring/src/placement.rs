//! The placement of a fresh cluster: homes, groups and members, from nodes and settings alone.
//!
//! In four steps, each of which only reads what the earlier ones decided:
//!
//! 1. **Homes.** `quota` says of how many shards a node is home. In slice order each shard takes
//!    the first node with room on the walk from the first token of its slice.
//! 2. **Groups.** Up to `lanes` per node on average, never more than shards; shared among the nodes
//!    by quota so that every node with a home has one, and none has more groups than homes.
//! 3. **Shards of a group.** A home deals its shards, in slice order, to its groups in turn.
//! 4. **Seats.** See the module `seats`.
//!
//! Invariants: every shard is in exactly one group, whose home is its home; a group's members are
//! different nodes, its home first; groups stand in the order lane, then node id, in which the
//! manager allocates their ids (H5). The answer does not depend on the order in which nodes are
//! listed.
//!
//! What is not decided here: ids, and how an existing cluster gets from one table to another.
//!
//! Failure: settings or nodes out of bounds are refused before anything is computed, with the field
//! and its limit in the error.

use std::collections::{BTreeMap, BTreeSet};

use annulus_types::token::slice_bounds;
use annulus_types::{NodeId, limits};

use crate::quota::{Candidate, quota};
use crate::seats::Seats;
use crate::vnodes::{Ring, RingNode};

/// Most lanes: as many as there can be shards, since a group without a shard does not exist.
pub const LANES_LIMIT: u32 = limits::SHARDS;
/// Most replicas of a shard. Seven survive three failures; every further one costs bandwidth on
/// every write and is no safer in practice.
pub const REPLICATION_LIMIT: u32 = 7;
/// Largest weight, hundredths: a hundred default nodes in one, 6,400 points on the ring.
pub const WEIGHT_LIMIT: u32 = 10_000;

/// What is fixed when a cluster is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A power of two from 1 to 1,024.
    pub shards: u32,
    /// Groups per node on average: fewer batch better, more balance finer.
    pub lanes: u32,
    /// Members of a group, as far as there are nodes.
    pub replication: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { shards: 128, lanes: 4, replication: 3 }
    }
}

/// A setting is out of its bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("shards must be a power of two from 1 to {limit}, got {got}")]
    Shards { got: u32, limit: u32 },
    #[error("{field} must be from 1 to {limit}, got {got}")]
    OutOfRange { field: &'static str, got: u32, limit: u32 },
}

impl Settings {
    /// Refuses settings that no cluster can have.
    ///
    /// # Errors
    /// The first field that is out of its bounds, with the bound.
    pub fn validate(&self) -> Result<(), SettingsError> {
        if !self.shards.is_power_of_two() || self.shards > limits::SHARDS {
            return Err(SettingsError::Shards { got: self.shards, limit: limits::SHARDS });
        }
        for (field, got, limit) in [
            ("lanes", self.lanes, LANES_LIMIT),
            ("replication", self.replication, REPLICATION_LIMIT),
        ] {
            if got == 0 || got > limit {
                return Err(SettingsError::OutOfRange { field, got, limit });
            }
        }
        Ok(())
    }
}

/// A node that takes replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementNode {
    pub id: NodeId,
    /// Hundredths, from 1 to [`WEIGHT_LIMIT`].
    pub weight: u32,
    /// Failure domain; unset is the zone `""`.
    pub zone: String,
}

/// No placement follows from these nodes and settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("a placement needs at least one node")]
    NoNodes,
    #[error("node {0} is listed twice")]
    ListedTwice(NodeId),
    #[error("the weight of node {node} must be from 1 to {limit} hundredths, got {got}")]
    Weight { node: NodeId, got: u32, limit: u32 },
}

/// A group before it has an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedGroup {
    /// The node that is meant to lead it.
    pub home: NodeId,
    /// Its number among the groups of its home, from 0.
    pub lane: u32,
    /// Home first, then in the order in which they took their seats.
    pub members: Vec<NodeId>,
    /// Slices, ascending; never empty.
    pub shards: Vec<u32>,
}

/// The whole table of a fresh cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// By slice.
    pub homes: Vec<NodeId>,
    /// In the order lane, then home.
    pub groups: Vec<PlacedGroup>,
}

/// Places every shard of a fresh cluster.
///
/// # Errors
/// When a setting or a weight is out of its bounds, or nodes are missing or listed twice.
pub fn place(nodes: &[PlacementNode], settings: &Settings) -> Result<Placement, PlacementError> {
    settings.validate()?;
    check(nodes)?;
    let ring_nodes: Vec<RingNode> =
        nodes.iter().map(|node| RingNode { id: node.id, weight: node.weight }).collect();
    let ring = Ring::new(&ring_nodes);

    let shards = u64::from(settings.shards);
    let home_quota = share(shards, nodes, |_| (0, shards));
    let homes = find_homes(&ring, settings.shards, home_quota.clone());

    let groups = (u64::from(settings.lanes) * nodes.len() as u64).min(shards);
    let at_home = share(groups, nodes, |node| {
        let homes = home_quota.get(&node).copied().unwrap_or(0);
        (homes.min(1), homes)
    });

    let mut seats = Seats::new(nodes, &ring, &at_home, settings.replication);
    let groups = deal(&homes, &at_home)
        .into_iter()
        .map(|((lane, home), shards)| {
            let members = seats.take(home, lane);
            PlacedGroup { home, lane, members, shards }
        })
        .collect();
    Ok(Placement { homes, groups })
}

fn check(nodes: &[PlacementNode]) -> Result<(), PlacementError> {
    if nodes.is_empty() {
        return Err(PlacementError::NoNodes);
    }
    let mut seen = BTreeSet::new();
    for node in nodes {
        if !seen.insert(node.id) {
            return Err(PlacementError::ListedTwice(node.id));
        }
        if node.weight == 0 || node.weight > WEIGHT_LIMIT {
            let (got, limit) = (node.weight, WEIGHT_LIMIT);
            return Err(PlacementError::Weight { node: node.id, got, limit });
        }
    }
    Ok(())
}

/// The quota of every node, with the low and the high mark that `marks` gives it.
fn share(
    total: u64,
    nodes: &[PlacementNode],
    marks: impl Fn(NodeId) -> (u64, u64),
) -> BTreeMap<NodeId, u64> {
    let candidates: Vec<Candidate> = nodes
        .iter()
        .map(|node| {
            let (low, high) = marks(node.id);
            Candidate { id: u64::from(node.id.0), weight: u64::from(node.weight), low, high }
        })
        .collect();
    nodes.iter().map(|node| node.id).zip(quota(total, &candidates)).collect()
}

/// The home of every slice, `room` being how many each node takes.
fn find_homes(ring: &Ring, shards: u32, mut room: BTreeMap<NodeId, u64>) -> Vec<NodeId> {
    let mut homes = Vec::with_capacity(shards as usize);
    for slice in 0..shards {
        let (first, _) = slice_bounds(slice, shards);
        let home = ring
            .walk(first)
            .find(|node| room.get(node).is_some_and(|left| *left > 0))
            .expect("every weight is at least 1, so the rooms add up to the shards");
        room.entry(home).and_modify(|left| *left -= 1);
        homes.push(home);
    }
    homes
}

/// The slices of every group, keyed and so ordered by lane, then home.
fn deal(homes: &[NodeId], at_home: &BTreeMap<NodeId, u64>) -> BTreeMap<(u32, NodeId), Vec<u32>> {
    let mut dealt: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut hosted: BTreeMap<(u32, NodeId), Vec<u32>> = BTreeMap::new();
    for (slice, home) in (0u32..).zip(homes) {
        let turn = dealt.entry(*home).or_default();
        // All groups of a home start empty, so "to the emptiest, lower lane first" is in turn. A
        // node with a home has at least one group, and no more than homes: none stays empty.
        let lane = *turn % at_home[home];
        *turn += 1;
        hosted.entry((lane as u32, *home)).or_default().push(slice);
    }
    hosted
}
