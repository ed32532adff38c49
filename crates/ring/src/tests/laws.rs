//! Laws that hold for every cluster, tried on many.

use std::collections::{BTreeMap, BTreeSet};

use annulus_types::{NodeId, Token};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::{
    Candidate, Placement, PlacementNode, Ring, RingNode, Settings, place, quota, seat_quota,
};

const ZONES: [&str; 4] = ["", "a", "b", "c"];

/// Up to nine nodes of any weight in up to four zones.
fn any_nodes() -> impl Strategy<Value = Vec<PlacementNode>> {
    btree_map(1u32..500, (1u32..=400, 0usize..ZONES.len()), 1..=9).prop_map(|nodes| {
        nodes
            .into_iter()
            .map(|(id, (weight, zone))| PlacementNode {
                id: NodeId(id),
                weight,
                zone: ZONES[zone].to_owned(),
            })
            .collect::<Vec<_>>()
    })
}

/// Up to nine nodes of one weight, in no zone.
fn equal_nodes() -> impl Strategy<Value = Vec<PlacementNode>> {
    any_nodes().prop_map(|mut nodes| {
        for node in &mut nodes {
            node.weight = 100;
            node.zone.clear();
        }
        nodes
    })
}

fn any_settings() -> impl Strategy<Value = Settings> {
    (0u32..=7, 1u32..=6, 1u32..=5).prop_map(|(doublings, lanes, replication)| Settings {
        shards: 1 << doublings,
        lanes,
        replication,
    })
}

fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    vec((0u64..6, 0u64..5, 0u64..8), 0..8).prop_map(|candidates| {
        (1u64..)
            .zip(candidates)
            .map(|(id, (weight, low, high))| Candidate { id, weight, low, high })
            .collect::<Vec<_>>()
    })
}

fn ring_of(nodes: &[PlacementNode]) -> Ring {
    let nodes: Vec<RingNode> =
        nodes.iter().map(|node| RingNode { id: node.id, weight: node.weight }).collect();
    Ring::new(&nodes)
}

/// The definition, word for word: look at everybody before every unit.
fn quota_by_definition(total: u64, candidates: &[Candidate]) -> Vec<u64> {
    let mut shares: Vec<u64> = candidates.iter().map(|candidate| candidate.low).collect();
    while shares.iter().sum::<u64>() < total {
        let mut next: Option<usize> = None;
        for (at, candidate) in candidates.iter().enumerate() {
            if candidate.weight == 0 || shares[at] >= candidate.high {
                continue;
            }
            let better = next.is_none_or(|other| {
                let mine = (2 * shares[at] + 1) * candidates[other].weight;
                let others = (2 * shares[other] + 1) * candidate.weight;
                (mine, candidate.id) < (others, candidates[other].id)
            });
            if better {
                next = Some(at);
            }
        }
        let Some(at) = next else { break };
        shares[at] += 1;
    }
    shares
}

/// How many groups have their home on each node, how many seats it has, and how many copies.
fn counts(placement: &Placement) -> [BTreeMap<NodeId, u64>; 3] {
    let mut at_home: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut seats: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut copies: BTreeMap<NodeId, u64> = BTreeMap::new();
    for group in &placement.groups {
        *at_home.entry(group.home).or_default() += 1;
        for member in &group.members {
            *seats.entry(*member).or_default() += 1;
            *copies.entry(*member).or_default() += group.shards.len() as u64;
        }
    }
    [at_home, seats, copies]
}

