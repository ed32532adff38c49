//! The edges of the input: very few nodes, none that can take anything, tables that are wrong.

use annulus_ring::Settings;
use annulus_types::{GroupId, NodeId};

use super::{equal_nodes, fresh, group, members, node, seat};
use crate::planner::{NodeState, Plan, PlanGroup, PlanNode, Priority, Rule, Rules, StepKind, plan};

const RULES: Rules = Rules { replication: 3, lanes: 2 };

fn in_state(nodes: Vec<PlanNode>, state: NodeState) -> Vec<PlanNode> {
    nodes.into_iter().map(|node| PlanNode { state, ..node }).collect()
}

fn kinds(plan: &Plan) -> Vec<StepKind> {
    plan.steps.iter().map(|step| step.kind).collect()
}

/// A reseat; node 0 stands for nobody.
fn reseat(group: u64, from: u32, to: u32) -> StepKind {
    let node = |id: u32| (id > 0).then_some(NodeId(id));
    StepKind::Reseat { group: GroupId(group), from: node(from), to: node(to) }
}

#[test]
fn nothing_to_plan_for() {
    let plan_of_nothing = plan(&[], &[], &RULES);
    assert!(plan_of_nothing.is_empty() && plan_of_nothing.after.is_empty());
    let no_groups = plan(&equal_nodes(3), &[], &RULES);
    assert!(no_groups.is_empty() && no_groups.unmet.is_empty());
    assert_eq!(no_groups.shares.len(), 3);
}

#[test]
fn one_node_holds_everything() {
    let settings = Settings { shards: 8, lanes: 2, replication: 3 };
    let groups = fresh(&equal_nodes(1), &settings, |_, _| 10);
    let plan = plan(&equal_nodes(1), &groups, &RULES);
    assert_eq!((kinds(&plan), plan.unmet.len()), (vec![], 0));
    assert!(plan.after.iter().all(|group| group.members == [NodeId(1)]));
}

#[test]
fn a_replication_above_the_nodes_asks_for_all_of_them() {
    let groups = [group(1, &[1], 10), group(2, &[1, 2], 20)];
    let plan = plan(&equal_nodes(2), &groups, &Rules { replication: 5, lanes: 1 });
    let rehome = StepKind::Rehome { group: GroupId(2), home: NodeId(2), lane: 0 };
    let transfer = StepKind::Transfer { group: GroupId(2), to: NodeId(2) };
    assert_eq!(kinds(&plan), [reseat(1, 0, 2), rehome, transfer]);
    assert_eq!(plan.steps[0].rule, Rule::Undersized { members: 1, wanted: 2 });
    assert!(plan.unmet.is_empty());
}

#[test]
fn where_all_nodes_drain_nothing_moves() {
    for state in [NodeState::Draining, NodeState::Dead] {
        let settings = Settings { shards: 8, lanes: 2, replication: 2 };
        let groups = fresh(&equal_nodes(3), &settings, |_, _| 10);
        let plan = plan(&in_state(equal_nodes(3), state), &groups, &RULES);
        assert!(plan.is_empty() && plan.shares.is_empty());
        assert_eq!(plan.apply(&groups), groups);
        assert!(plan.unmet.iter().any(|line| line.starts_with("no node is up")));
        assert!(plan.after.iter().all(|group| group.members[0] == group.home));
    }
}

#[test]
fn a_group_without_members_is_told_and_left() {
    let empty = PlanGroup { members: Vec::new(), ..group(7, &[1], 10) };
    let plan = plan(&equal_nodes(3), std::slice::from_ref(&empty), &RULES);
    assert!(plan.is_empty());
    assert_eq!(plan.unmet, ["group 7 has no members: there is nothing to copy"]);
}

#[test]
fn a_node_that_is_not_listed_counts_as_dead() {
    let plan = plan(&equal_nodes(3), &[group(1, &[9, 1, 2], 10)], &RULES);
    assert_eq!(
        kinds(&plan),
        [
            StepKind::Rehome { group: GroupId(1), home: NodeId(1), lane: 0 },
            StepKind::Transfer { group: GroupId(1), to: NodeId(1) },
            reseat(1, 9, 3),
        ]
    );
    assert!(plan.steps.iter().all(|step| step.priority == Priority::Repair));
    assert!(plan.steps.iter().all(|step| step.rule == Rule::Dead { node: NodeId(9) }));
    let summary = plan.summary(&equal_nodes(3), &[group(1, &[9, 1, 2], 10)]);
    let gone = summary.iter().find(|line| line.node == NodeId(9)).unwrap();
    assert_eq!((gone.before.seats, gone.after.seats, gone.share), (1, 0, None));
}

#[test]
fn a_home_without_a_seat_gets_one_or_goes() {
    // Node 1 is the home by quota and has no seat: it takes one, and then leads.
    let homeless = PlanGroup { home: NodeId(1), ..group(1, &[2, 3, 4], 10) };
    let nodes = [node(1, 400, ""), node(2, 100, ""), node(3, 100, ""), node(4, 100, "")];
    let plan = plan(&nodes, std::slice::from_ref(&homeless), &RULES);
    let after = plan.apply(std::slice::from_ref(&homeless));
    assert_eq!(after[0].home, NodeId(1));
    let lead = StepKind::Transfer { group: GroupId(1), to: NodeId(1) };
    assert_eq!(kinds(&plan), [reseat(1, 4, 1), lead]);
    assert_eq!(plan.steps[1].rule, Rule::Leads { node: NodeId(1) });
}

