//! When plans are made, and when they wait.

use annulus_proto::v1::node_change::Change as Wanted;

use super::*;
use crate::backoff::AGAIN_MS;
use crate::state::from_plan;
use crate::testing::{node_of, plan_of, put};

const NOW: u64 = 10_000;

fn cluster(nodes: u32) -> v1::ManagerState {
    from_plan(&plan_of(nodes)).unwrap()
}

fn join(state: &mut v1::ManagerState, id: u32) {
    let admit = v1::AdmitNode {
        info: Some(node_of(id)),
        incarnation: 7,
        former_silent: false,
        ..Default::default()
    };
    put(state, Change::Admit(admit), NOW).unwrap();
}

fn set(state: &mut v1::ManagerState, settings: v1::SettingsChange) {
    put(state, Change::Settings(settings), NOW).unwrap();
}

fn wanted(state: &mut v1::ManagerState, node: u32, change: Wanted) {
    let change = v1::NodeChange { node, change: Some(change) };
    put(state, Change::ChangeNode(change), NOW).unwrap();
}

/// The moves of the one plan among the proposals.
fn moves(proposals: &[v1::ManagerCommand]) -> &[v1::Move] {
    match proposals {
        [] => &[],
        [v1::ManagerCommand { command: Some(Change::AddMoves(plan)) }] => &plan.moves,
        other => panic!("{other:?}"),
    }
}

/// Puts the proposals into the state.
fn take(state: &mut v1::ManagerState, proposals: Vec<v1::ManagerCommand>, now_ms: u64) {
    for proposal in proposals {
        put(state, proposal.command.unwrap(), now_ms).unwrap();
    }
}

fn none() -> BTreeSet<u64> {
    BTreeSet::new()
}

#[test]
fn a_fresh_cluster_needs_nothing() {
    for nodes in [1, 3, 5] {
        let proposals = Schedule::default().next(&cluster(nodes), &none(), NOW);
        assert!(proposals.is_empty(), "{nodes} nodes: {proposals:?}");
    }
}

#[test]
fn a_join_starts_by_itself_once_and_not_while_paused() {
    let mut state = cluster(3);
    let mut schedule = Schedule::default();
    assert!(schedule.next(&state, &none(), NOW).is_empty());
    set(&mut state, v1::SettingsChange { paused: Some(true), ..Default::default() });
    join(&mut state, 4);
    assert!(schedule.next(&state, &none(), NOW).is_empty());
    set(&mut state, v1::SettingsChange { paused: Some(false), ..Default::default() });
    let proposals = schedule.next(&state, &none(), NOW);
    assert!(moves(&proposals).iter().any(|step| step.to.is_some_and(|to| to.node == 4)));
    assert!(schedule.next(&state, &none(), NOW).is_empty());
    // One that was not stored is made again.
    schedule.again();
    assert_eq!(schedule.next(&state, &none(), NOW), proposals);
    take(&mut state, proposals, NOW);
    assert!(schedule.next(&state, &none(), NOW).is_empty());
}

#[test]
fn with_manual_rebalancing_only_repair_and_drain_start() {
    let mut state = cluster(4);
    set(&mut state, v1::SettingsChange { rebalance_manual: Some(true), ..Default::default() });
    join(&mut state, 5);
    let mut schedule = Schedule::default();
    assert!(schedule.next(&state, &none(), NOW).is_empty());
    wanted(&mut state, 2, Wanted::Draining(true));
    let proposals = schedule.next(&state, &none(), NOW);
    let drained = moves(&proposals);
    assert!(!drained.is_empty() && drained.iter().all(|step| step.priority < REBALANCE));
    // The manager's own group goes first.
    assert_eq!((drained[0].group, drained[0].from.unwrap().node), (0, 2));
}

