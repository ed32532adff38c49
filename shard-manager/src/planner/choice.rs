//! Which table to reach: members, home and lane of every group.
//!
//! Both questions are flows of units at least cost. For **seats** a unit is a seat of a group. It
//! enters at the group, once for every member that the group has in a zone in any case and once for
//! every further one, passes the group's door to a zone (rule 2) and from there to one of the zone's
//! nodes (rule 1: at most once), and leaves through the node, which has room for its target (rule 3).
//! For **homes** a unit is a group, which passes to one of its members and leaves through that
//! node's quota of homes. Beyond a target or a quota a node takes units too, at a cost above all
//! others, so that a way is always found.
//!
//! Seats come first. What a home costs is a seat, so the least bytes for the seats are the least
//! bytes of all, whenever the homes can then be chosen among the members; and they nearly always
//! can. Where they cannot, some group has to take in a node for its home's sake. What that costs is
//! read from the network of the seats: the new member's way there and all that has to give way,
//! back to the group's door. Homes are chosen again with these prices, and seats once more around
//! the homes. What comes of that is near the least, not always the least: prices of several homes do
//! not simply add up.
//!
//! Lost groups take part in nothing, but the seats and homes that they keep are taken. They may
//! keep more than their share, and homes are then chosen among the members alone, some of them
//! beyond the quota: while data is in danger nothing is copied for the sake of a home.
//!
//! Invariants: every group that is not lost has `Cluster::size` members, all on nodes that are up,
//! its home among them; without lost groups the targets and quotas are met to the last unit. A table
//! that has what was chosen for it is chosen again: it costs nothing, and any other costs a move.

use std::collections::{BTreeMap, BTreeSet};

use annulus_types::NodeId;

use super::cluster::{Cluster, GroupView};
use super::flow::{ANY, Cost, Network, SINK};

/// The next table's line for one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub members: BTreeSet<NodeId>,
    pub home: NodeId,
    pub lane: u32,
}

/// By position of a group or node in the cluster.
type Members = Vec<BTreeSet<usize>>;
/// Homes by position of the group; `None` where there is none, or none yet.
type Homes = Vec<Option<usize>>;
/// What it costs beyond the present choice that a group (first) takes a node in (second).
type Prices = BTreeMap<(usize, usize), Cost>;

/// By position of the group; `None` for a lost one, and for all when no node is up.
pub(super) fn choose(cluster: &Cluster<'_>) -> Vec<Option<Choice>> {
    if cluster.up.is_empty() {
        return cluster.groups.iter().map(|_| None).collect();
    }
    let undecided: Homes = vec![None; cluster.groups.len()];
    let mut seating = Seating::new(cluster, &undecided);
    let mut members = seating.members(&undecided);
    let (mut homes, beyond) = choose_homes(cluster, &members, &Prices::new());
    if beyond > 0 && cluster.nothing_is_lost() {
        let prices = seating.prices();
        (homes, _) = choose_homes(cluster, &members, &prices);
        members = Seating::new(cluster, &homes).members(&homes);
    }
    let lanes = lanes(cluster, &homes);
    members
        .into_iter()
        .zip(homes)
        .zip(lanes)
        .map(|((members, home), lane)| {
            let id = |at: usize| cluster.up[at].id;
            let members = members.into_iter().map(id).collect();
            Some(Choice { members, home: id(home?), lane })
        })
        .collect()
}

/// Whether the homes are members in any case, so that the bytes are the least there are. For the test
/// of that claim.
#[cfg(test)]
pub(super) fn homes_are_members(cluster: &Cluster<'_>) -> bool {
    let undecided: Homes = vec![None; cluster.groups.len()];
    let members = Seating::new(cluster, &undecided).members(&undecided);
    choose_homes(cluster, &members, &Prices::new()).1 == 0
}

/// The network of seats with all seats taken.
struct Seating {
    network: Network,
    /// By position: where the seats of a node leave.
    nodes: Vec<usize>,
    asks: Vec<Ask>,
}

/// A group may seat a node.
struct Ask {
    group: usize,
    node: usize,
    /// The group's door to the node's zone.
    door: usize,
    edge: usize,
}

impl Seating {
    /// Seats all groups that are not lost, around the homes that are known.
    fn new(cluster: &Cluster<'_>, homes: &[Option<usize>]) -> Self {
        let mut taken = vec![0; cluster.up.len()];
        for (view, home) in cluster.groups.iter().zip(homes) {
            if view.is_lost() {
                for at in view.seats.keys().filter_map(|node| cluster.position(*node)) {
                    taken[at] += 1;
                }
            } else if let Some(home) = home {
                taken[*home] += 1;
            }
        }
        let mut network = Network::new();
        let nodes = gates(&mut network, &cluster.quotas.targets, &taken);
        let mut seating = Self { network, nodes, asks: Vec::new() };
        let mut entries = Vec::new();
        for (group, view) in cluster.groups.iter().enumerate() {
            if !view.is_lost() {
                seating.add_group(cluster, (group, view), homes[group], &mut entries);
            }
        }
        for (entry, units) in entries {
            for _ in 0..units {
                seating.network.push(entry);
            }
        }
        seating
    }

