//! What is believed of nodes and groups, and for how long.

use super::*;
use crate::state::from_plan;
use crate::testing::{node_of, plan_of};

fn cluster() -> v1::ManagerState {
    from_plan(&plan_of(3)).unwrap()
}

fn leads(state: &v1::ManagerState, term: u64) -> v1::GroupReport {
    let group = &state.groups[0];
    v1::GroupReport {
        group: group.id,
        replica: group.members[0].replica,
        role: v1::Role::Leader.into(),
        term,
        gate_open: true,
        membership_index: 4,
        last_index: 10,
        ..Default::default()
    }
}

/// The leader of the first group.
fn leader<'a>(sight: &'a Sight, state: &v1::ManagerState, now_ms: u64) -> Option<&'a Seen> {
    sight.leaders(state, now_ms).remove(&state.groups[0].id)
}

fn heartbeat(node: u32, groups: Vec<v1::GroupReport>) -> v1::HeartbeatRequest {
    let info = Some(node_of(node));
    v1::HeartbeatRequest { info, incarnation: 7, groups, table_version: 3, ..Default::default() }
}

#[test]
fn nobody_is_silent_before_a_term_is_old_enough() {
    let state = cluster();
    let mut sight = Sight::new(5_000);
    assert_eq!(sight.silent_ms(&state.nodes[0], 5_900), 900);
    assert_eq!(sight.heard_ms(&state.nodes[0], 5_900), None);
    sight.hear(&heartbeat(1, Vec::new()), 6_000);
    assert_eq!(sight.silent_ms(&state.nodes[0], 6_500), 500);
    assert_eq!(sight.table_version(&state.nodes[0]), Some((3, 6_000)));
    // Another life than the admitted one is not heard.
    let mut other = heartbeat(1, Vec::new());
    other.incarnation = 8;
    sight.hear(&other, 8_000);
    assert_eq!(sight.silent_ms(&state.nodes[0], 8_000), 3_000);
}

#[test]
fn a_leader_is_believed_as_long_as_it_is_fresh_and_knows_the_membership() {
    let mut state = cluster();
    let mut sight = Sight::new(0);
    sight.hear(&heartbeat(1, vec![leads(&state, 5)]), 1_000);
    assert_eq!(leader(&sight, &state, 3_000).unwrap().node, 1);
    assert!(leader(&sight, &state, 3_001).is_none());
    state.groups[0].membership_index = 5;
    assert!(leader(&sight, &state, 1_000).is_none());
    state.groups[0].membership_index = 4;
    // The later term wins, whoever told it.
    let mut later = leads(&state, 6);
    later.replica = state.groups[0].members[1].replica;
    sight.hear(&heartbeat(2, vec![later]), 1_100);
    assert_eq!(leader(&sight, &state, 1_200).unwrap().node, 2);
    state.nodes[1].set_state(v1::NodeState::Down);
    assert_eq!(leader(&sight, &state, 1_200).unwrap().node, 1);
}

#[test]
fn an_earlier_index_is_of_the_same_term() {
    let state = cluster();
    let mut sight = Sight::new(0);
    let seen = |sight: &Sight| {
        let leader = leader(sight, &state, 2_000).unwrap();
        (leader.earlier_index, leader.leads_since_ms)
    };
    sight.hear(&heartbeat(1, vec![leads(&state, 5)]), 1_000);
    assert_eq!(seen(&sight), (0, Some(1_000)));
    let mut next = leads(&state, 5);
    next.last_index = 12;
    sight.hear(&heartbeat(1, vec![next]), 1_500);
    assert_eq!(seen(&sight), (10, Some(1_000)));
    sight.hear(&heartbeat(1, vec![leads(&state, 6)]), 2_000);
    assert_eq!(seen(&sight), (0, Some(2_000)));
}

#[test]
fn an_errand_is_busy_until_it_is_answered_and_its_answer_is_a_report() {
    let state = cluster();
    let group = state.groups[0].id;
    let mut sight = Sight::new(0);
    sight.hear(&heartbeat(1, Vec::new()), 100);
    let command = Command::Transfer(v1::TransferLeadership { to: 2 });
    let tell = Tell { node: 1, incarnation: 7, group, generation: 4, command };
    let errand = tell.errand();
    assert!(matches!(sight.standing(&errand), Standing::New));
    sight.sent(errand, 150);
    assert!(matches!(sight.standing(&errand), Standing::Busy));
    assert_eq!((sight.busy(), sight.last_transfer_ms(Some(group))), (1, Some(150)));
    let report = Some(leads(&state, 5));
    sight.answered(errand, Ok(v1::CommandReply { report, ..Default::default() }), 200);
    assert!(matches!(sight.standing(&errand), Standing::Done(200, _)));
    assert_eq!(leader(&sight, &state, 300).unwrap().at_ms, 200);
    assert_eq!((sight.busy(), sight.last_transfer_ms(Some(group + 1))), (0, None));
    // Another generation is another errand.
    let later = Tell { generation: 5, ..tell };
    assert!(matches!(sight.standing(&later.errand()), Standing::New));
}