#[test]
fn weights_and_zones_wait_to_be_applied() {
    let mut state = cluster(4);
    let mut schedule = Schedule::default();
    wanted(&mut state, 1, Wanted::Weight(1_000));
    assert!(schedule.next(&state, &none(), NOW).is_empty());
    assert!(!plan(&state, &none(), NOW, Figures::Wanted).steps.is_empty());
    // A join that comes meanwhile does not drag them in.
    join(&mut state, 5);
    let mut without = cluster(4);
    join(&mut without, 5);
    let joined = plan(&without, &none(), NOW, Figures::Applied).steps;
    assert_eq!(moves(&schedule.next(&state, &none(), NOW)), joined);
}

#[test]
fn an_applied_plan_is_not_given_up_for_the_weights_that_it_applies() {
    let mut state = cluster(4);
    let mut schedule = Schedule::default();
    wanted(&mut state, 1, Wanted::Weight(1_000));
    assert!(schedule.next(&state, &none(), NOW).is_empty());
    let steps = plan(&state, &none(), NOW, Figures::Wanted).steps;
    let table_version = state.table_version;
    let applied =
        v1::AddMoves { plan: 3, table_version, moves: steps, applied: true, ..Default::default() };
    put(&mut state, Change::AddMoves(applied), NOW).unwrap();
    assert!(schedule.next(&state, &none(), NOW).is_empty());
}

#[test]
fn a_dead_node_is_replaced_and_waiting_moves_make_way() {
    let mut state = cluster(5);
    let mut schedule = Schedule::default();
    assert!(schedule.next(&state, &none(), NOW).is_empty());
    join(&mut state, 6);
    let proposals = schedule.next(&state, &none(), NOW);
    take(&mut state, proposals, NOW);
    let planned = state.unfinished().count();
    assert!(planned > 0);
    let silent = v1::NodeSilent { node: 2, incarnation: 7 };
    put(&mut state, Change::Silent(silent), NOW).unwrap();
    assert!(schedule.next(&state, &none(), NOW + 299_999).is_empty());
    // From now on it counts as dead: what waits is given up, and then the repair is planned.
    let dead = NOW + 300_000;
    let given_up = schedule.next(&state, &none(), dead);
    assert_eq!(given_up.len(), planned);
    take(&mut state, given_up, dead);
    assert_eq!(state.unfinished().count(), 0);
    let repair = schedule.next(&state, &none(), dead);
    let of_dead = |step: &&v1::Move| step.from.is_some_and(|from| from.node == 2);
    assert!(moves(&repair).iter().filter(of_dead).all(|step| step.priority == 0));
    assert_ne!(moves(&repair).iter().filter(of_dead).count(), 0);
}

#[test]
fn a_damaged_replica_is_reseated_in_place() {
    let state = cluster(3);
    let bad = state.groups[2].members[1];
    let damaged = BTreeSet::from([bad.replica]);
    let mut schedule = Schedule::default();
    assert!(schedule.next(&state, &none(), NOW).is_empty());
    let proposals = schedule.next(&state, &damaged, NOW);
    let step = moves(&proposals).iter().find(|step| step.from == Some(bad)).unwrap();
    assert_eq!((step.to.unwrap().node, step.priority), (bad.node, 0));
}

#[test]
fn what_failed_is_tried_again_and_what_was_cancelled_is_not() {
    for by_operator in [false, true] {
        let mut state = cluster(3);
        join(&mut state, 4);
        let mut schedule = Schedule::default();
        let proposals = schedule.next(&state, &none(), NOW);
        take(&mut state, proposals, NOW);
        let ids: Vec<u64> = state.unfinished().map(|step| step.id).collect();
        // The last first, so that each is still there.
        for id in ids.into_iter().rev() {
            let end = if by_operator {
                Change::Cancel(v1::CancelMove { id })
            } else {
                Change::Advance(v1::AdvanceMove {
                    id,
                    expected: MoveState::Planned.into(),
                    next: MoveState::Cancelled.into(),
                    ..Default::default()
                })
            };
            put(&mut state, end, NOW + 1).unwrap();
        }
        assert!(schedule.next(&state, &none(), NOW + AGAIN_MS).is_empty());
        let again = schedule.next(&state, &none(), NOW + 1 + AGAIN_MS);
        assert_eq!(again.is_empty(), by_operator);
    }
}

