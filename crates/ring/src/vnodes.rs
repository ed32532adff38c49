//! The ring of virtual nodes: an order of preference among the nodes for every token.
//!
//! A node of weight `w` (hundredths) stands on the ring at `(64 w + 50) / 100` points, at least
//! one: the hashes of `server{id}-{i}`. The *walk* from a token meets the points at or after it,
//! wraps around at the end of the token space, and names every node once, where it is first met;
//! points with the same token follow each other by node id.
//!
//! Invariants: the points of a node depend on its own id and weight and on nothing else, so a node
//! that comes or goes leaves the order of the others in every walk as it was; a node that gains
//! weight keeps the points that it had. What this module does not do: balance (see `quota`), or
//! know about zones.
//!
//! Nothing here fails. An empty ring has empty walks and no owners.

use std::collections::BTreeSet;

use annulus_types::token::hash;
use annulus_types::{NodeId, Token};

/// A node as the ring sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingNode {
    pub id: NodeId,
    /// Hundredths. Memory grows with it, so callers bound it first, as `place` does.
    pub weight: u32,
}

/// A virtual node. Points are ordered by token, then by node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    pub token: Token,
    pub node: NodeId,
}

/// All virtual nodes of all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// Sorted.
    points: Vec<Point>,
    /// How many different nodes the points name: the length of every walk.
    nodes: usize,
}

impl Ring {
    /// The ring of these nodes, in whatever order they are listed; their ids are distinct.
    #[must_use]
    pub fn new(nodes: &[RingNode]) -> Self {
        let mut points: Vec<Point> = nodes
            .iter()
            .flat_map(|node| {
                let RingNode { id, weight } = *node;
                (0..virtual_nodes(weight)).map(move |i| {
                    let token = Token(hash(format!("server{id}-{i}").as_bytes()));
                    Point { token, node: id }
                })
            })
            .collect();
        points.sort_unstable();
        let distinct: BTreeSet<NodeId> = nodes.iter().map(|node| node.id).collect();
        Self { points, nodes: distinct.len() }
    }

    /// The virtual nodes in ring order.
    #[must_use]
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Every node once, in the order in which the ring meets them from `token` on. Lazy: it looks
    /// no further than the caller asks.
    pub fn walk(&self, token: Token) -> impl Iterator<Item = NodeId> {
        let first = self.points.partition_point(|point| point.token < token);
        let (before, from) = self.points.split_at(first);
        let mut met = BTreeSet::new();
        from.iter()
            .chain(before)
            .filter_map(move |point| met.insert(point.node).then_some(point.node))
            .take(self.nodes)
    }

    /// The first node on the walk; `None` on an empty ring.
    #[must_use]
    pub fn owner(&self, token: Token) -> Option<NodeId> {
        self.walk(token).next()
    }
}

/// 64 for the default weight of 100, in proportion for others, rounded to the nearest, never none.
fn virtual_nodes(weight: u32) -> u64 {
    ((64 * u64::from(weight) + 50) / 100).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(nodes: &[(u32, u32)]) -> Ring {
        let nodes: Vec<RingNode> =
            nodes.iter().map(|&(id, weight)| RingNode { id: NodeId(id), weight }).collect();
        Ring::new(&nodes)
    }

    #[test]
    fn points_are_in_proportion_to_the_weight_and_never_none() {
        for (weight, points) in [(0, 1), (1, 1), (2, 1), (3, 2), (50, 32), (100, 64), (1000, 640)] {
            assert_eq!(ring(&[(1, weight)]).points().len(), points, "weight {weight}");
        }
    }

    #[test]
    fn an_empty_ring_owns_nothing() {
        let ring = ring(&[]);
        assert_eq!(ring.owner(Token(7)), None);
        assert_eq!(ring.walk(Token(7)).count(), 0);
    }

    #[test]
    fn equal_tokens_follow_each_other_by_node_id() {
        // server29-57 and server1207-31 hash to the same token.
        let shared = Token(4_043_565_046);
        for nodes in [[(29, 100), (1207, 100)], [(1207, 100), (29, 100)]] {
            let ring = ring(&nodes);
            let there = ring.points().iter().filter(|point| point.token == shared);
            assert_eq!(there.map(|point| point.node.0).collect::<Vec<_>>(), [29, 1207]);
            assert_eq!(ring.owner(shared), Some(NodeId(29)));
        }
    }

    #[test]
    fn a_heavier_node_keeps_its_points() {
        let (light, heavy) = (ring(&[(3, 70)]), ring(&[(3, 100)]));
        assert!(light.points().iter().all(|point| heavy.points().contains(point)));
    }
}
