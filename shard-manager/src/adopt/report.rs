//! What an adoption takes and leaves, for the person who asked for it. Pure.
//!
//! Decides nothing: it compares a state that [`adopt`](super::adopt) made with what it was made from. So it
//! cannot fail, and what it does not mention is as the nodes told.

use std::collections::BTreeSet;

use annulus_proto::v1;

use super::Told;
use crate::state::{StateExt, id_of};

/// Differences of one kind that are told one by one; more are counted.
const LISTED_MOST: usize = 20;

/// A replica that has no seat in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stray {
    /// Its group.
    pub group: u64,
    /// The replica.
    pub replica: u64,
    /// The node that holds it.
    pub node: u32,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Replicas without a seat, by group. They are kept.
    pub strays: Vec<Stray>,
    /// What came from the export.
    pub taken: Vec<String>,
    /// Where the nodes knew otherwise.
    pub overruled: Vec<String>,
}

/// Compares a state with what it was made from.
#[must_use]
pub fn report(told: &[Told], from: Option<&v1::ManagerState>, state: &v1::ManagerState) -> Report {
    let mut report = Report { strays: strays(told, state), ..Report::default() };
    if let Some(from) = from {
        report.taken = taken(from, state);
        report.overruled = groups(from, state);
        report.overruled.extend(shards(from, state));
        report.overruled.extend(nodes(from, state));
    }
    report
}

fn strays(told: &[Told], state: &v1::ManagerState) -> Vec<Stray> {
    let mut strays = BTreeSet::new();
    for heartbeat in told.iter().map(|told| &told.heartbeat) {
        let node = heartbeat.info.as_ref().map_or(0, |info| info.id);
        for held in heartbeat.groups.iter().chain(&heartbeat.absent).filter(|it| it.group != 0) {
            let group = state.groups.iter().find(|group| group.id == held.group);
            let has_seat = group
                .is_some_and(|group| group.members.iter().any(|it| it.replica == held.replica));
            if !has_seat {
                strays.insert(Stray { group: held.group, replica: held.replica, node });
            }
        }
    }
    strays.into_iter().collect()
}

fn taken(from: &v1::ManagerState, state: &v1::ManagerState) -> Vec<String> {
    let v1::ClusterSettings { down_after_ms, rebalance_manual, paused } = state.settings();
    let rebalance = if rebalance_manual { "manual" } else { "auto" };
    let mut taken = vec![
        format!("settings: down_after_ms {down_after_ms}, rebalance {rebalance}, paused {paused}"),
        if state.replication == from.replication {
            format!("lanes {}, replication {}", from.lanes, from.replication)
        } else {
            format!("lanes {}", from.lanes)
        },
        format!("{} decisions on record", from.history.len()),
    ];
    let draining = state.nodes.iter().filter(|node| node.draining);
    taken.extend(draining.map(|node| format!("node {} is being drained", id_of(node))));
    taken
}

/// The first of them, and how many more there are.
fn bounded(mut all: Vec<String>, what: &str) -> Vec<String> {
    if all.len() > LISTED_MOST {
        let more = all.len() - LISTED_MOST;
        all.truncate(LISTED_MOST);
        all.push(format!("{more} more {what}"));
    }
    all
}

fn seats_of(group: &v1::GroupRecord) -> BTreeSet<(u32, u64)> {
    group.members.iter().map(|member| (member.node, member.replica)).collect()
}

fn in_words(group: &v1::GroupRecord) -> String {
    let members = group.members.iter().map(|it| format!("{} on node {}", it.replica, it.node));
    members.collect::<Vec<_>>().join(", ")
}

fn groups(from: &v1::ManagerState, state: &v1::ManagerState) -> Vec<String> {
    let mut differences = Vec::new();
    for group in &state.groups {
        let id = group.id;
        let Some(exported) = from.groups.iter().find(|it| it.id == id) else {
            differences.push(format!("group {id}: the export does not have it"));
            continue;
        };
        if seats_of(exported) != seats_of(group) {
            differences.push(format!(
                "group {id}: the export has replicas {}; the nodes have {}",
                in_words(exported),
                in_words(group)
            ));
        }
    }
    let gone = from.groups.iter().filter(|group| !state.groups.iter().any(|it| it.id == group.id));
    differences.extend(gone.map(|group| format!("group {}: no node knows it", group.id)));
    bounded(differences, "groups differ")
}

fn shards(from: &v1::ManagerState, state: &v1::ManagerState) -> Vec<String> {
    let pairs = state.shards.iter().zip(&from.shards);
    let moved = pairs.filter(|(now, exported)| now.group != exported.group);
    let told = moved.map(|(now, exported)| {
        let (id, group, former) = (now.id, now.group, exported.group);
        format!(
            "shard {id}: the export has it in group {former}; the nodes have it in group {group}"
        )
    });
    bounded(told.collect(), "shards differ")
}

fn nodes(from: &v1::ManagerState, state: &v1::ManagerState) -> Vec<String> {
    let mut differences = Vec::new();
    for node in &state.nodes {
        let id = id_of(node);
        let Some(exported) = from.node(id) else {
            differences.push(format!("node {id}: the export does not have it"));
            continue;
        };
        let is_removed = node.state() == v1::NodeState::Removed;
        if is_removed && exported.state() != v1::NodeState::Removed {
            let why = "a newer table does not have it, so that it was removed";
            differences.push(format!("node {id}: {why}"));
        }
        let (Some(now), Some(before)) = (&node.info, &exported.info) else { continue };
        if now.weight != before.weight {
            let (now, before) = (now.weight, before.weight);
            differences.push(format!("node {id}: weighs {now} hundredths, not {before}"));
        }
        if now.zone != before.zone {
            let (now, before) = (&now.zone, &before.zone);
            differences.push(format!("node {id}: is in the zone {now:?}, not in {before:?}"));
        }
    }
    bounded(differences, "nodes differ")
}