#[test]
fn what_fails_again_and_again_waits_longer_and_longer() {
    let mut state = cluster(3);
    join(&mut state, 4);
    let mut schedule = Schedule::default();
    let mut at_ms = NOW;
    let mut expected: Vec<v1::Move> = Vec::new();
    for delay_ms in [AGAIN_MS, 2 * AGAIN_MS, 4 * AGAIN_MS] {
        let proposals = schedule.next(&state, &none(), at_ms);
        let planned = moves(&proposals).to_vec();
        // The same, until it comes about.
        assert!(!planned.is_empty() && (expected.is_empty() || planned == expected));
        take(&mut state, proposals, at_ms);
        let ids: Vec<u64> = state.unfinished().map(|step| step.id).collect();
        for id in ids {
            // Whatever builds on it goes with it.
            let _stale = put(&mut state, cancelled(id), at_ms);
        }
        assert_eq!(state.unfinished().count(), 0);
        // Neither in time nor for another reason.
        assert!(schedule.next(&state, &none(), at_ms + delay_ms - 1).is_empty());
        schedule.again();
        assert!(schedule.next(&state, &none(), at_ms + delay_ms - 1).is_empty());
        // Another leader of group 0 waits as long.
        assert!(Schedule::default().next(&state, &none(), at_ms + delay_ms - 1).is_empty());
        (at_ms, expected) = (at_ms + delay_ms, planned);
    }
}

/// A planned move ends by itself.
fn cancelled(id: u64) -> Change {
    Change::Advance(v1::AdvanceMove {
        id,
        expected: MoveState::Planned.into(),
        next: MoveState::Cancelled.into(),
        ..Default::default()
    })
}

#[test]
fn a_group_that_was_left_out_is_planned_for_whatever_another_group_waits_for() {
    let mut state = cluster(5);
    let groups = [state.groups[0].clone(), state.groups[1].clone()];
    let transfer = |group: &v1::GroupRecord| v1::Move {
        kind: v1::MoveKind::Transfer.into(),
        group: group.id,
        to: Some(group.members[1]),
        ..Default::default()
    };
    let table_version = state.table_version;
    let plan = groups.iter().map(transfer).collect();
    let plan = v1::AddMoves { table_version, moves: plan, ..Default::default() };
    put(&mut state, Change::AddMoves(plan), NOW).unwrap();
    let damaged = BTreeSet::from([groups[0].members[2].replica, groups[1].members[2].replica]);
    let mut schedule = Schedule::default();
    let later = NOW + PATIENCE_MS;
    let around = schedule.next(&state, &damaged, later);
    assert!(moves(&around).iter().all(|step| groups.iter().all(|group| group.id != step.group)));
    // One of the moves is over; the other one waits for ever.
    let id = state.moves[0].id;
    put(&mut state, cancelled(id), NOW).unwrap();
    let proposals = schedule.next(&state, &damaged, later);
    let steps = moves_of_others(&proposals, groups[1].id);
    assert!(steps.iter().any(|step| step.from == Some(groups[0].members[2])), "{steps:?}");
    take(&mut state, proposals, later);
    assert!(schedule.next(&state, &damaged, later + PATIENCE_MS).is_empty());
}

