//! The planner's words and the manager's: the one place where they meet.
//!
//! The planner speaks of nodes, seats and steps; the manager keeps records and moves. Nothing is
//! decided here but who counts as dead (down for `down_after_ms` of the group's time) and which
//! weights and zones count: plans that start by themselves go by those that an operator has
//! applied, the plan that an operator is shown by those that he has set.
//!
//! A group that has a move which has not ended is left out: what that move leads to is not known yet.
//! The planner gets every group as it is, and the steps of these are taken away. That keeps what it
//! promises for the others, since the steps of one group lean on no other's.
//!
//! A plan is named by a hash of what it was made from and what it holds: the same name means that
//! the same would be planned now.

use std::collections::{BTreeMap, BTreeSet};

use annulus_proto::v1;
use annulus_types::{GroupId, NodeId};
use prost::Message as _;

use crate::planner::{
    NodeState, PlanGroup, PlanNode, Priority, Rules, Seat, Step, StepKind, plan as plan_steps,
};
use crate::state::{StateExt, id_of};

/// Which weights and zones a plan goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figures {
    /// Those that were applied.
    Applied,
    /// Those that are set.
    Wanted,
}

/// Whether what a node holds is to be made good elsewhere: it is removed, or has been down for
/// `down_after_ms`.
#[must_use]
pub fn is_dead(state: &v1::ManagerState, node: &v1::NodeRecord, now_ms: u64) -> bool {
    match node.state() {
        v1::NodeState::Up => false,
        v1::NodeState::Down => {
            now_ms.saturating_sub(node.down_since_ms) >= state.settings().down_after_ms
        }
        v1::NodeState::Removed => true,
    }
}

/// What the rules ask for now, of groups without a move. `damaged`: replicas that said they are,
/// beside those that are lost.
#[must_use]
pub fn plan(
    state: &v1::ManagerState,
    damaged: &BTreeSet<u64>,
    now_ms: u64,
    figures: Figures,
) -> v1::RebalancePlan {
    let nodes = nodes_of(state, now_ms, figures);
    let groups = groups_of(state, damaged);
    let rules = Rules { replication: state.replication, lanes: state.lanes };
    let mut planned = plan_steps(&nodes, &groups, &rules);
    let moving: BTreeSet<u64> = state.unfinished().map(|step| step.group).collect();
    planned.steps.retain(|step| !moving.contains(&step.kind.group().0));
    let left_out = state.groups.iter().filter(|group| moving.contains(&group.id)).count();
    if left_out > 0 {
        let all = groups.len();
        planned.unmet.push(format!(
            "left out: {left_out} of {all} groups, which have a move that has not ended"
        ));
    }
    let steps: Vec<v1::Move> =
        planned.steps.iter().map(|step| move_of(state, damaged, step)).collect();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for node in planned.summary(&nodes, &groups) {
        before.push(load_of(node.node, node.before));
        after.push(load_of(node.node, node.after));
    }
    let plan = name_of(state.table_version, &steps);
    v1::RebalancePlan { plan, steps, before, after, unmet: planned.unmet }
}

fn nodes_of(state: &v1::ManagerState, now_ms: u64, figures: Figures) -> Vec<PlanNode> {
    let kept = state.nodes.iter().filter(|node| node.state() != v1::NodeState::Removed);
    kept.filter_map(|node| {
        let info = node.info.as_ref().filter(|info| info.storage)?;
        let (weight, zone) = match figures {
            Figures::Applied => (node.planned_weight, &node.planned_zone),
            Figures::Wanted => (info.weight, &info.zone),
        };
        let state = if is_dead(state, node, now_ms) {
            NodeState::Dead
        } else if node.draining {
            NodeState::Draining
        } else {
            NodeState::Up
        };
        Some(PlanNode { id: NodeId(id_of(node)), weight, zone: zone.clone(), state })
    })
    .collect()
}

fn groups_of(state: &v1::ManagerState, damaged: &BTreeSet<u64>) -> Vec<PlanGroup> {
    let mut shards: BTreeMap<u64, u32> = BTreeMap::new();
    for shard in &state.shards {
        *shards.entry(shard.group).or_default() += 1;
    }
    let seats = |group: &v1::GroupRecord| {
        let voters = group.members.iter().filter(|member| !member.learner);
        let seat = |member: &v1::MemberRoute| Seat {
            node: NodeId(member.node),
            damaged: is_damaged(state, damaged, member.replica),
        };
        voters.map(seat).collect()
    };
    state
        .groups
        .iter()
        .map(|group| PlanGroup {
            id: GroupId(group.id),
            home: NodeId(group.home),
            lane: group.lane,
            members: seats(group),
            bytes: group.bytes,
            shards: shards.get(&group.id).copied().unwrap_or(0),
        })
        .collect()
}

fn is_damaged(state: &v1::ManagerState, damaged: &BTreeSet<u64>, replica: u64) -> bool {
    damaged.contains(&replica) || state.is_lost(replica)
}

fn load_of(node: NodeId, load: crate::planner::Load) -> v1::NodeLoad {
    let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    v1::NodeLoad {
        node: node.0,
        homes: count(load.groups),
        seats: count(load.seats),
        copies: count(load.copies),
    }
}

