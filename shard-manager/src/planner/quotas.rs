//! How many seats every node ends with, and how the members of a group spread over the zones.
//!
//! Every group spreads in the same way: its members fill the zones evenly, as far as each has nodes.
//! That gives a zone a lowest and a highest number of members in any one group (rule 2), and the
//! placement's own choice, "among the zones that the group uses least", ends nowhere else.
//!
//! The quotas of `ring::seat_quota` fit between these marks for up to three replicas. With more, a
//! small zone may leave seats unplaced, and the quotas then add up to less than all seats: that is
//! how it shows that they cannot be met together with rules 1 and 2. The rest is handed out as
//! `ring::place` does it, beyond the quotas: where the least used zones are, to the node with the
//! largest signed ratio of free seats (none at first, then below zero) to the groups that are not
//! its own. What comes of that depends on nodes and weights alone, never on the present table;
//! otherwise a second plan could undo the first.
//!
//! Invariant: the targets add up to all seats, none is above the number of groups, and a zone's are
//! between its marks times the groups. Such targets can always be reached: within a zone all groups
//! ask for the same number of nodes or for one more.

use std::collections::BTreeMap;

use annulus_ring::{Candidate, PlacementNode, quota, seat_quota};
use annulus_types::NodeId;

/// One zone, as every group uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Zone {
    /// Its nodes, as positions in the list of all, ascending.
    pub nodes: Vec<usize>,
    /// Members that every group has here.
    pub low: usize,
    /// Members that a group may have here: `low`, or one more.
    pub high: usize,
}

/// The zones of `nodes`, by name, for groups of `size` members.
pub(super) fn zones(nodes: &[PlacementNode], size: usize) -> Vec<Zone> {
    let mut by_name: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, node) in nodes.iter().enumerate() {
        by_name.entry(node.zone.as_str()).or_default().push(at);
    }
    let filled =
        |level: usize| by_name.values().map(|inside| inside.len().min(level)).sum::<usize>();
    let mut level = 0;
    while level < size && filled(level + 1) <= size {
        level += 1;
    }
    let in_all = filled(level);
    by_name
        .into_values()
        .map(|inside| {
            let low = inside.len().min(level);
            let more = in_all < size && inside.len() > level;
            Zone { low, high: low + usize::from(more), nodes: inside }
        })
        .collect()
}

/// What every node is meant to have; by position in the list of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Quotas {
    /// Groups at home.
    pub homes: Vec<u64>,
    /// Seats, as the rule of evenness gives them.
    pub seats: Vec<u64>,
    /// Seats that the node ends with: the same, or more where the quotas leave seats unplaced.
    pub targets: Vec<u64>,
}

impl Quotas {
    /// Shares `groups` groups of `size` members out among `nodes`, which are sorted by id.
    pub(super) fn new(
        nodes: &[PlacementNode],
        zones: &[Zone],
        groups: usize,
        size: usize,
        replication: u32,
    ) -> Self {
        let total = groups as u64;
        let candidates: Vec<Candidate> = nodes
            .iter()
            .map(|node| Candidate {
                id: u64::from(node.id.0),
                weight: u64::from(node.weight),
                low: 0,
                high: total,
            })
            .collect();
        let homes = quota(total, &candidates);
        let at_home: BTreeMap<NodeId, u64> =
            nodes.iter().map(|node| node.id).zip(homes.iter().copied()).collect();
        let meant = seat_quota(nodes, &at_home, replication).nodes;
        let seats: Vec<u64> =
            nodes.iter().map(|node| meant.get(&node.id).copied().unwrap_or(0)).collect();
        let mut quotas = Self { homes, targets: seats.clone(), seats };
        quotas.hand_out_the_rest(zones, total, size as u64);
        quotas
    }

    fn hand_out_the_rest(&mut self, zones: &[Zone], groups: u64, size: u64) {
        let mut zone_of = vec![0; self.seats.len()];
        for (zone, inside) in zones.iter().enumerate() {
            for at in &inside.nodes {
                zone_of[*at] = zone;
            }
        }
        let mut used: Vec<u64> = zones
            .iter()
            .map(|zone| zone.nodes.iter().map(|at| self.targets[*at]).sum::<u64>())
            .collect();
        let placed: u64 = used.iter().sum();
        for _ in placed..groups * size {
            let quotas = &*self;
            let has_room = |at: &usize| {
                let zone = zone_of[*at];
                quotas.targets[*at] < groups && used[zone] < groups * zones[zone].high as u64
            };
            let next = (0..zone_of.len()).filter(has_room).min_by_key(|at| {
                let zone = zone_of[*at];
                let above_low = used[zone] >= groups * zones[zone].low as u64;
                (above_low, Beyond::of(quotas, *at, groups), *at)
            });
            let Some(next) = next else { break };
            self.targets[next] += 1;
            used[zone_of[next]] += 1;
        }
    }
}

/// Seats taken beyond the quota, per group that may ask for them. The smaller takes the next.
#[derive(Clone, Copy, Debug)]
struct Beyond {
    taken: u128,
    /// At least 1 for a node with room: one that is home of all groups has a seat in each.
    askers: u128,
}

impl Beyond {
    fn of(quotas: &Quotas, at: usize, groups: u64) -> Self {
        Self {
            taken: u128::from(quotas.targets[at] - quotas.seats[at]),
            askers: u128::from(groups - quotas.homes[at]),
        }
    }
}

impl Ord for Beyond {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.taken * other.askers).cmp(&(other.taken * self.askers))
    }
}

impl PartialOrd for Beyond {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Beyond {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Beyond {}
