//! Moves through their states.

use super::*;

#[test]
fn a_plan_is_taken_over_only_for_the_table_that_it_was_made_from() {
    let mut state = movable();
    let plan = add(&state, vec![reseat(&state, 0)]);
    put(&mut state, admit(5, 7, false), NOW).unwrap();
    assert!(is_stale(&put(&mut state, plan, NOW)));
    let plan = add(&state, vec![reseat(&state, 0)]);
    assert_eq!(put(&mut state, plan, NOW).unwrap().id, 9);
    let step = &state.moves[0];
    assert_eq!((step.plan, step.state(), step.planned_ms), (9, MoveState::Planned, NOW));
    assert_eq!(step.id, u64::from(state.counter));
    // Seats that are not there and nodes that nobody knows.
    let mut gone = reseat(&state, 0);
    gone.from = Some(v1::MemberRoute { node: 1, replica: 3, learner: false });
    let plan = add(&state, vec![gone]);
    assert!(is_stale(&put(&mut state, plan, NOW)));
    let unknown = v1::Move { to: to(9), ..reseat(&state, 0) };
    let plan = add(&state, vec![unknown]);
    assert!(is_stale(&put(&mut state, plan, NOW)));
}

#[test]
fn weights_count_for_automatic_plans_once_they_are_applied() {
    let mut state = cluster(3);
    put(&mut state, change(1, Wanted::Weight(300)), NOW).unwrap();
    put(&mut state, change(1, Wanted::Zone("x".to_owned())), NOW).unwrap();
    let node = state.node(1).unwrap();
    assert_eq!((node.planned_weight, node.planned_zone.as_str()), (100, ""));
    let table_version = state.table_version;
    let plan = v1::AddMoves { table_version, applied: true, ..Default::default() };
    put(&mut state, Command::AddMoves(plan), NOW).unwrap();
    let node = state.node(1).unwrap();
    assert_eq!((node.planned_weight, node.planned_zone.as_str()), (300, "x"));
}

#[test]
fn a_reseat_takes_its_states_in_order_and_only_from_where_it_is() {
    use MoveState::{CatchUp, Create, Done, Lead, Planned, Retire, Seed, Swap, Verify};
    let mut state = movable();
    let plan = add(&state, vec![reseat(&state, 0)]);
    put(&mut state, plan, NOW).unwrap();
    let (id, group) = (state.moves[0].id, state.groups[0].id);
    let way = [Planned, Create, Seed, CatchUp, Verify, Lead, Swap, Retire, Done];
    for pair in way.windows(2) {
        for skipped in way.into_iter().filter(|other| *other != pair[1] && *other != pair[0]) {
            let result = put(&mut state, advance(id, pair[0], skipped), NOW);
            assert!(is_stale(&result), "{pair:?} {skipped:?}");
        }
        put(&mut state, advance(id, pair[0], pair[1]), NOW).unwrap();
        assert!(is_stale(&put(&mut state, advance(id, pair[0], pair[1]), NOW)), "twice");
    }
    let step = &state.moves[0];
    let replica = step.to.unwrap().replica;
    assert!(state.allocated(replica) && !state.groups.iter().any(|g| g.id == replica));
    assert_eq!(step.ended_ms, NOW);
    assert_eq!(state.group(group).unwrap().generation, 1);
}

#[test]
fn what_waits_is_a_figure_and_bytes_never_go_back() {
    let mut state = movable();
    let plan = add(&state, vec![reseat(&state, 0)]);
    put(&mut state, plan, NOW).unwrap();
    let id = state.moves[0].id;
    put(&mut state, advance(id, MoveState::Planned, MoveState::Create), NOW).unwrap();
    let decided = state.history.len();
    for (bytes_done, kept) in [(70, 70), (50, 70)] {
        let news = v1::AdvanceMove {
            id,
            expected: MoveState::Create.into(),
            next: MoveState::Create.into(),
            waiting: "for something".to_owned(),
            bytes_done,
            ..Default::default()
        };
        put(&mut state, Command::Advance(news), NOW).unwrap();
        assert_eq!(state.moves[0].bytes_done, kept);
    }
    assert_eq!((state.moves[0].waiting.as_str(), state.history.len()), ("for something", decided));
}