#[test]
fn a_move_that_waits_for_long_blocks_plans_for_its_own_group_only() {
    for has_begun in [false, true] {
        let mut state = cluster(5);
        let group = state.groups[0].clone();
        let node = (1..).find(|node| group.members.iter().all(|m| m.node != *node)).unwrap();
        let to = Some(v1::MemberRoute { node, replica: 0, learner: false });
        let from = Some(group.members[2]);
        let step = v1::Move { group: group.id, from, to, ..Default::default() };
        let table_version = state.table_version;
        let plan = v1::AddMoves { table_version, moves: vec![step], ..Default::default() };
        put(&mut state, Change::AddMoves(plan), NOW).unwrap();
        let id = state.moves[0].id;
        let advance = |expected: MoveState, waiting: &str| {
            Change::Advance(v1::AdvanceMove {
                id,
                expected: expected.into(),
                next: MoveState::Create.into(),
                waiting: waiting.to_owned(),
                ..Default::default()
            })
        };
        if has_begun {
            put(&mut state, advance(MoveState::Planned, ""), NOW).unwrap();
        }
        let bad = state.groups[2].members[1];
        let damaged = BTreeSet::from([bad.replica, group.members[1].replica]);
        let mut schedule = Schedule::default();
        assert!(schedule.next(&state, &damaged, NOW + PATIENCE_MS - 1).is_empty());
        if has_begun {
            // It works; that takes as long as it takes.
            assert!(schedule.next(&state, &damaged, NOW + PATIENCE_MS).is_empty());
            put(&mut state, advance(MoveState::Create, "something"), NOW).unwrap();
        }
        let proposals = schedule.next(&state, &damaged, NOW + PATIENCE_MS);
        let steps = moves_of_others(&proposals, group.id);
        assert!(steps.iter().any(|step| step.from == Some(bad)), "{steps:?}");
        assert!(schedule.next(&state, &damaged, NOW + PATIENCE_MS).is_empty());
        // Its own group is planned for when it is over.
        let end = Change::Cancel(v1::CancelMove { id });
        put(&mut state, end, NOW).unwrap();
        if has_begun {
            let undone = Change::Advance(v1::AdvanceMove {
                id,
                expected: MoveState::Undo.into(),
                next: MoveState::Cancelled.into(),
                ..Default::default()
            });
            put(&mut state, undone, NOW).unwrap();
        }
        let later = schedule.next(&state, &damaged, NOW + PATIENCE_MS);
        assert!(self::moves(&later).iter().any(|step| step.group == group.id));
    }
}

fn moves_of_others(proposals: &[v1::ManagerCommand], group: u64) -> &[v1::Move] {
    let steps = moves(proposals);
    assert!(steps.iter().all(|step| step.group != group), "{steps:?}");
    steps
}

#[test]
fn what_a_move_does_when_its_members_are_settled_is_in_nobodys_way() {
    use MoveState::{Create, Lead, Planned, Retire, Swap, Undo};
    // A newcomer that is taken back, and a member that has left.
    for (comes, way) in [
        (true, [Planned, Create, Undo].as_slice()),
        (false, [Planned, Lead, Swap, Retire].as_slice()),
    ] {
        let mut state = cluster(5);
        let group = state.groups[0].clone();
        let node = (1..).find(|node| group.members.iter().all(|m| m.node != *node)).unwrap();
        let to = comes.then_some(v1::MemberRoute { node, replica: 0, learner: false });
        let from = Some(group.members[2]);
        let step = v1::Move { group: group.id, from, to, ..Default::default() };
        let table_version = state.table_version;
        let plan = v1::AddMoves { table_version, moves: vec![step], ..Default::default() };
        put(&mut state, Change::AddMoves(plan), NOW).unwrap();
        let id = state.moves[0].id;
        let bad = state.groups[2].members[1];
        let damaged = BTreeSet::from([bad.replica]);
        for pair in way.windows(2) {
            assert!(Schedule::default().next(&state, &damaged, NOW).is_empty(), "{:?}", pair[0]);
            let advance = v1::AdvanceMove {
                id,
                expected: pair[0].into(),
                next: pair[1].into(),
                ..Default::default()
            };
            put(&mut state, Change::Advance(advance), NOW).unwrap();
        }
        let proposals = Schedule::default().next(&state, &damaged, NOW);
        let steps = moves_of_others(&proposals, group.id);
        assert!(steps.iter().any(|step| step.from == Some(bad)), "{way:?}");
    }
}
