//! What a plan leads to: the next table, what it leaves unmet, and the load of every node.
//!
//! Nothing is decided here.

use std::collections::{BTreeMap, BTreeSet};

use annulus_types::NodeId;

use super::choice::Choice;
use super::cluster::{Cluster, GroupView};
use super::steps::Drafts;
use super::{NodeState, Plan, PlanGroup, PlanNode, PlannedGroup, Seat, Share, Step, StepKind};

/// Puts a plan together.
pub(super) fn tell(
    cluster: &Cluster<'_>,
    choices: &[Option<Choice>],
    Drafts { steps, stays }: Drafts,
) -> Plan {
    let after: Vec<PlannedGroup> = cluster
        .groups
        .iter()
        .zip(choices)
        .zip(&stays)
        .map(|((view, choice), stays)| match choice {
            Some(choice) => {
                let members = choice.members.union(stays).copied();
                planned(view, choice.home, choice.lane, members)
            }
            None => {
                let PlanGroup { home, lane, .. } = view.group;
                planned(view, *home, *lane, view.seats.keys().copied())
            }
        })
        .collect();
    let shares: BTreeMap<NodeId, Share> = cluster
        .up
        .iter()
        .zip(&cluster.quotas.homes)
        .zip(&cluster.quotas.seats)
        .map(|((node, groups), seats)| (node.id, Share { groups: *groups, seats: *seats }))
        .collect();
    let mut unmet = lost(cluster);
    unmet.extend(stuck(cluster, &stays));
    unmet.extend(beyond(cluster, &after, &shares));
    Plan { steps, after, unmet, shares }
}

fn planned(
    view: &GroupView<'_>,
    home: NodeId,
    lane: u32,
    members: impl Iterator<Item = NodeId>,
) -> PlannedGroup {
    let mut members: Vec<NodeId> = members.collect();
    members.sort_unstable_by_key(|node| (*node != home, *node));
    PlannedGroup { id: view.group.id, home, lane, members }
}

/// The groups that can agree on nothing.
fn lost(cluster: &Cluster<'_>) -> Vec<String> {
    let told = |view: &GroupView<'_>| {
        let (id, live, members) = (view.group.id, view.live, view.seats.len());
        if members == 0 {
            return format!("group {id} has no members: there is nothing to copy");
        }
        let gone: Vec<String> = view
            .seats
            .iter()
            .filter(|(node, damaged)| **damaged || cluster.state(**node) == NodeState::Dead)
            .map(|(node, _)| node.to_string())
            .collect();
        format!(
            "group {id} lives on {live} of {members} members, no majority: it stays as it is until \
             its replicas on nodes {} are back, or it is recovered by force",
            gone.join(", ")
        )
    };
    cluster.groups.iter().filter(|view| view.is_lost()).map(told).collect()
}

/// The nodes that should be empty and cannot be.
fn stuck(cluster: &Cluster<'_>, stays: &[BTreeSet<NodeId>]) -> Vec<String> {
    if cluster.up.is_empty() {
        return vec!["no node is up: everything stays where it is".to_owned()];
    }
    let mut seats: BTreeMap<NodeId, u64> = BTreeMap::new();
    for node in stays.iter().flatten() {
        *seats.entry(*node).or_default() += 1;
    }
    let (up, replication) = (cluster.up.len(), cluster.replication);
    seats
        .into_iter()
        .map(|(node, seats)| {
            let state = match cluster.state(node) {
                NodeState::Draining => "draining",
                _ => "dead",
            };
            format!(
                "node {node} is {state} and keeps {seats} seats: replication asks for {replication} \
                 members, and of {up} nodes that are up none is left to take one"
            )
        })
        .collect()
}

/// The nodes that end with more than their share.
fn beyond(
    cluster: &Cluster<'_>,
    after: &[PlannedGroup],
    shares: &BTreeMap<NodeId, Share>,
) -> Vec<String> {
    let why = if cluster.nothing_is_lost() {
        "one replica per node and the use of the zones come first"
    } else {
        "groups without a majority keep what they have"
    };
    let mut told = Vec::new();
    for (node, share) in shares {
        let seats = after.iter().filter(|group| group.members.contains(node)).count() as u64;
        let groups = after.iter().filter(|group| group.home == *node).count() as u64;
        for (unit, has, quota) in
            [("groups at home", groups, share.groups), ("seats", seats, share.seats)]
        {
            if has > quota {
                told.push(format!(
                    "node {node} ends with {has} {unit} where its weight gives it {quota}: {why}"
                ));
            }
        }
    }
    told
}

impl Step {
    /// Does the step to a table.
    pub fn apply(&self, groups: &mut [PlanGroup]) {
        let Some(group) = groups.iter_mut().find(|group| group.id == self.kind.group()) else {
            return;
        };
        match self.kind {
            StepKind::Reseat { from, to, .. } => {
                // A fresh replica stands where the old one stood, also on the same node.
                group.members.retain(|seat| Some(seat.node) != from && Some(seat.node) != to);
                group.members.extend(to.map(|node| Seat { node, damaged: false }));
            }
            StepKind::Transfer { .. } => {}
            StepKind::Rehome { home, lane, .. } => {
                group.home = home;
                group.lane = lane;
            }
        }
    }
}

/// What a node carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Groups at home.
    pub groups: u64,
    /// Seats, homes included.
    pub seats: u64,
    /// Copies of shards.
    pub copies: u64,
}

/// A node before and after a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSummary {
    /// The node.
    pub node: NodeId,
    /// As it is.
    pub before: Load,
    /// When all steps are done.
    pub after: Load,
    /// What it gets by quota; `None` unless it is up.
    pub share: Option<Share>,
}

impl Plan {
    /// The table when all steps are done to `groups`, in their order.
    #[must_use]
    pub fn apply(&self, groups: &[PlanGroup]) -> Vec<PlanGroup> {
        let mut after = groups.to_vec();
        for step in &self.steps {
            step.apply(&mut after);
        }
        after
    }

    /// The load of every node, by id: the listed ones, and others that a group names.
    #[must_use]
    pub fn summary(&self, nodes: &[PlanNode], groups: &[PlanGroup]) -> Vec<NodeSummary> {
        let before = loads(groups);
        let after = loads(&self.apply(groups));
        let ids: BTreeSet<NodeId> = nodes
            .iter()
            .map(|node| node.id)
            .chain(before.keys().copied())
            .chain(after.keys().copied())
            .collect();
        ids.into_iter()
            .map(|node| NodeSummary {
                node,
                before: before.get(&node).copied().unwrap_or_default(),
                after: after.get(&node).copied().unwrap_or_default(),
                share: self.shares.get(&node).copied(),
            })
            .collect()
    }
}

fn loads(groups: &[PlanGroup]) -> BTreeMap<NodeId, Load> {
    let mut loads: BTreeMap<NodeId, Load> = BTreeMap::new();
    for group in groups {
        loads.entry(group.home).or_default().groups += 1;
        for seat in &group.members {
            let load = loads.entry(seat.node).or_default();
            load.seats += 1;
            load.copies += u64::from(group.shards);
        }
    }
    loads
}