#[test]
fn a_cancelled_move_is_undone_until_the_membership_changes() {
    use MoveState::{Cancelled, CatchUp, Create, Lead, Planned, Seed, Swap, Undo, Verify};
    let way = [Planned, Create, Seed, CatchUp, Verify, Lead, Swap];
    for steps in 0..way.len() {
        let mut state = movable();
        let plan = add(&state, vec![reseat(&state, 0)]);
        put(&mut state, plan, NOW).unwrap();
        let id = state.moves[0].id;
        for pair in way[..=steps].windows(2) {
            put(&mut state, advance(id, pair[0], pair[1]), NOW).unwrap();
        }
        let cancelled = put(&mut state, Command::Cancel(v1::CancelMove { id }), NOW);
        let generation = state.groups[0].generation;
        match way[steps] {
            Planned => {
                cancelled.unwrap();
                assert_eq!((state.moves[0].state(), generation), (Cancelled, 0));
            }
            Swap => assert!(wrong(cancelled).1.contains("completes")),
            _ => {
                cancelled.unwrap();
                assert_eq!((state.moves[0].state(), generation), (Undo, 2));
                assert!(state.moves[0].cancel);
                put(&mut state, advance(id, Undo, Cancelled), NOW).unwrap();
                let again = put(&mut state, Command::Cancel(v1::CancelMove { id }), NOW);
                assert!(wrong(again).1.contains("ended"));
            }
        }
    }
    let mut state = cluster(3);
    assert!(
        wrong(put(&mut state, Command::Cancel(v1::CancelMove { id: 5 }), NOW))
            .1
            .contains("no move")
    );
}

#[test]
fn a_rehome_changes_home_and_lane_when_it_is_done() {
    let mut state = cluster(3);
    let group = state.groups[0].clone();
    let other = group.members[2].node;
    let kind = MoveKind::Rehome.into();
    let step = v1::Move { kind, group: group.id, to: to(other), lane: 6, ..Default::default() };
    let plan = add(&state, vec![step]);
    put(&mut state, plan, NOW).unwrap();
    let id = state.moves[0].id;
    let pinned = v1::TransferTo { group: group.id, node: group.members[1].node };
    put(&mut state, Command::Transfer(pinned), NOW).unwrap();
    assert_eq!(state.groups[0].pinned, group.members[1].node);
    put(&mut state, advance(id, MoveState::Planned, MoveState::Lead), NOW).unwrap();
    assert_eq!(state.groups[0].home, group.home);
    put(&mut state, advance(id, MoveState::Lead, MoveState::Done), NOW).unwrap();
    let after = &state.groups[0];
    assert_eq!((after.home, after.lane, after.pinned), (other, 6, 0));
    assert_eq!(after.members[0].node, other);
}

#[test]
fn a_plan_beyond_the_limit_is_cut_off() {
    let mut state = movable();
    let step = reseat(&state, 0);
    let plan = add(&state, vec![step.clone(); 4_000]);
    put(&mut state, plan, NOW).unwrap();
    let plan = add(&state, vec![step.clone(); 97]);
    put(&mut state, plan, NOW).unwrap();
    assert_eq!(state.unfinished().count(), 4_096);
    let plan = add(&state, vec![step]);
    put(&mut state, plan, NOW).unwrap();
    assert_eq!(state.unfinished().count(), 4_096);
}

#[test]
fn only_what_asked_nothing_of_its_group_or_all_of_it_ends_without_the_way_back() {
    use MoveState::{Cancelled, CatchUp, Create, Lead, Planned, Seed, Swap, Verify};
    let way = [Planned, Create, Seed, CatchUp, Verify, Lead, Swap];
    for steps in 0..way.len() {
        let mut state = movable();
        let plan = add(&state, vec![reseat(&state, 0)]);
        put(&mut state, plan, NOW).unwrap();
        let id = state.moves[0].id;
        for pair in way[..=steps].windows(2) {
            put(&mut state, advance(id, pair[0], pair[1]), NOW).unwrap();
        }
        let before = state.groups[0].generation;
        let ended = put(&mut state, advance(id, way[steps], Cancelled), NOW);
        let may_end = matches!(way[steps], Planned | Create | Seed | Swap);
        assert_eq!(ended.is_ok(), may_end, "{:?}", way[steps]);
        // What may still be on its way to change the membership is fenced.
        let raised = state.groups[0].generation - before;
        assert_eq!(raised, u64::from(way[steps] == Swap));
    }
}