#[test]
fn what_is_worth_least_is_dropped_first() {
    let mut nodes = equal_nodes(6);
    nodes[3].state = NodeState::Draining;
    nodes[4].state = NodeState::Dead;
    let mut wide = group(1, &[1, 2, 3, 4, 5, 6], 10);
    wide.members[5].damaged = true;
    let plan = plan(&nodes, &[wide], &RULES);
    assert_eq!(kinds(&plan), [reseat(1, 5, 0), reseat(1, 6, 0), reseat(1, 4, 0)]);
    let priorities: Vec<Priority> = plan.steps.iter().map(|step| step.priority).collect();
    assert_eq!(priorities, [Priority::Repair, Priority::Repair, Priority::Drain]);
    assert_eq!(plan.bytes(), 0);
}

#[test]
fn dead_seats_are_replaced_before_draining_ones_stay() {
    // Of three members one drains and one is dead, and one node is there to take a seat.
    let mut nodes = equal_nodes(4);
    nodes[2].state = NodeState::Draining;
    nodes[3].state = NodeState::Dead;
    let plan = plan(&nodes, &[group(1, &[1, 3, 4], 10)], &RULES);
    assert_eq!(kinds(&plan), [reseat(1, 4, 2)]);
    assert_eq!(plan.after[0].members, [NodeId(1), NodeId(2), NodeId(3)]);
    assert_eq!(plan.unmet.len(), 1);
    assert!(plan.unmet[0].starts_with("node 3 is draining and keeps 1 seats"));
}

#[test]
fn the_group_nearest_to_its_end_is_repaired_first() {
    let mut nodes = equal_nodes(7);
    nodes[5].state = NodeState::Dead;
    nodes[6].state = NodeState::Dead;
    let groups = [group(1, &[1, 2, 3, 4, 6], 1), group(2, &[1, 2, 3, 6, 7], 900)];
    let plan = plan(&nodes, &groups, &Rules { replication: 5, lanes: 1 });
    let copied: Vec<GroupId> =
        plan.steps.iter().filter(|step| step.bytes > 0).map(|step| step.kind.group()).collect();
    assert_eq!(copied, [GroupId(2), GroupId(2), GroupId(1)]);
}

#[test]
fn the_largest_numbers_do_not_overflow() {
    let groups: Vec<PlanGroup> = (1..=4).map(|id| group(id, &[1, 2, 3], u64::MAX)).collect();
    let nodes = [node(4, u32::MAX, ""), node(5, 0, "b"), node(6, 1, "c"), node(1, 100, "")];
    let plan = plan(&nodes, &groups, &Rules { replication: u32::MAX, lanes: u32::MAX });
    // Two of three members are gone: no majority, nothing to be done.
    assert!(plan.is_empty());
    assert_eq!(plan.unmet.iter().filter(|line| line.starts_with("group ")).count(), 4);
    let groups: Vec<PlanGroup> = (1..=4).map(|id| group(id, &[1], u64::MAX)).collect();
    let plan = super::super::plan(&nodes, &groups, &Rules { replication: 0, lanes: 0 });
    let after = plan.apply(&groups);
    assert!(after.iter().all(|group| group.members == [seat(group.home)]));
    assert!(plan.bytes() > u128::from(u64::MAX));
}

#[test]
fn a_node_joins_fifty() {
    let settings = Settings { shards: 256, lanes: 4, replication: 3 };
    let groups = fresh(&equal_nodes(50), &settings, |_, _| 1000);
    assert_eq!(groups.len(), 200);
    let plan = plan(&equal_nodes(51), &groups, &RULES);
    let joined = plan.shares[&NodeId(51)];
    let copies: Vec<StepKind> =
        plan.steps.iter().filter(|step| step.bytes > 0).map(|step| step.kind).collect();
    assert_eq!(copies.len() as u64, joined.seats);
    let to_the_new =
        |kind: &StepKind| matches!(kind, StepKind::Reseat { to: Some(NodeId(51)), .. });
    assert!(copies.iter().all(to_the_new));
    let after = plan.apply(&groups);
    let seats = after.iter().filter(|group| members(group).contains(&NodeId(51))).count();
    let homes = after.iter().filter(|group| group.home == NodeId(51)).count();
    assert_eq!((homes as u64, seats as u64), (joined.groups, joined.seats));
}

#[test]
fn rules_and_steps_read_as_sentences() {
    let few = Rule::Seats { node: NodeId(4), has: 3, quota: 7 };
    assert_eq!(few.to_string(), "node 4 has 3 of the 7 seats that its weight gives it");
    let many = Rule::Homes { node: NodeId(2), has: 6, quota: 4 };
    assert_eq!(
        many.to_string(),
        "node 2 is home of 6 groups, 2 more than the 4 that its weight gives it"
    );
    let texts = [
        (reseat(1, 2, 3), "reseat group 1 from 2 to 3"),
        (reseat(1, 2, 2), "reseat group 1 on node 2 in place"),
        (reseat(1, 0, 3), "reseat group 1 to 3"),
        (reseat(1, 2, 0), "reseat group 1 off 2"),
    ];
    for (kind, text) in texts {
        assert_eq!(kind.to_string(), text);
    }
}
