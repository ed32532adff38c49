//! Seats: how many each zone and each node offers, and who takes the seats of a group.
//!
//! A group has as many members as the replication asks for, or as there are nodes. Its first seat
//! belongs to its home. The others are shared by quota in two steps, first among the zones, then
//! among the nodes of a zone; a node's own groups are part of its quota from the start.
//!
//! Zones come before evenness. A group that may spread over three zones does so, even when one zone
//! has a single small node: that is why a zone's quota starts at what every group will ask of it,
//! and ends at what every group can use of it.
//!
//! Invariants, of every group: members are different nodes; no zone is used twice while one that
//! has a node left is used less often. Evenness gives way to both: when no node of the least used
//! zones has a seat left, the one with the best ratio takes more than its quota.
//!
//! Nothing here fails; with too few nodes a group has fewer members.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use annulus_types::token::hash;
use annulus_types::{NodeId, Token};

use crate::placement::PlacementNode;
use crate::quota::{Candidate, quota};
use crate::vnodes::Ring;

/// How many seats, homes included, are meant for whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeatQuota {
    /// By zone; an unset zone is the zone `""`.
    pub zones: BTreeMap<String, u64>,
    pub nodes: BTreeMap<NodeId, u64>,
}

/// Shares the seats of all groups out; `at_home` says how many groups have their home on which of
/// the `nodes`. With up to three replicas the quotas add up to all seats; with more, small zones
/// may leave some unplaced, and these are taken beyond quota.
#[must_use]
pub fn seat_quota(
    nodes: &[PlacementNode],
    at_home: &BTreeMap<NodeId, u64>,
    replication: u32,
) -> SeatQuota {
    let own = |id: NodeId| at_home.get(&id).copied().unwrap_or(0);
    let groups: u64 = nodes.iter().map(|node| own(node.id)).sum();
    let replicas = u64::from(replication).min(nodes.len() as u64);

    let mut by_zone: BTreeMap<&str, Vec<&PlacementNode>> = BTreeMap::new();
    for node in nodes {
        by_zone.entry(node.zone.as_str()).or_default().push(node);
    }
    let zones = by_zone.len() as u64;
    let candidates: Vec<Candidate> = (0u64..)
        .zip(by_zone.values())
        .map(|(rank, inside)| {
            let homes: u64 = inside.iter().map(|node| own(node.id)).sum();
            let high = groups * replicas.div_ceil(zones).min(inside.len() as u64);
            let low = homes.max(groups * (replicas / zones)).min(high);
            let weight = inside.iter().map(|node| u64::from(node.weight)).sum();
            Candidate { id: rank, weight, low, high }
        })
        .collect();

    let mut shared = SeatQuota::default();
    for ((zone, inside), seats) in by_zone.iter().zip(quota(replicas * groups, &candidates)) {
        let candidates: Vec<Candidate> = inside
            .iter()
            .map(|node| Candidate {
                id: u64::from(node.id.0),
                weight: u64::from(node.weight),
                low: own(node.id),
                high: groups,
            })
            .collect();
        shared.zones.insert((*zone).to_owned(), seats);
        for (node, share) in inside.iter().zip(quota(seats, &candidates)) {
            shared.nodes.insert(node.id, share);
        }
    }
    shared
}

/// The seats that are still free while groups take theirs one after the other.
pub(crate) struct Seats<'a> {
    ring: &'a Ring,
    replication: usize,
    offers: BTreeMap<NodeId, Offer<'a>>,
}

/// What one node still has to give.
struct Offer<'a> {
    zone: &'a str,
    /// Seats left for groups of other homes; below zero once it took more than its quota.
    free: i128,
    /// Groups not yet placed that have another home: those that may ask for the free seats.
    askers: i128,
}

impl<'a> Seats<'a> {
    /// All seats free but those of the homes, which are reserved.
    pub(crate) fn new(
        nodes: &'a [PlacementNode],
        ring: &'a Ring,
        at_home: &BTreeMap<NodeId, u64>,
        replication: u32,
    ) -> Self {
        let shares = seat_quota(nodes, at_home, replication).nodes;
        let count =
            |of: &BTreeMap<NodeId, u64>, id: NodeId| i128::from(of.get(&id).copied().unwrap_or(0));
        let groups: i128 = nodes.iter().map(|node| count(at_home, node.id)).sum();
        let offers = nodes
            .iter()
            .map(|node| {
                let own = count(at_home, node.id);
                let free = count(&shares, node.id) - own;
                (node.id, Offer { zone: &node.zone, free, askers: groups - own })
            })
            .collect();
        Self { ring, replication: replication as usize, offers }
    }

    /// Seats the next group and returns its members, home first. Called once for every group, in
    /// the order lane, then node id.
    pub(crate) fn take(&mut self, home: NodeId, lane: u32) -> Vec<NodeId> {
        let start = Token(hash(format!("lane{home}-{lane}").as_bytes()));
        let mut members = vec![home];
        while members.len() < self.replication {
            let Some(next) = self.choose(&members, start) else { break };
            if let Some(offer) = self.offers.get_mut(&next) {
                offer.free -= 1;
            }
            members.push(next);
        }
        for (node, offer) in &mut self.offers {
            if *node != home {
                offer.askers -= 1;
            }
        }
        members
    }

    /// The best node for one more seat beside `members`; `None` when all nodes are members.
    fn choose(&self, members: &[NodeId], start: Token) -> Option<NodeId> {
        let mut used: BTreeMap<&str, usize> = BTreeMap::new();
        for offer in members.iter().filter_map(|member| self.offers.get(member)) {
            *used.entry(offer.zone).or_default() += 1;
        }
        let merits: Vec<(NodeId, Merit)> = self
            .offers
            .iter()
            .filter(|(node, _)| !members.contains(node))
            .map(|(node, offer)| {
                let zone_used = used.get(offer.zone).copied().unwrap_or(0);
                (*node, Merit { zone_used, free: offer.free, askers: offer.askers })
            })
            .collect();
        let best = merits.iter().map(|(_, merit)| *merit).min_by(Merit::order)?;
        let equals: Vec<NodeId> = merits
            .iter()
            .filter(|(_, merit)| merit.order(&best).is_eq())
            .map(|(node, _)| *node)
            .collect();
        self.ring.walk(start).find(|node| equals.contains(node))
    }
}

/// Why a node deserves the next seat of a group.
#[derive(Clone, Copy)]
struct Merit {
    /// Members that the group already has in the node's zone.
    zone_used: usize,
    free: i128,
    /// At least 1: the group that asks is one of them.
    askers: i128,
}

impl Merit {
    /// The better one is less: the least used zone, then the most free seats per asking group. A
    /// node with a free seat beats one without by that ratio alone, its sign being the better one.
    fn order(&self, other: &Self) -> Ordering {
        self.zone_used
            .cmp(&other.zone_used)
            .then_with(|| (other.free * self.askers).cmp(&(self.free * other.askers)))
    }
}
