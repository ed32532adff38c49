//! The cheapest way to send units through a network: the arithmetic under seats and homes.
//!
//! Units enter at nodes and leave at the one sink; an edge takes so many of them at such a cost. The
//! method is that of successive shortest paths: every unit takes the cheapest way that is left,
//! which may lead some of the earlier units another way. Potentials keep the costs of all edges from
//! going below zero, so that each search is Dijkstra's and may end when it meets the sink.
//!
//! Invariants: after every push the flow is the cheapest of all that carry the units pushed so far,
//! and no edge with room has a cost below zero once its potentials are counted; both need that no
//! edge is given such a cost. Equal inputs in equal order give equal flows: ties go to the node made
//! first, then to the edge made first.
//!
//! What this module does not do: know what a unit means. Nothing here fails but a push that finds no
//! way, which says so and changes nothing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::{Add, Neg, Sub};

/// What a choice costs, compared field by field from the first: the placement rules in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cost {
    /// Units beyond a quota (rule 3).
    pub over: i64,
    /// Bytes over the network (rule 4).
    pub bytes: i128,
    /// Copies made, or homes changed: an empty group is not moved for nothing.
    pub moves: i64,
    /// Places in the walks of the groups (rule 5).
    pub walk: i64,
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            over: self.over + other.over,
            bytes: self.bytes + other.bytes,
            moves: self.moves + other.moves,
            walk: self.walk + other.walk,
        }
    }
}

impl Neg for Cost {
    type Output = Self;

    fn neg(self) -> Self {
        Self { over: -self.over, bytes: -self.bytes, moves: -self.moves, walk: -self.walk }
    }
}

impl Sub for Cost {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

/// Where all units go.
pub(super) const SINK: usize = 0;
/// Room for as many units as there may ever be.
pub(super) const ANY: u64 = u32::MAX as u64;

/// One direction of an edge. The other direction stands beside it, at the number with the last bit
/// flipped: its room is what this one carries, its cost is what taking that back gains.
#[derive(Clone, Copy, Debug)]
struct Edge {
    to: usize,
    room: u64,
    cost: Cost,
}

/// What a search knows about a node that it reached.
#[derive(Clone, Copy, Debug)]
struct Label {
    /// Of the cheapest way found so far, potentials counted.
    cost: Cost,
    /// The last edge of that way; meaningless where the search began.
    via: usize,
    /// Whether no cheaper way can be found any more.
    settled: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Network {
    edges: Vec<Edge>,
    /// By node: the edges that leave it.
    out: Vec<Vec<usize>>,
    potential: Vec<Cost>,
    /// By node: the labels of the last search.
    labels: Vec<Option<Label>>,
    /// The nodes with a label.
    reached: Vec<usize>,
}

impl Network {
    /// A network of the sink alone.
    pub(super) fn new() -> Self {
        let mut network = Self {
            edges: Vec::new(),
            out: Vec::new(),
            potential: Vec::new(),
            labels: Vec::new(),
            reached: Vec::new(),
        };
        network.node();
        network
    }

    /// Adds a node.
    pub(super) fn node(&mut self) -> usize {
        self.out.push(Vec::new());
        self.potential.push(Cost::default());
        self.labels.push(None);
        self.out.len() - 1
    }

    /// Adds an edge with room for so many units, at a cost of not less than zero for each.
    pub(super) fn edge(&mut self, from: usize, to: usize, room: u64, cost: Cost) -> usize {
        debug_assert!(cost >= Cost::default(), "a cost below zero: {cost:?}");
        let edge = self.edges.len();
        self.edges.push(Edge { to, room, cost });
        self.edges.push(Edge { to: from, room: 0, cost: -cost });
        self.out[from].push(edge);
        self.out[to].push(edge + 1);
        edge
    }

    /// How many units an edge carries.
    pub(super) fn carried(&self, edge: usize) -> u64 {
        self.edges[edge ^ 1].room
    }

    /// What one unit costs on an edge.
    pub(super) fn cost(&self, edge: usize) -> Cost {
        self.edges[edge].cost
    }

    /// Sends one more unit from a node to the sink; `false` when no way is left.
    pub(super) fn push(&mut self, from: usize) -> bool {
        self.search(from, Some(SINK));
        let Some(Label { cost: whole, .. }) = self.labels[SINK] else { return false };
        for node in &self.reached {
            if let Some(Label { cost, settled: true, .. }) = self.labels[*node] {
                self.potential[*node] = self.potential[*node] + cost - whole;
            }
        }
        let mut node = SINK;
        while node != from {
            let Some(Label { via, .. }) = self.labels[node] else { break };
            self.edges[via].room -= 1;
            self.edges[via ^ 1].room += 1;
            node = self.edges[via ^ 1].to;
        }
        true
    }

    /// What the cheapest way from one node to every other costs now; below zero where units that
    /// are on their way would be led a cheaper one.
    pub(super) fn prices(&mut self, from: usize) -> Vec<Option<Cost>> {
        self.search(from, None);
        let start = self.potential[from];
        self.labels
            .iter()
            .zip(&self.potential)
            .map(|(label, potential)| label.map(|label| label.cost - start + *potential))
            .collect()
    }

    /// Labels every node with the cheapest way to it, or those nearer than `until`.
    fn search(&mut self, from: usize, until: Option<usize>) {
        for node in self.reached.drain(..) {
            self.labels[node] = None;
        }
        let mut nearest = BinaryHeap::new();
        let start = Cost::default();
        self.labels[from] = Some(Label { cost: start, via: 0, settled: false });
        self.reached.push(from);
        nearest.push(Reverse((start, from)));
        while let Some(Reverse((cost, node))) = nearest.pop() {
            match &mut self.labels[node] {
                Some(label) if !label.settled => label.settled = true,
                _ => continue,
            }
            if until == Some(node) {
                return;
            }
            for via in &self.out[node] {
                let edge = self.edges[*via];
                if edge.room == 0 {
                    continue;
                }
                let cost = cost + edge.cost + self.potential[node] - self.potential[edge.to];
                match &self.labels[edge.to] {
                    Some(known) if known.settled || known.cost <= cost => continue,
                    Some(_) => {}
                    None => self.reached.push(edge.to),
                }
                self.labels[edge.to] = Some(Label { cost, via: *via, settled: false });
                nearest.push(Reverse((cost, edge.to)));
            }
        }
    }
}