#[test]
fn whoever_cancels_is_told_what_becomes_of_the_move() {
    use MoveState::{Cancelled, Create, Done, Lead, Planned, Retire, Swap, Undo};
    let mut state = movable();
    let plan = add(&state, vec![v1::Move { to: None, ..reseat(&state, 0) }]);
    put(&mut state, plan, NOW).unwrap();
    let id = state.moves[0].id;
    put(&mut state, advance(id, Planned, Lead), NOW).unwrap();
    put(&mut state, advance(id, Lead, Swap), NOW).unwrap();
    let cancel = Command::Cancel(v1::CancelMove { id });
    assert!(wrong(put(&mut state, cancel.clone(), NOW)).1.contains("ends by itself"));
    put(&mut state, advance(id, Swap, Retire), NOW).unwrap();
    assert!(wrong(put(&mut state, cancel, NOW)).1.contains("has changed the membership"));
    put(&mut state, advance(id, Retire, Done), NOW).unwrap();

    // One that is undone because it failed is not planned again once an operator gave it up.
    let plan = add(&state, vec![reseat(&state, 0)]);
    put(&mut state, plan, NOW).unwrap();
    let id = state.moves[1].id;
    put(&mut state, advance(id, Planned, Create), NOW).unwrap();
    put(&mut state, advance(id, Create, Undo), NOW).unwrap();
    assert!(!state.moves[1].cancel);
    let told = put(&mut state, Command::Cancel(v1::CancelMove { id }), NOW + 9).unwrap();
    assert!(told.decisions[0].what.contains("being undone already"));
    let step = &state.moves[1];
    assert_eq!((step.state(), step.cancel), (Undo, true));
    // That it was asked for does not make it younger.
    assert_eq!(state.entered_ms(step), NOW);
    put(&mut state, advance(id, Undo, Cancelled), NOW).unwrap();
}

#[test]
fn what_builds_on_a_member_that_does_not_come_is_cancelled_with_it() {
    use MoveState::{Cancelled, Create, Planned, Undo};
    for begun in [false, true] {
        for by_operator in [false, true] {
            let mut state = movable();
            let group = state.groups[0].clone();
            let comes = v1::Move { from: None, ..reseat(&state, 0) };
            let leads = v1::Move { kind: MoveKind::Rehome.into(), ..comes.clone() };
            let goes = v1::Move { to: None, from: Some(group.members[0]), ..comes.clone() };
            let of_another = v1::Move { group: state.groups[1].id, to: to(4), ..leads.clone() };
            // A step before it, and one of another plan.
            let before = v1::Move { to: Some(group.members[1]), ..leads.clone() };
            let plan = add(&state, vec![before, comes, leads, goes.clone(), of_another]);
            put(&mut state, plan, NOW).unwrap();
            let (plan, table_version) = (10, state.table_version);
            let other =
                v1::AddMoves { plan, table_version, moves: vec![goes], ..Default::default() };
            put(&mut state, Command::AddMoves(other), NOW).unwrap();
            let id = state.moves[1].id;
            if begun {
                put(&mut state, advance(id, Planned, Create), NOW).unwrap();
            }
            if by_operator {
                put(&mut state, Command::Cancel(v1::CancelMove { id }), NOW).unwrap();
            } else if begun {
                put(&mut state, advance(id, Create, Undo), NOW).unwrap();
            }
            if begun {
                // It may still come.
                assert_eq!(state.moves[3].state(), Planned);
                put(&mut state, advance(id, Undo, Cancelled), NOW + 1).unwrap();
            } else if !by_operator {
                put(&mut state, advance(id, Planned, Cancelled), NOW + 1).unwrap();
            }
            let states: Vec<MoveState> = state.moves.iter().map(v1::Move::state).collect();
            let expected = [Planned, Cancelled, Cancelled, Cancelled, Planned, Planned];
            assert_eq!(states, expected);
            for step in &state.moves[1..4] {
                assert_eq!((step.ended_ms, step.cancel), (state.moves[1].ended_ms, by_operator));
            }
            let told = state.history.last().unwrap();
            assert_eq!(told.move_id, state.moves[3].id);
            assert!(told.why.contains(&format!("builds on move {id}")), "{}", told.why);
        }
    }
}