fn move_of(state: &v1::ManagerState, damaged: &BTreeSet<u64>, step: &Step) -> v1::Move {
    let group = step.kind.group();
    let to_node = |node: NodeId| v1::MemberRoute { node: node.0, replica: 0, learner: false };
    let (kind, from, to, lane) = match step.kind {
        StepKind::Reseat { from, to, .. } => {
            let from = from.map(|node| seat_on(state, damaged, group, node));
            (v1::MoveKind::Reseat, from, to.map(to_node), 0)
        }
        StepKind::Transfer { to, .. } => (v1::MoveKind::Transfer, None, Some(to_node(to)), 0),
        StepKind::Rehome { home, lane, .. } => {
            (v1::MoveKind::Rehome, None, Some(to_node(home)), lane)
        }
    };
    let priority = match step.priority {
        Priority::Repair => 0,
        Priority::Drain => 1,
        Priority::Rebalance => 2,
    };
    v1::Move {
        kind: kind.into(),
        group: group.0,
        from,
        to,
        rule: step.rule.to_string(),
        bytes: step.bytes,
        lane,
        priority,
        ..Default::default()
    }
}

/// The replica that leaves when `node` does: the damaged one, should the node have two.
fn seat_on(
    state: &v1::ManagerState,
    damaged: &BTreeSet<u64>,
    group: GroupId,
    node: NodeId,
) -> v1::MemberRoute {
    let members = state.group(group.0).map(|group| group.members.as_slice()).unwrap_or_default();
    let here = members.iter().filter(|member| member.node == node.0 && !member.learner);
    here.copied()
        .min_by_key(|member| (!is_damaged(state, damaged, member.replica), member.replica))
        .unwrap_or(v1::MemberRoute { node: node.0, replica: 0, learner: false })
}

/// FNV-1a, 32 bits: short enough to be typed.
fn name_of(table_version: u64, steps: &[v1::Move]) -> u64 {
    let mut hash: u32 = 0x811c_9dc5;
    let mut eat = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    };
    eat(&table_version.to_be_bytes());
    for step in steps {
        eat(&step.encode_to_vec());
    }
    u64::from(hash.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::from_plan;
    use crate::testing::plan_of;

    fn shown(state: &v1::ManagerState) -> v1::RebalancePlan {
        plan(state, &BTreeSet::new(), 0, Figures::Wanted)
    }

    fn heavier(weight: u32) -> v1::ManagerState {
        let mut state = from_plan(&plan_of(3)).unwrap();
        let mut fourth = state.nodes[2].clone();
        let info = fourth.info.as_mut().unwrap();
        info.id = 4;
        info.weight = weight;
        state.nodes.push(fourth);
        state
    }

    #[test]
    fn a_plan_is_named_by_what_it_was_made_from_and_what_it_holds() {
        let state = heavier(100);
        let first = shown(&state);
        assert!(!first.steps.is_empty());
        assert_eq!(shown(&state), first);
        let newer = v1::ManagerState { table_version: 2, ..heavier(100) };
        assert_ne!(shown(&newer).plan, first.plan);
        assert_ne!(shown(&heavier(300)).plan, first.plan);
    }

    #[test]
    fn steps_name_the_replicas_that_leave_and_loads_add_up() {
        let state = heavier(100);
        let shown = shown(&state);
        for step in &shown.steps {
            let group = state.group(step.group).unwrap();
            if let Some(from) = step.from {
                assert!(group.members.contains(&from), "{step:?}");
            }
            assert!(!step.rule.is_empty());
        }
        let seats = |loads: &[v1::NodeLoad]| loads.iter().map(|load| load.seats).sum::<u32>();
        assert_eq!((seats(&shown.before), seats(&shown.after)), (36, 36));
        assert_eq!(shown.after.iter().map(|load| load.seats).max(), Some(9));
    }

    #[test]
    fn groups_that_have_a_move_are_left_out_and_the_others_are_planned_as_before() {
        let mut state = heavier(100);
        let all = shown(&state);
        assert!(all.unmet.is_empty() && all.steps.len() > 1);
        let first = all.steps[0].clone();
        state.moves.push(v1::Move { id: 99, ..first.clone() });
        let rest = shown(&state);
        let others = all.steps.iter().filter(|step| step.group != first.group).cloned();
        assert_eq!(rest.steps, others.collect::<Vec<_>>());
        assert_ne!(rest.plan, all.plan);
        assert!(rest.unmet[0].starts_with("left out: 1 of 12 groups"), "{:?}", rest.unmet);
        // Seats are counted without what is left out.
        let seats = |loads: &[v1::NodeLoad], node: u32| {
            loads.iter().find(|load| load.node == node).map_or(0, |load| load.seats)
        };
        assert!(seats(&rest.after, 4) <= seats(&all.after, 4));
        state.moves[0].set_state(v1::MoveState::Done);
        assert_eq!(shown(&state).steps, all.steps);
    }

    #[test]
    fn nodes_without_storage_and_removed_ones_hold_nothing() {
        let mut state = heavier(100);
        state.nodes[3].info.as_mut().unwrap().storage = false;
        assert!(shown(&state).steps.is_empty());
        let mut state = heavier(100);
        state.nodes[3].set_state(v1::NodeState::Removed);
        assert!(shown(&state).steps.is_empty());
    }
}
