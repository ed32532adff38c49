//! The input of a plan in one order, with everything that follows from it before a choice is made.
//!
//! Nodes and groups stand by id, so that a plan cannot depend on the order in which they were
//! listed. A node that is not listed counts as dead, a weight outside the bounds of the ring as the
//! nearest bound, a replication of zero as one, and two seats of one node in a group as one seat.
//!
//! Invariants: positions of nodes and of groups never change; only nodes that are up have one.

use std::collections::BTreeMap;

use annulus_ring::placement::WEIGHT_LIMIT;
use annulus_ring::{PlacementNode, Ring, RingNode};
use annulus_types::token::hash;
use annulus_types::{NodeId, Token};

use super::flow::Cost;
use super::quotas::{Quotas, Zone, zones};
use super::{NodeState, PlanGroup, PlanNode, Rules};

/// See the module.
pub(super) struct Cluster<'a> {
    states: BTreeMap<NodeId, NodeState>,
    zone_names: BTreeMap<NodeId, &'a str>,
    /// The nodes that may hold data: those that are up.
    pub up: Vec<PlacementNode>,
    pub zones: Vec<Zone>,
    pub quotas: Quotas,
    pub groups: Vec<GroupView<'a>>,
    /// Members that a group should have while all nodes are there.
    pub replication: usize,
    /// Members that a group can have now: no more than nodes are up.
    pub size: usize,
}

/// A group as the planner looks at it.
pub(super) struct GroupView<'a> {
    pub group: &'a PlanGroup,
    /// By node: whether the seat is damaged.
    pub seats: BTreeMap<NodeId, bool>,
    /// Seats that are not damaged, on nodes that are not dead.
    pub live: usize,
    /// By position: the place of each node in the group's walk, from 0.
    ranks: Vec<i64>,
}

impl GroupView<'_> {
    /// Whether no majority of the members lives. Such a group can agree on nothing, on another
    /// membership neither, so it is left as it is.
    pub fn is_lost(&self) -> bool {
        2 * self.live <= self.seats.len()
    }

    /// How many live members it could lose before it is lost.
    pub fn margin(&self) -> usize {
        self.live.saturating_sub(self.seats.len() / 2 + 1)
    }

    /// Whether the node has a seat that is not damaged here.
    pub fn has_sound(&self, node: NodeId) -> bool {
        self.seats.get(&node) == Some(&false)
    }
}

impl<'a> Cluster<'a> {
    pub fn new(nodes: &'a [PlanNode], groups: &'a [PlanGroup], rules: &Rules) -> Self {
        let states: BTreeMap<NodeId, NodeState> =
            nodes.iter().map(|node| (node.id, node.state)).collect();
        let zone_names = nodes.iter().map(|node| (node.id, node.zone.as_str())).collect();
        let mut up: Vec<PlacementNode> = nodes
            .iter()
            .filter(|node| node.state == NodeState::Up)
            .map(|node| PlacementNode {
                id: node.id,
                weight: node.weight.clamp(1, WEIGHT_LIMIT),
                zone: node.zone.clone(),
            })
            .collect();
        up.sort_unstable_by_key(|node| node.id);

        let replication = rules.replication.max(1);
        let size = up.len().min(replication as usize);
        let zones = zones(&up, size);
        let quotas = Quotas::new(&up, &zones, groups.len(), size, replication);
        let ring_nodes: Vec<RingNode> =
            up.iter().map(|node| RingNode { id: node.id, weight: node.weight }).collect();
        let ring = Ring::new(&ring_nodes);
        let mut groups: Vec<GroupView<'_>> =
            groups.iter().map(|group| view(group, &states, &up, &ring)).collect();
        groups.sort_by_key(|view| view.group.id);
        let replication = replication as usize;
        Self { states, zone_names, up, zones, quotas, groups, replication, size }
    }

    pub fn state(&self, node: NodeId) -> NodeState {
        self.states.get(&node).copied().unwrap_or(NodeState::Dead)
    }

    pub fn zone_name(&self, node: NodeId) -> Option<&'a str> {
        self.zone_names.get(&node).copied()
    }

    /// The position of a node that is up.
    pub fn position(&self, node: NodeId) -> Option<usize> {
        self.up.binary_search_by_key(&node, |known| known.id).ok()
    }

    /// Whether every group can change its membership.
    pub fn nothing_is_lost(&self) -> bool {
        !self.groups.iter().any(GroupView::is_lost)
    }

    /// The place of a node in the walk of a group, from 1; a node that is not up stands last.
    pub fn rank(&self, view: &GroupView<'_>, node: NodeId) -> i64 {
        let last = self.up.len() as i64;
        self.position(node).map_or(last, |at| view.ranks[at]) + 1
    }

    /// What it costs that a node has a seat in a group. Nothing is copied to a member; among equals
    /// the home keeps its seat before the walk decides.
    pub fn seat_cost(&self, view: &GroupView<'_>, at: usize) -> Cost {
        let node = self.up[at].id;
        let copied = Cost { bytes: i128::from(view.group.bytes), moves: 1, ..Cost::default() };
        let walk = self.rank(view, node);
        match view.seats.get(&node) {
            Some(false) if node == view.group.home => Cost::default(),
            Some(false) => Cost { walk, ..Cost::default() },
            Some(true) => copied,
            None => Cost { walk, ..copied },
        }
    }

    /// What it costs that a member of the next table is the home of a group. One that has the data
    /// already can lead at once and is preferred to one that must be filled first.
    pub fn home_cost(&self, view: &GroupView<'_>, at: usize) -> Cost {
        let node = self.up[at].id;
        if node == view.group.home {
            return Cost::default();
        }
        let later = if view.has_sound(node) { 0 } else { self.up.len() as i64 };
        Cost { moves: 1, walk: self.rank(view, node) + later, ..Cost::default() }
    }
}

fn view<'a>(
    group: &'a PlanGroup,
    states: &BTreeMap<NodeId, NodeState>,
    up: &[PlacementNode],
    ring: &Ring,
) -> GroupView<'a> {
    let mut seats: BTreeMap<NodeId, bool> = BTreeMap::new();
    for seat in &group.members {
        *seats.entry(seat.node).or_default() |= seat.damaged;
    }
    let live = seats
        .iter()
        .filter(|(node, damaged)| {
            !**damaged && states.get(*node).is_some_and(|state| *state != NodeState::Dead)
        })
        .count();
    let start = Token(hash(format!("lane{}-{}", group.home, group.lane).as_bytes()));
    let mut ranks = vec![up.len() as i64; up.len()];
    for (rank, node) in (0i64..).zip(ring.walk(start)) {
        if let Ok(at) = up.binary_search_by_key(&node, |known| known.id) {
            ranks[at] = rank;
        }
    }
    GroupView { group, seats, live, ranks }
}
