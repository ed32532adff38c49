//! Each command alone: what it changes, what it refuses, and the reason that it leaves.

mod moves;

use annulus_proto::v1::node_change::Change as Wanted;
use annulus_proto::v1::{MoveKind, MoveState};

use super::nodes::{Admission, admission};
use super::*;
use crate::state::from_plan;
use crate::testing::{node_of, plan_of, put};

const NOW: u64 = 5_000;

fn cluster(nodes: u32) -> v1::ManagerState {
    from_plan(&plan_of(nodes)).unwrap()
}

fn admit(id: u32, incarnation: u64, former_silent: bool) -> Command {
    Command::Admit(v1::AdmitNode {
        info: Some(node_of(id)),
        incarnation,
        former_silent,
        ..Default::default()
    })
}

fn silent(node: u32) -> Command {
    Command::Silent(v1::NodeSilent { node, incarnation: 7 })
}

fn change(node: u32, change: Wanted) -> Command {
    Command::ChangeNode(v1::NodeChange { node, change: Some(change) })
}

fn to(node: u32) -> Option<v1::MemberRoute> {
    Some(v1::MemberRoute { node, replica: 0, learner: false })
}

/// A reseat of the group's last member to node 4.
fn reseat(state: &v1::ManagerState, group: usize) -> v1::Move {
    let group = &state.groups[group];
    let from = group.members.iter().copied().rfind(|member| member.node != 4);
    v1::Move { group: group.id, from, to: to(4), rule: "a test".to_owned(), ..Default::default() }
}

fn add(state: &v1::ManagerState, moves: Vec<v1::Move>) -> Command {
    let table_version = state.table_version;
    Command::AddMoves(v1::AddMoves { plan: 9, table_version, moves, ..Default::default() })
}

fn advance(id: u64, expected: MoveState, next: MoveState) -> Command {
    let (expected, next) = (expected.into(), next.into());
    Command::Advance(v1::AdvanceMove { id, expected, next, ..Default::default() })
}

fn wrong(result: Result<Outcome, Refusal>) -> (&'static str, String) {
    match result {
        Err(Refusal::Wrong { field, message }) => (field, message),
        other => panic!("{other:?}"),
    }
}

fn is_stale(result: &Result<Outcome, Refusal>) -> bool {
    matches!(result, Err(Refusal::Stale(_)))
}

/// A cluster of four nodes with one group that has no seat on node 4, moved to the front.
fn movable() -> v1::ManagerState {
    let mut state = cluster(4);
    let at =
        state.groups.iter().position(|group| group.members.iter().all(|member| member.node != 4));
    state.groups.swap(0, at.unwrap());
    state
}

#[test]
fn the_first_bootstrap_makes_the_cluster_and_nothing_else_can() {
    let first = cluster(3);
    let make = v1::ManagerCommand { command: Some(Command::Bootstrap(first.clone())) };
    let (state, outcome) = apply(None, &make, NOW).unwrap();
    assert_eq!((state.table_version, outcome.decisions.len()), (1, 1));
    assert_eq!(apply(Some(&state), &make, NOW), Err(Refusal::Exists));
    let early = v1::ManagerCommand { command: Some(silent(1)) };
    assert_eq!(apply(None, &early, NOW), Err(Refusal::NotMade));
    let mut broken = first;
    broken.shards.pop();
    let make = v1::ManagerCommand { command: Some(Command::Bootstrap(broken)) };
    assert!(matches!(apply(None, &make, NOW), Err(Refusal::Unreadable(_))));
    assert!(matches!(
        apply(None, &v1::ManagerCommand::default(), NOW),
        Err(Refusal::Unreadable(_))
    ));
}

#[test]
fn a_new_node_joins_once_and_is_in_the_table() {
    let mut state = cluster(3);
    put(&mut state, admit(4, 7, false), NOW).unwrap();
    assert_eq!(state.table().nodes.len(), 4);
    assert_eq!(state.table_version, 2);
    let joined = state.clone();
    assert_eq!(put(&mut state, admit(4, 7, false), NOW).unwrap(), Outcome::default());
    assert_eq!(state, joined);
    let mut heavy = node_of(5);
    heavy.weight = 10_001;
    assert!(matches!(admission(&state, &heavy, 7, false), Admission::Refused { dead: false, .. }));
}

#[test]
fn the_table_counts_exactly_when_it_changes() {
    let mut state = cluster(3);
    put(&mut state, silent(2), NOW).unwrap();
    put(&mut state, change(1, Wanted::Draining(true)), NOW).unwrap();
    assert_eq!(state.table_version, 1);
    let mut moved = node_of(2);
    moved.peer_addr = "elsewhere:1".to_owned();
    // Zone and weight of a known node are not its own to change.
    moved.zone = "x".to_owned();
    moved.weight = 900;
    let admit = v1::AdmitNode {
        info: Some(moved),
        incarnation: 7,
        former_silent: false,
        ..Default::default()
    };
    put(&mut state, Command::Admit(admit), NOW).unwrap();
    assert_eq!(state.table_version, 2);
    let info = state.node(2).unwrap().info.clone().unwrap();
    assert_eq!(
        (info.peer_addr.as_str(), info.zone.as_str(), info.weight),
        ("elsewhere:1", "", 100)
    );
}

