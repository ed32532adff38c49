//! The state that a birth makes, and states that are refused.

use std::collections::BTreeSet;

use super::*;
use crate::testing::plan_of;

#[test]
fn the_first_state_has_the_table_of_the_plan_to_the_last_bit() {
    for nodes in [1, 3, 5, 9] {
        let plan = plan_of(nodes);
        let state = from_plan(&plan).unwrap();
        assert_eq!(state.table(), table_of(&plan).unwrap());
        assert!(check(&state).is_ok());
        let founders = state.group(0).unwrap();
        assert_eq!(founders.members.len(), crate::voter_count(nodes as usize));
    }
}

#[test]
fn the_counter_is_ahead_of_every_id_that_was_given() {
    let state = from_plan(&plan_of(5)).unwrap();
    let mut ids = BTreeSet::new();
    for group in &state.groups {
        ids.extend(ids_of(group));
    }
    ids.extend(state.group(0).unwrap().members.iter().map(|member| member.replica));
    // 20 groups with three members each, and three founders.
    assert_eq!(ids.len(), 20 * 4 + 3);
    let highest = ids.iter().copied().map(counter_of).max().unwrap();
    assert_eq!(state.counter, highest);
    assert!(ids.iter().all(|id| state.allocated(*id)));
    assert!(!state.allocated(ids.last().unwrap() + 1));
    assert!(!state.allocated(7));
}

#[test]
fn removed_nodes_are_not_in_the_table() {
    let mut state = from_plan(&plan_of(4)).unwrap();
    state.nodes[3].set_state(v1::NodeState::Removed);
    let listed: Vec<u32> = state.table().nodes.iter().map(|node| node.id.0).collect();
    assert_eq!(listed, [1, 2, 3]);
    assert!(state.node(4).is_some());
}

#[test]
fn a_state_that_readers_could_not_rely_on_is_refused() {
    let good = from_plan(&plan_of(3)).unwrap();
    type Break = fn(&mut v1::ManagerState);
    let breaks: [(&str, Break); 6] = [
        ("cluster_id", |state| state.cluster_id = vec![1; 3].into()),
        ("incarnation", |state| state.incarnation = 1 << 21),
        ("shards", |state| state.shards.truncate(state.shards.len() - 1)),
        ("shards", |state| state.shards.swap(0, 1)),
        ("shards", |state| state.shards[3].group = 99),
        ("nodes", |state| state.nodes.swap(0, 1)),
    ];
    for (field, break_it) in breaks {
        let mut bad = good.clone();
        break_it(&mut bad);
        assert_eq!(check(&bad).unwrap_err().field, field);
    }
}
