//! The fewest bytes: no other table that obeys the rules could be reached for less, as long as no group
//! has to take a node in for its home's sake; then the plan may cost more, and never less.
//!
//! Of clusters small enough all such tables are listed, by an enumeration that knows nothing of
//! flows. Homes and seats are chosen together there, as they are not in the planner.

use std::collections::{BTreeMap, BTreeSet};

use annulus_types::NodeId;
use proptest::collection::vec;
use proptest::prelude::*;

use super::{group, members, node};
use crate::planner::choice::homes_are_members;
use crate::planner::cluster::Cluster;
use crate::planner::{Plan, PlanGroup, PlanNode, Rules, Share, plan};

const ZONES: [&str; 3] = ["", "a", "b"];

/// A table under construction: what each node has, and what the choices so far cost.
struct Search<'a> {
    groups: &'a [PlanGroup],
    /// The member lists that rules 1 and 2 allow.
    allowed: Vec<Vec<NodeId>>,
    shares: &'a BTreeMap<NodeId, Share>,
    least: Option<u128>,
}

impl Search<'_> {
    fn go(&mut self, at: usize, has: &BTreeMap<NodeId, Share>, bytes: u128) {
        let Some(group) = self.groups.get(at) else {
            if has == self.shares && self.least.is_none_or(|least| bytes < least) {
                self.least = Some(bytes);
            }
            return;
        };
        let present = members(group);
        for list in self.allowed.clone() {
            let new = list.iter().filter(|node| !present.contains(node)).count();
            let cost = bytes + u128::from(group.bytes) * new as u128;
            for home in &list {
                let mut has = has.clone();
                for member in &list {
                    has.entry(*member).or_default().seats += 1;
                }
                has.entry(*home).or_default().groups += 1;
                let fits = has.iter().all(|(node, share)| {
                    let most = self.shares[node];
                    share.groups <= most.groups && share.seats <= most.seats
                });
                if fits {
                    self.go(at + 1, &has, cost);
                }
            }
        }
    }
}

/// All lists of `size` nodes that use as many zones as they can.
fn allowed(nodes: &[PlanNode], size: usize) -> Vec<Vec<NodeId>> {
    let zones: BTreeSet<&str> = nodes.iter().map(|node| node.zone.as_str()).collect();
    (0u32..1 << nodes.len())
        .map(|mask| {
            let listed = nodes.iter().enumerate().filter(|(at, _)| (mask >> *at) & 1 == 1);
            listed.map(|(_, node)| node).collect::<Vec<&PlanNode>>()
        })
        .filter(|list| {
            let used: BTreeSet<&str> = list.iter().map(|node| node.zone.as_str()).collect();
            list.len() == size && used.len() == zones.len().min(size)
        })
        .map(|list| list.into_iter().map(|node| node.id).collect())
        .collect()
}

fn least(nodes: &[PlanNode], groups: &[PlanGroup], rules: &Rules, plan: &Plan) -> Option<u128> {
    let size = nodes.len().min(rules.replication as usize);
    let allowed = allowed(nodes, size);
    let mut search = Search { groups, allowed, shares: &plan.shares, least: None };
    let nothing: BTreeMap<NodeId, Share> =
        nodes.iter().map(|node| (node.id, Share::default())).collect();
    search.go(0, &nothing, 0);
    search.least
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_table_is_reached_for_fewer_bytes(
        nodes in vec((1u32..=400, 0usize..ZONES.len()), 1..=4),
        zones in 1usize..=ZONES.len(),
        groups in vec((1u32..16, any::<prop::sample::Index>(), 0u64..1000), 1..=3),
        replication in 1u32..=3,
    ) {
        let nodes: Vec<PlanNode> = (1u32..)
            .zip(nodes)
            .map(|(id, (weight, zone))| node(id, weight, ZONES[zone % zones]))
            .collect();
        let groups: Vec<PlanGroup> = (1u64..)
            .zip(groups)
            .map(|(id, (mask, home, bytes))| {
                let mut seated: Vec<u32> =
                    (1..=nodes.len() as u32).filter(|id| (mask >> (id - 1)) & 1 == 1).collect();
                if seated.is_empty() {
                    seated.push(1);
                }
                PlanGroup { home: home.get(&nodes).id, ..group(id, &seated, bytes) }
            })
            .collect();
        let rules = Rules { replication, lanes: 1 };
        let plan = plan(&nodes, &groups, &rules);
        let least = least(&nodes, &groups, &rules, &plan);
        if homes_are_members(&Cluster::new(&nodes, &groups, &rules)) {
            prop_assert_eq!(least, Some(plan.bytes()));
        } else {
            prop_assert!(least.is_some_and(|least| least <= plan.bytes()), "{least:?}");
        }
    }
}