    /// Adds the doors of a group, and to `entries` where how many of its units enter.
    fn add_group(
        &mut self,
        cluster: &Cluster<'_>,
        (group, view): (usize, &GroupView<'_>),
        home: Option<usize>,
        entries: &mut Vec<(usize, usize)>,
    ) {
        let further = self.network.node();
        let mut further_units = cluster.size;
        for zone in &cluster.zones {
            let door = self.network.node();
            let (mut certain, mut more) = (zone.low, zone.high - zone.low);
            further_units -= certain;
            // The home has its seat already: one of those that are certain here, or the one more.
            if home.is_some_and(|home| zone.nodes.contains(&home)) {
                if certain > 0 {
                    certain -= 1;
                } else {
                    more -= 1;
                    further_units -= 1;
                }
            }
            for node in zone.nodes.iter().copied().filter(|node| home != Some(*node)) {
                let cost = cluster.seat_cost(view, node);
                let edge = self.network.edge(door, self.nodes[node], 1, cost);
                self.asks.push(Ask { group, node, door, edge });
            }
            if more > 0 {
                self.network.edge(further, door, 1, Cost::default());
            }
            entries.push((door, certain));
        }
        entries.push((further, further_units));
    }

    /// Who has a seat where, the given homes included.
    fn members(&self, homes: &[Option<usize>]) -> Members {
        let mut members: Members =
            homes.iter().map(|home| home.iter().copied().collect()).collect();
        for ask in self.asks.iter().filter(|ask| self.network.carried(ask.edge) > 0) {
            members[ask.group].insert(ask.node);
        }
        members
    }

    /// What every seat that was not taken would cost.
    fn prices(&mut self) -> Prices {
        let Self { network, nodes, asks } = self;
        let mut ways: BTreeMap<usize, Vec<Option<Cost>>> = BTreeMap::new();
        let mut prices = Prices::new();
        for ask in asks.iter() {
            if network.carried(ask.edge) > 0 {
                continue;
            }
            let way = ways.entry(ask.node).or_insert_with(|| network.prices(nodes[ask.node]));
            if let Some(rest) = way[ask.door] {
                prices.insert((ask.group, ask.node), network.cost(ask.edge) + rest);
            }
        }
        prices
    }
}

/// Makes a way to the sink for every node: as wide as its target, less what is taken, and beyond
/// that at the cost of a unit over.
fn gates(network: &mut Network, targets: &[u64], taken: &[u64]) -> Vec<usize> {
    let nodes: Vec<usize> = targets.iter().map(|_| network.node()).collect();
    for ((node, target), taken) in nodes.iter().zip(targets).zip(taken) {
        network.edge(*node, SINK, target.saturating_sub(*taken), Cost::default());
        network.edge(*node, SINK, ANY, Cost { over: 1, ..Cost::default() });
    }
    nodes
}

/// The homes of all groups that are not lost, among their members or at a price elsewhere, and how
/// many of them are beyond a quota.
fn choose_homes(
    cluster: &Cluster<'_>,
    members: &[BTreeSet<usize>],
    prices: &Prices,
) -> (Homes, u64) {
    let mut taken = vec![0; cluster.up.len()];
    for view in cluster.groups.iter().filter(|view| view.is_lost()) {
        if let Some(at) = cluster.position(view.group.home) {
            taken[at] += 1;
        }
    }
    let mut network = Network::new();
    let nodes = gates(&mut network, &cluster.quotas.homes, &taken);
    let mut asks = Vec::new();
    for (group, view) in cluster.groups.iter().enumerate().filter(|(_, view)| !view.is_lost()) {
        let entry = network.node();
        for (node, leave) in nodes.iter().enumerate() {
            let cost = if members[group].contains(&node) {
                cluster.home_cost(view, node)
            } else if let Some(price) = prices.get(&(group, node)) {
                cluster.home_cost(view, node) + *price
            } else {
                continue;
            };
            asks.push((group, node, network.edge(entry, *leave, 1, cost)));
        }
        network.push(entry);
    }
    let mut homes: Homes = vec![None; cluster.groups.len()];
    let mut at_home = taken;
    for (group, node, edge) in asks {
        if network.carried(edge) > 0 {
            homes[group] = Some(node);
            at_home[node] += 1;
        }
    }
    let beyond =
        at_home.iter().zip(&cluster.quotas.homes).map(|(has, most)| has.saturating_sub(*most));
    (homes, beyond.sum())
}

/// The lane of every group: its own where it keeps its home, else the lowest that no group has at
/// the new home, neither now nor by this plan. So no two groups share a lane at any moment, in
/// whatever order the steps are taken.
fn lanes(cluster: &Cluster<'_>, homes: &[Option<usize>]) -> Vec<u32> {
    let mut used: BTreeMap<NodeId, BTreeSet<u32>> = BTreeMap::new();
    for view in &cluster.groups {
        used.entry(view.group.home).or_default().insert(view.group.lane);
    }
    let mut lane_of = |view: &GroupView<'_>, home: NodeId| {
        if home == view.group.home {
            return view.group.lane;
        }
        let used = used.entry(home).or_default();
        let lane = (0..u32::MAX).find(|lane| !used.contains(lane)).unwrap_or(u32::MAX);
        used.insert(lane);
        lane
    };
    cluster
        .groups
        .iter()
        .zip(homes)
        .map(|(view, home)| lane_of(view, home.map_or(view.group.home, |home| cluster.up[home].id)))
        .collect()
}
