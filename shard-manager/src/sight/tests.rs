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
    assert_eq!((sight.busy(), sight.last_transfer_ms(group)), (1, Some(150)));
    let report = Some(leads(&state, 5));
    sight.answered(errand, Ok(v1::CommandReply { report, ..Default::default() }), 200);
    assert!(matches!(sight.standing(&errand), Standing::Done(200, _)));
    assert_eq!(leader(&sight, &state, 300).unwrap().at_ms, 200);
    assert_eq!((sight.busy(), sight.last_transfer_ms(group + 1)), (0, None));
    // Another generation is another errand.
    let later = Tell { generation: 5, ..tell };
    assert!(matches!(sight.standing(&later.errand()), Standing::New));
}

/// Since when an errand fails, and when it did last.
fn failure(sight: &Sight, errand: &Errand) -> Option<(u64, u64)> {
    match sight.standing(errand) {
        Standing::Failed { since_ms, at_ms, .. } => Some((since_ms, at_ms)),
        _ => None,
    }
}

fn refused(reason: &str) -> Result<v1::CommandReply, Error> {
    Err(Error::refused(ErrorKind::NotReady { reason: reason.to_owned() }))
}

#[test]
fn failures_in_a_row_are_counted_from_the_first_until_it_is_done_or_goes_on() {
    for act in [Act::Seed, Act::Create] {
        let mut sight = Sight::new(0);
        let errand = Errand { group: 7, generation: 1, node: 1, act, about: 9, index: 0 };
        let mut ask = |at_ms: u64, result: Result<v1::CommandReply, Error>| {
            sight.sent(errand, at_ms);
            assert!(matches!(sight.standing(&errand), Standing::Busy));
            sight.answered(errand, result, at_ms + 10);
            failure(&sight, &errand)
        };
        assert_eq!(ask(1_000, refused("no room")), Some((1_010, 1_010)));
        assert_eq!(ask(2_000, refused("no room")), Some((1_010, 2_010)));
        assert_eq!(ask(3_000, Ok(v1::CommandReply::default())), None);
        assert_eq!(ask(4_000, refused("no room")), Some((4_010, 4_010)));
        // A copy that an earlier manager began goes on; anything else is to be over by then.
        let since_ms = if act == Act::Seed { 5_010 } else { 4_010 };
        assert_eq!(ask(5_000, refused("in progress: under way already")), Some((since_ms, 5_010)));
        let since_ms = if act == Act::Seed { 6_010 } else { 4_010 };
        assert_eq!(ask(6_000, refused("no room")), Some((since_ms, 6_010)));
    }
}

#[test]
fn a_learner_stands_still_from_the_last_entry_that_it_took_from_a_leader() {
    let state = cluster();
    let group = state.groups[0].id;
    let mut sight = Sight::new(0);
    let mut tell = |term: u64, matched: u64, voter: bool, at_ms: u64| {
        let learner = v1::SeatReport { replica: 99, node: 2, voter, matched };
        let report = v1::GroupReport { seats: vec![learner], ..leads(&state, term) };
        sight.hear(&heartbeat(1, vec![report]), at_ms);
        sight.stalled_ms(group, 99, at_ms)
    };
    assert_eq!(tell(5, 3, false, 1_000), 0);
    assert_eq!(tell(5, 3, false, 2_000), 1_000);
    assert_eq!(tell(5, 4, false, 3_000), 0);
    assert_eq!(tell(5, 4, false, 9_000), 6_000);
    // Another leader begins to count again.
    assert_eq!(tell(6, 0, false, 9_500), 0);
    assert_eq!(tell(6, 0, false, 9_600), 100);
    assert_eq!(tell(6, 0, true, 9_700), 0, "it votes");
}

#[test]
fn a_learner_of_an_idle_group_stands_still_from_the_first_entry_that_it_does_not_take() {
    let state = cluster();
    let group = state.groups[0].id;
    let mut sight = Sight::new(0);
    let mut tell = |last_index: u64, matched: u64, at_ms: u64| {
        let learner = v1::SeatReport { replica: 99, node: 2, voter: false, matched };
        let report = v1::GroupReport { last_index, seats: vec![learner], ..leads(&state, 5) };
        sight.hear(&heartbeat(1, vec![report]), at_ms);
        sight.stalled_ms(group, 99, at_ms)
    };
    assert_eq!(tell(10, 10, 1_000), 0);
    // Nothing is written for an hour.
    assert_eq!(tell(10, 10, 3_601_000), 0);
    // It has what there was a moment ago; that is not yet a lag.
    assert_eq!(tell(12, 10, 3_601_500), 0);
    assert_eq!(tell(12, 10, 3_602_000), 500);
    assert_eq!(tell(12, 11, 3_602_500), 0);
    assert_eq!(tell(12, 11, 3_603_500), 1_000);
}

#[test]
fn a_group_is_settled_as_long_as_a_leader_says_that_no_change_is_half_done() {
    let state = cluster();
    let group = state.groups[0].id;
    let mut sight = Sight::new(0);
    let mut tell = |membership_committed: bool, joint: bool, at_ms: u64| {
        let report = v1::GroupReport { membership_committed, joint, ..leads(&state, 5) };
        sight.hear(&heartbeat(1, vec![report]), at_ms);
        sight.unsettled_ms(group, at_ms)
    };
    assert_eq!(tell(false, false, 500), 500);
    assert_eq!(tell(true, false, 1_000), 0);
    assert_eq!(tell(true, true, 2_000), 1_000);
    assert_eq!(tell(false, false, 3_000), 2_000);
    assert_eq!(tell(true, false, 4_000), 0);
}

#[test]
fn a_node_obeys_this_manager_once_its_admitted_life_has_told_so() {
    let state = cluster();
    let own = state.incarnation;
    let mut sight = Sight::new(0);
    assert!(!sight.obeys(&state, 1));
    let mut tell = |era: u64, manager_incarnation: u32, incarnation: u64| {
        let told = v1::HeartbeatRequest {
            era,
            manager_incarnation,
            incarnation,
            ..heartbeat(1, Vec::new())
        };
        sight.hear(&told, 1_000);
        sight.obeys(&state, 1)
    };
    assert!(!tell(0, 0, 7) && !tell(1, 0, 7) && !tell(1, own - 1, 7));
    assert!(tell(1, own, 7) && tell(1, own + 1, 7) && tell(2, 1, 7));
    assert!(!tell(2, 1, 8), "another life");
}