#[test]
fn one_life_of_a_folder_at_a_time() {
    let mut state = cluster(3);
    // While the admitted life is heard, another one is told who is where.
    match admission(&state, &node_of(2), 8, false) {
        Admission::Refused { reason, dead: false } => {
            assert_eq!(reason.matches("10.0.0.2:1").count(), 2, "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(is_stale(&put(&mut state, admit(2, 8, false), NOW)));
    put(&mut state, admit(2, 8, true), NOW).unwrap();
    assert_eq!(state.table_version, 2, "its peers learn of it with the next table");
    let node = state.node(2).unwrap();
    assert_eq!((node.incarnation, node.former.as_slice()), (8, &[7][..]));
    // Every seat of the node is lost, those of the manager's own group too.
    let seats = state.all_groups().filter(|group| group.members.iter().any(|m| m.node == 2));
    assert_eq!(node.lost.len(), seats.count());
    assert!(matches!(
        admission(&state, &node_of(2), 7, true),
        Admission::Refused { dead: true, .. }
    ));
    assert_eq!(admission(&state, &node_of(2), 8, false), Admission::Known);
}

#[test]
fn a_node_that_is_down_comes_back_in_its_life_or_in_another() {
    let mut state = cluster(3);
    put(&mut state, silent(2), NOW).unwrap();
    assert_eq!(state.node(2).unwrap().down_since_ms, NOW);
    assert!(is_stale(&put(&mut state, silent(2), NOW)));
    let mut wiped = state.clone();
    put(&mut state, admit(2, 7, false), NOW).unwrap();
    let node = state.node(2).unwrap();
    assert_eq!((node.state(), node.down_since_ms), (v1::NodeState::Up, 0));
    assert!(node.lost.is_empty());
    put(&mut wiped, admit(2, 8, false), NOW).unwrap();
    assert!(!wiped.node(2).unwrap().lost.is_empty());
}

#[test]
fn a_lost_replica_is_forgotten_with_its_seat() {
    let mut state = cluster(4);
    put(&mut state, admit(2, 8, true), NOW).unwrap();
    let lost = state.node(2).unwrap().lost.clone();
    let group =
        state.groups.iter().find(|group| group.members.iter().any(|m| m.node == 2)).unwrap();
    let members = group.members.iter().copied().filter(|member| member.node != 2).collect();
    let sighting = v1::GroupSighting { group: group.id, membership_index: 30, members, bytes: 0 };
    let gone = group.members.iter().find(|member| member.node == 2).unwrap().replica;
    put(&mut state, Command::Observe(v1::ObserveGroups { groups: vec![sighting] }), NOW).unwrap();
    assert_eq!(state.node(2).unwrap().lost.len(), lost.len() - 1);
    assert!(!state.is_lost(gone));
}

#[test]
fn a_node_is_removed_only_when_nothing_is_on_it_and_never_comes_back() {
    let mut state = cluster(3);
    let remove = || Wanted::Remove(v1::Plain {});
    let (field, message) = wrong(put(&mut state, change(2, remove()), NOW));
    assert_eq!(field, "node");
    assert!(message.contains("12 groups"), "{message}");
    put(&mut state, admit(4, 7, false), NOW).unwrap();
    let mut coming = state.clone();
    let step = v1::Move { group: coming.groups[0].id, to: to(4), ..Default::default() };
    let plan = add(&coming, vec![step]);
    put(&mut coming, plan, NOW).unwrap();
    assert!(wrong(put(&mut coming, change(4, remove()), NOW)).1.contains("cancel"));
    put(&mut state, change(4, remove()), NOW).unwrap();
    assert_eq!(state.table().nodes.len(), 3);
    for incarnation in [7, 8] {
        let judged = admission(&state, &node_of(4), incarnation, true);
        assert!(matches!(judged, Admission::Refused { dead: true, .. }), "{judged:?}");
    }
    assert!(wrong(put(&mut state, change(4, Wanted::Weight(5)), NOW)).1.contains("removed"));
    assert!(wrong(put(&mut state, change(9, Wanted::Weight(5)), NOW)).1.contains("no node"));
}

#[test]
fn limits_of_what_operators_set_are_named() {
    let mut state = cluster(3);
    for (wanted, field) in [
        (Wanted::Weight(0), "weight"),
        (Wanted::Weight(10_001), "weight"),
        (Wanted::Zone("a b".to_owned()), "zone"),
        (Wanted::Zone("z".repeat(65)), "zone"),
    ] {
        assert_eq!(wrong(put(&mut state, change(1, wanted), NOW)).0, field);
    }
    let short = v1::SettingsChange { down_after_ms: Some(999), ..Default::default() };
    assert_eq!(wrong(put(&mut state, Command::Settings(short), NOW)).0, "down_after_ms");
    let set = v1::SettingsChange {
        down_after_ms: Some(1_000),
        rebalance_manual: Some(true),
        paused: None,
    };
    let outcome = put(&mut state, Command::Settings(set), NOW).unwrap();
    assert_eq!(outcome.decisions.len(), 2);
    let settings = state.settings();
    assert_eq!((settings.down_after_ms, settings.rebalance_manual), (1_000, true));
    assert!(!settings.paused);
}

#[test]
fn only_a_newer_membership_counts() {
    let mut state = cluster(3);
    let group = state.groups[0].clone();
    let see = |membership_index, members: &[v1::MemberRoute], bytes| {
        let members = members.to_vec();
        let groups = vec![v1::GroupSighting { group: group.id, membership_index, members, bytes }];
        Command::Observe(v1::ObserveGroups { groups })
    };
    put(&mut state, see(4, &group.members, 10), NOW).unwrap();
    assert_eq!((state.table_version, state.groups[0].bytes), (2, 10));
    put(&mut state, see(3, &group.members[..1], 99), NOW).unwrap();
    put(&mut state, see(4, &group.members[..1], 20), NOW).unwrap();
    assert_eq!((state.groups[0].members.len(), state.groups[0].bytes), (3, 20));
    assert_eq!((state.table_version, state.history.len()), (2, 0));
    let outcome = put(&mut state, see(5, &group.members[..2], 20), NOW).unwrap();
    assert_eq!((state.groups[0].members.len(), outcome.decisions.len()), (2, 1));
    assert_eq!(state.table_version, 3);
}

#[test]
fn leadership_moves_on_demand_to_a_voter_that_is_up() {
    let mut state = cluster(4);
    let group = state.groups[0].clone();
    let (home, other) = (group.home, group.members[1].node);
    let stranger = (1..=4).find(|node| group.members.iter().all(|m| m.node != *node)).unwrap();
    let give = |node| Command::Transfer(v1::TransferTo { group: group.id, node });
    assert!(wrong(put(&mut state, give(stranger), NOW)).1.contains("no vote"));
    let id = put(&mut state, give(other), NOW).unwrap().id;
    assert_eq!((state.moves[0].id, state.groups[0].pinned), (id, other));
    put(&mut state, advance(id, MoveState::Planned, MoveState::Lead), NOW).unwrap();
    assert!(wrong(put(&mut state, give(home), NOW)).1.contains("under way"));
    put(&mut state, advance(id, MoveState::Lead, MoveState::Done), NOW).unwrap();
    put(&mut state, Command::BalanceLeaders(v1::Plain {}), NOW).unwrap();
    assert_eq!(state.groups[0].pinned, 0);
    put(&mut state, silent(other), NOW).unwrap();
    assert!(wrong(put(&mut state, give(other), NOW)).1.contains("not up"));
    let pause = v1::SettingsChange { paused: Some(true), ..Default::default() };
    put(&mut state, Command::Settings(pause), NOW).unwrap();
    assert!(wrong(put(&mut state, give(home), NOW)).1.contains("paused"));
}

#[test]
fn what_is_kept_of_the_past_is_bounded_and_what_goes_on_is_not_lost() {
    let mut state = movable();
    let plan = add(&state, vec![reseat(&state, 0)]);
    put(&mut state, plan, NOW).unwrap();
    let (kept, other) = (state.moves[0].id, state.groups[1].members[1].node);
    for round in 0..ENDED_MOST as u64 + 50 {
        let transfer = v1::TransferTo { group: state.groups[1].id, node: other };
        let id = put(&mut state, Command::Transfer(transfer), NOW + round).unwrap().id;
        put(&mut state, Command::Cancel(v1::CancelMove { id }), NOW + round).unwrap();
    }
    for round in 0..HISTORY_MOST as u64 {
        let note = v1::Decision { what: format!("note {round}"), ..Default::default() };
        put(&mut state, Command::Note(note), NOW).unwrap();
    }
    assert_eq!(state.moves.len(), ENDED_MOST + 1);
    assert_eq!(state.moves[0].id, kept);
    assert_eq!(state.history.len(), HISTORY_MOST);
    assert_eq!(state.history[0].what, "note 0");
}

#[test]
fn without_numbers_left_nothing_new_begins() {
    let mut state = movable();
    state.counter = u32::MAX;
    let plan = add(&state, vec![reseat(&state, 0)]);
    let before = state.clone();
    assert!(is_stale(&put(&mut state, plan, NOW)));
    assert_eq!(state, before);
}