/// Whether every node's count is less than `margin` away from the mean.
fn even(counted: &BTreeMap<NodeId, u64>, nodes: &[PlacementNode], margin: u64) -> bool {
    let (total, many) = (counted.values().sum::<u64>(), nodes.len() as u64);
    nodes.iter().all(|node| {
        let count = counted.get(&node.id).copied().unwrap_or(0);
        (count * many).abs_diff(total) < margin * many
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn quota_is_its_definition(total in 0u64..60, candidates in any_candidates()) {
        prop_assert_eq!(quota(total, &candidates), quota_by_definition(total, &candidates));
    }

    #[test]
    fn one_more_unit_takes_nothing_from_anybody(
        total in 0u64..60,
        candidates in any_candidates(),
    ) {
        let (before, after) = (quota(total, &candidates), quota(total + 1, &candidates));
        prop_assert!(before.iter().zip(&after).all(|(before, after)| before <= after));
        prop_assert!(after.iter().sum::<u64>() <= before.iter().sum::<u64>() + 1);
    }

    #[test]
    fn a_walk_is_a_linear_scan(
        nodes in btree_map(1u32..500, 1u32..=60, 1..=8),
        anywhere in vec(any::<u32>(), 16),
        near in vec(any::<prop::sample::Index>(), 16),
    ) {
        let nodes: Vec<RingNode> =
            nodes.into_iter().map(|(id, weight)| RingNode { id: NodeId(id), weight }).collect();
        let ring = Ring::new(&nodes);
        let mut tokens = vec![0, u32::MAX];
        tokens.extend(anywhere);
        // On, just before and just behind points, the outermost among them.
        let (first, last) = (ring.points()[0], ring.points()[ring.points().len() - 1]);
        for point in near.iter().map(|at| *at.get(ring.points())).chain([first, last]) {
            let token = point.token.0;
            tokens.extend([token, token.wrapping_sub(1), token.wrapping_add(1)]);
        }
        for token in tokens {
            // The way to a node is the way to its nearest point, forwards and around the end.
            let mut nearest: BTreeMap<NodeId, u32> = BTreeMap::new();
            for point in ring.points() {
                let way = point.token.0.wrapping_sub(token);
                let least = nearest.entry(point.node).or_insert(way);
                *least = way.min(*least);
            }
            let mut scanned: Vec<(u32, NodeId)> =
                nearest.into_iter().map(|(node, way)| (way, node)).collect();
            scanned.sort_unstable();
            let scanned: Vec<NodeId> = scanned.into_iter().map(|(_, node)| node).collect();
            prop_assert_eq!(ring.owner(Token(token)), scanned.first().copied());
            prop_assert_eq!(ring.walk(Token(token)).collect::<Vec<_>>(), scanned);
        }
    }

    #[test]
    fn a_node_that_leaves_changes_only_its_own_place_in_a_walk(
        nodes in any_nodes(),
        token in any::<u32>(),
    ) {
        let (all, others) = (ring_of(&nodes), ring_of(&nodes[1..]));
        let before = all.walk(Token(token)).filter(|node| *node != nodes[0].id);
        let after = others.walk(Token(token));
        prop_assert_eq!(before.collect::<Vec<_>>(), after.collect::<Vec<_>>());
    }

    #[test]
    fn every_shard_is_in_one_group_of_its_home(nodes in any_nodes(), settings in any_settings()) {
        let placement = place(&nodes, &settings).unwrap();
        let groups = u64::from(settings.lanes * nodes.len() as u32).min(settings.shards.into());
        prop_assert_eq!(placement.homes.len(), settings.shards as usize);
        prop_assert_eq!(placement.groups.len() as u64, groups);
        let mut hosted = BTreeMap::new();
        for group in &placement.groups {
            prop_assert!(!group.shards.is_empty());
            prop_assert!(group.shards.is_sorted());
            for shard in &group.shards {
                prop_assert!(hosted.insert(*shard, group.home).is_none(), "shard {shard}");
            }
        }
        prop_assert_eq!(hosted.into_values().collect::<Vec<_>>(), placement.homes);
    }

    #[test]
    fn groups_stand_by_lane_and_then_by_node(nodes in any_nodes(), settings in any_settings()) {
        let placement = place(&nodes, &settings).unwrap();
        let order: Vec<(u32, NodeId)> =
            placement.groups.iter().map(|group| (group.lane, group.home)).collect();
        prop_assert!(order.is_sorted());
        for (home, groups) in &counts(&placement)[0] {
            let lanes = order.iter().filter(|(_, node)| node == home).map(|(lane, _)| *lane);
            prop_assert_eq!(lanes.collect::<Vec<_>>(), (0..*groups as u32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn members_are_different_nodes_home_first(nodes in any_nodes(), settings in any_settings()) {
        for group in place(&nodes, &settings).unwrap().groups {
            let distinct: BTreeSet<NodeId> = group.members.iter().copied().collect();
            prop_assert_eq!(group.members[0], group.home);
            prop_assert_eq!(distinct.len(), group.members.len());
            prop_assert_eq!(distinct.len(), nodes.len().min(settings.replication as usize));
        }
    }

    #[test]
    fn a_group_spreads_over_as_many_zones_as_it_can(
        nodes in any_nodes(),
        settings in any_settings(),
    ) {
        let zone_of: BTreeMap<NodeId, &str> =
            nodes.iter().map(|node| (node.id, node.zone.as_str())).collect();
        let zones: BTreeSet<&str> = zone_of.values().copied().collect();
        for group in place(&nodes, &settings).unwrap().groups {
            let used: BTreeSet<&str> = group.members.iter().map(|node| zone_of[node]).collect();
            prop_assert_eq!(used.len(), zones.len().min(group.members.len()));
        }
    }

    #[test]
    fn equal_nodes_differ_by_at_most_one(nodes in equal_nodes(), settings in any_settings()) {
        let placement = place(&nodes, &settings).unwrap();
        let [at_home, seats, _] = counts(&placement);
        let mut homes: BTreeMap<NodeId, u64> = BTreeMap::new();
        for home in &placement.homes {
            *homes.entry(*home).or_default() += 1;
        }
        prop_assert!(even(&homes, &nodes, 1), "homes {homes:?}");
        prop_assert!(even(&at_home, &nodes, 1), "groups {at_home:?}");
        prop_assert!(even(&seats, &nodes, 1), "seats {seats:?}");
    }

    #[test]
    fn up_to_three_replicas_fill_the_seat_quotas_exactly(
        nodes in any_nodes(),
        settings in any_settings(),
    ) {
        let settings = Settings { replication: settings.replication.min(3), ..settings };
        let placement = place(&nodes, &settings).unwrap();
        let seats: u64 = placement.groups.iter().map(|group| group.members.len() as u64).sum();
        let meant = seat_quota(&nodes, &counts(&placement)[0], settings.replication);
        prop_assert_eq!(meant.zones.values().sum::<u64>(), seats);
        prop_assert_eq!(meant.nodes.values().sum::<u64>(), seats);
    }

    #[test]
    fn the_order_of_the_nodes_does_not_matter(
        (listed, shuffled) in any_nodes()
            .prop_flat_map(|nodes| (Just(nodes.clone()), Just(nodes).prop_shuffle())),
        settings in any_settings(),
    ) {
        prop_assert_eq!(place(&listed, &settings).unwrap(), place(&shuffled, &settings).unwrap());
    }
}

/// What the architecture promises for the default settings, over the sizes where shards per node
/// change most, and the largest.
#[test]
fn copies_of_equal_nodes_are_within_two_of_the_mean() {
    for many in (1..=24).chain([31, 32, 33, 43, 63, 64, 65, 100, 127, 128, 129, 150]) {
        let nodes: Vec<PlacementNode> = (1..=many)
            .map(|id| PlacementNode { id: NodeId(id), weight: 100, zone: String::new() })
            .collect();
        let placement = place(&nodes, &Settings::default()).unwrap();
        let [_, seats, copies] = counts(&placement);
        assert!(even(&seats, &nodes, 1), "{many} nodes: seats {seats:?}");
        assert!(even(&copies, &nodes, 2), "{many} nodes: copies {copies:?}");
    }
}
