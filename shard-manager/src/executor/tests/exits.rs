//! Moves that cannot go on: each ends by itself, leaves nothing behind, and holds up nobody.

use super::*;
use crate::schedule::Schedule;

/// Turns until `done`; returns how long that took. A turn is a quarter of a second.
pub(super) fn until(world: &mut World, most_ms: u64, done: impl Fn(&World) -> bool) -> u64 {
    let begun_ms = world.now.mono_ms;
    while !done(world) {
        let passed_ms = world.now.mono_ms - begun_ms;
        let moves: Vec<&v1::Move> = world.state.unfinished().collect();
        assert!(passed_ms < most_ms, "not in {most_ms} ms: {moves:?} {:?}", world.groups);
        turn(world);
    }
    world.now.mono_ms - begun_ms
}

pub(super) fn pass(world: &mut World, ms: u64) {
    let end_ms = world.now.mono_ms + ms;
    until(world, ms + 1_000, |world| world.now.mono_ms >= end_ms);
}

/// Why the move came to the state in which it is.
pub(super) fn last_word(world: &World, id: u64) -> String {
    let told = world.state.history.iter().rfind(|decision| decision.move_id == id);
    told.map(|decision| decision.why.clone()).unwrap_or_default()
}

/// A world with one move that has come to `state`: its group, the move, its newcomer.
pub(super) fn stopped_in(state: MoveState, from: usize) -> (World, u64, u64, v1::MemberRoute) {
    let mut world = World::new(5, 3);
    let (group, node) = (world.state.groups[0].id, outsider(&world));
    let step = reseat(&world, Some(from), Some(node));
    let id = add(&mut world, vec![step])[0];
    run(&mut world, id, reached(id, state));
    let to = move_of(&world, id).to.unwrap();
    (world, group, id, to)
}

/// Whether every replica is a member that votes, and every member is there.
pub(super) fn is_clean(world: &World) -> bool {
    let members = world.groups.values().flat_map(|group| &group.members);
    let mut seated = BTreeSet::new();
    for (replica, (node, voter)) in members {
        seated.insert((*replica, *node));
        if !voter || !world.nodes[node].replicas.contains_key(replica) {
            return false;
        }
    }
    let held =
        world.nodes.iter().flat_map(|(id, node)| node.replicas.keys().map(move |r| (*r, *id)));
    held.collect::<BTreeSet<(u64, u32)>>() == seated
}

#[test]
fn every_state_ends_in_a_group_that_gets_no_leader_any_more() {
    use MoveState::{CatchUp, Create, Lead, Seed, Swap, Undo, Verify};
    for state in [Create, Seed, CatchUp, Verify, Lead, Swap, Undo] {
        let begun = if state == Undo { CatchUp } else { state };
        let (mut world, group, id, to) = stopped_in(begun, 2);
        let before = voters(&world, group);
        if state == Undo {
            put(&mut world.state, Change::Cancel(v1::CancelMove { id }), world.now.group_ms)
                .unwrap();
        }
        world.leaderless.insert(group);
        until(&mut world, 2 * PATIENCE_MS + 5_000, ended(id));
        assert_eq!(move_of(&world, id).state(), MoveState::Cancelled, "{state:?}");
        assert_eq!(move_of(&world, id).cancel, state == Undo);
        // Nothing was destroyed on impatience.
        assert!(world.nodes[&to.node].replicas.contains_key(&to.replica) || state == Create);
        world.leaderless.clear();
        until(&mut world, 60_000, is_clean);
        assert_eq!(voters(&world, group), before, "{state:?}");
        assert!(!world.nodes[&to.node].replicas.contains_key(&to.replica));
    }
}

#[test]
fn a_move_goes_on_when_its_group_has_a_leader_again_in_time() {
    use MoveState::{CatchUp, Create, Lead, Retire, Seed, Swap, Verify};
    for state in [Create, Seed, CatchUp, Verify, Lead, Swap, Retire] {
        let (mut world, group, id, to) = stopped_in(state, 2);
        world.leaderless.insert(group);
        pass(&mut world, PATIENCE_MS - 5_000);
        world.leaderless.clear();
        until(&mut world, 30_000, ended(id));
        assert_eq!(move_of(&world, id).state(), MoveState::Done, "{state:?}");
        assert!(voters(&world, group).contains(&to.node));
        until(&mut world, 30_000, is_clean);
    }
}

#[test]
fn a_change_that_succeeds_after_its_move_ended_is_taken_as_it_is() {
    let (mut world, group, id, to) = stopped_in(MoveState::Swap, 2);
    let left = move_of(&world, id).from.unwrap();
    // The change is half made when the group loses its leader.
    world.is_slow = true;
    turn(&mut world);
    assert!(world.is_joint(group));
    world.leaderless.insert(group);
    until(&mut world, 2 * PATIENCE_MS + 5_000, ended(id));
    assert_eq!(move_of(&world, id).state(), MoveState::Cancelled);
    world.is_slow = false;
    world.leaderless.clear();
    until(&mut world, 60_000, is_clean);
    assert!(voters(&world, group).contains(&to.node));
    assert!(!world.nodes[&left.node].replicas.contains_key(&left.replica));
}

#[test]
fn a_command_that_is_refused_for_ever_ends_the_move() {
    use MoveState::{Cancelled, Done, Planned};
    // Of the leader, of the node that comes, of the one that goes.
    let cases = [
        (Act::Create, 1, Cancelled),
        (Act::Seed, 0, Cancelled),
        (Act::Change, 0, Cancelled),
        (Act::Verify, 0, Cancelled),
        (Act::Retire, 2, Done),
    ];
    for (act, party, end) in cases {
        let (mut world, group, id, to) = stopped_in(Planned, 2);
        let from = move_of(&world, id).from.unwrap();
        let node = [world.leader_node(group).unwrap(), to.node, from.node][party];
        world.refusals.insert((node, act));
        let took_ms = until(&mut world, 3 * PATIENCE_MS, ended(id));
        assert!(took_ms >= PATIENCE_MS, "{act:?} after {took_ms} ms");
        assert_eq!(move_of(&world, id).state(), end, "{act:?}");
        let stays = voters(&world, group).contains(&from.node);
        assert_eq!(stays, end == Cancelled, "{act:?}");
        world.refusals.clear();
        until(&mut world, 60_000, is_clean);
    }
}

#[test]
fn the_way_back_ends_though_nobody_helps_with_it() {
    for act in [Act::Cancel, Act::Change] {
        let (mut world, group, id, to) = stopped_in(MoveState::Create, 2);
        let leader = world.leader_node(group).unwrap();
        let node = if act == Act::Change { leader } else { to.node };
        run(&mut world, id, reached(id, MoveState::Seed));
        world.refusals.insert((node, act));
        put(&mut world.state, Change::Cancel(v1::CancelMove { id }), world.now.group_ms).unwrap();
        let took_ms = until(&mut world, 2 * PATIENCE_MS, ended(id));
        assert!(took_ms >= PATIENCE_MS);
        assert!(last_word(&world, id).contains("what is left follows"), "{act:?}");
        assert!(world.nodes[&to.node].replicas.contains_key(&to.replica));
        world.refusals.clear();
        until(&mut world, 30_000, is_clean);
    }
}

#[test]
fn a_member_that_is_dropped_stays_when_the_others_are_no_majority_any_more() {
    let mut world = World::new(5, 3);
    // There is one too many.
    world.state.replication = 2;
    let group = world.state.groups[0].id;
    let before = voters(&world, group);
    let (leader, other) =
        (world.leader_node(group).unwrap(), world.state.groups[0].members[1].node);
    let step = reseat(&world, Some(2), None);
    let id = add(&mut world, vec![step])[0];
    run(&mut world, id, reached(id, MoveState::Swap));
    world.refusals.insert((leader, Act::Change));
    world.kill(other);
    until(&mut world, 10_000, ended(id));
    assert_eq!(move_of(&world, id).state(), MoveState::Cancelled);
    assert_eq!(last_word(&world, id), "the others would be no majority");
    world.refusals.clear();
    world.revive(other);
    pass(&mut world, 10_000);
    assert_eq!(voters(&world, group), before);
}

#[test]
fn a_leader_that_leaves_tries_one_voter_after_another_and_stays_if_none_takes_over() {
    for stubborn in [1, 2] {
        let (mut world, group, id, to) = stopped_in(MoveState::Lead, 0);
        let record = world.state.groups[0].clone();
        let others: Vec<u32> =
            record.members.iter().filter(|m| !m.learner).map(|m| m.node).skip(1).collect();
        assert_eq!(others.len(), 2);
        // The first is the one that is tried first.
        world.stubborn.extend(&others[..stubborn]);
        let took_ms = until(&mut world, 3 * PATIENCE_MS, ended(id));
        let step = move_of(&world, id);
        if stubborn == 1 {
            assert_eq!(step.state(), MoveState::Done);
            assert!(took_ms < PATIENCE_MS, "{took_ms} ms");
        } else {
            assert_eq!(step.state(), MoveState::Cancelled);
            assert!(took_ms >= PATIENCE_MS);
            assert_eq!(world.leader_node(group), Some(record.home));
        }
        assert_eq!(voters(&world, group).contains(&to.node), stubborn == 1);
        until(&mut world, 30_000, is_clean);
    }
}

#[test]
fn a_transfer_that_never_succeeds_ends_with_its_reason() {
    for kind in [MoveKind::Transfer, MoveKind::Rehome] {
        for leads in [true, false] {
            let mut world = World::new(5, 3);
            let (group, home) = (world.state.groups[0].id, world.state.groups[0].home);
            let to = world.state.groups[0].members[1];
            let step = v1::Move { kind: kind.into(), group, to: Some(to), ..Default::default() };
            world.stubborn.insert(to.node);
            turn(&mut world);
            let id = add(&mut world, vec![step])[0];
            turn(&mut world);
            if !leads {
                world.leaderless.insert(group);
            }
            let took_ms = until(&mut world, PATIENCE_MS + 10_000, ended(id));
            assert!(took_ms + 3_000 >= PATIENCE_MS);
            assert_eq!(move_of(&world, id).state(), MoveState::Cancelled);
            let why = if leads { "take leadership over" } else { "no leader" };
            assert!(last_word(&world, id).contains(why), "{}", last_word(&world, id));
            assert_eq!(world.state.groups[0].home, home);
        }
    }
}

#[test]
fn a_copy_that_stands_still_is_given_up_and_one_that_goes_on_is_not() {
    for entries in [0, 1] {
        let (mut world, group, id, to) = stopped_in(MoveState::CatchUp, 2);
        world.slow.insert(to.replica, entries);
        let held = world.nodes.get_mut(&to.node).unwrap().replicas.get_mut(&to.replica).unwrap();
        held.matched = 1;
        if entries > 0 {
            pass(&mut world, 2 * STALL_MS);
            assert_eq!(move_of(&world, id).state(), MoveState::CatchUp);
            world.slow.clear();
            until(&mut world, 30_000, ended(id));
            assert_eq!(move_of(&world, id).state(), MoveState::Done);
            continue;
        }
        let took_ms = until(&mut world, STALL_MS + 30_000, ended(id));
        assert!(took_ms >= STALL_MS);
        assert_eq!(move_of(&world, id).state(), MoveState::Cancelled);
        assert!(!voters(&world, group).contains(&to.node));
        until(&mut world, 30_000, is_clean);
    }
}

#[test]
fn a_replica_whose_log_is_lost_is_destroyed_when_its_group_does_not_have_it() {
    // As the newcomer of a move that is undone.
    let (mut world, _, id, to) = stopped_in(MoveState::Verify, 2);
    let held = world.nodes.get_mut(&to.node).unwrap().replicas.get_mut(&to.replica).unwrap();
    (held.halted, held.is_partial) = (true, true);
    until(&mut world, 2 * PATIENCE_MS, ended(id));
    assert_eq!(last_word(&world, id), "the new replica is destroyed");
    until(&mut world, 30_000, is_clean);

    // As one that lost its seat while its node was away; and beside it one that nobody gave an id.
    let (mut world, group, id, _) = stopped_in(MoveState::Swap, 2);
    let left = move_of(&world, id).from.unwrap();
    world.kill(left.node);
    until(&mut world, 30_000, ended(id));
    assert_eq!(move_of(&world, id).state(), MoveState::Done);
    let foreign = annulus_types::ids::allocated_id(77, 4);
    world.plant(left.node, group, foreign);
    for replica in [left.replica, foreign] {
        let held = world.nodes.get_mut(&left.node).unwrap().replicas.get_mut(&replica).unwrap();
        (held.halted, held.is_partial) = (true, true);
    }
    world.revive(left.node);
    pass(&mut world, 30_000);
    let held = &world.nodes[&left.node].replicas;
    assert!(!held.contains_key(&left.replica));
    assert!(held.contains_key(&foreign), "the manager does not know when it had a seat");
}

#[test]
fn what_a_former_manager_has_begun_is_cleared_up() {
    use MoveState::{CatchUp, Create, Seed, Verify};
    for state in [Create, Seed, CatchUp, Verify] {
        let (mut world, group, _, to) = stopped_in(state, 2);
        let is_there = |world: &World| world.nodes[&to.node].replicas.contains_key(&to.replica);
        until(&mut world, 5_000, is_there);
        world.replace_manager();
        until(&mut world, 30_000, is_clean);
        assert!(!is_there(&world) && !voters(&world, group).contains(&to.node), "{state:?}");
    }
}

#[test]
fn what_a_former_manager_has_begun_is_cleared_up_beside_a_voter_that_is_gone() {
    let (mut world, group, _, to) = stopped_in(MoveState::Seed, 2);
    let is_there = |world: &World| world.nodes[&to.node].replicas.contains_key(&to.replica);
    until(&mut world, 5_000, is_there);
    let gone = voters(&world, group).into_iter().find(|node| {
        world.leader_node(group) != Some(*node) && world.leader_node(0) != Some(*node)
    });
    world.bury(gone.unwrap());
    world.replace_manager();
    pass(&mut world, 30_000);
    assert!(is_there(&world), "the voter may come back and obey");
    let limit_ms = world.state.settings().down_after_ms + 60_000;
    until(&mut world, limit_ms, |world| !is_there(world));
}

#[test]
fn a_group_without_a_leader_holds_up_no_home_no_move_and_no_plan() {
    let (mut world, group, id, _) = stopped_in(MoveState::CatchUp, 2);
    world.leaderless.insert(group);
    // Its load counts for nothing: a node takes in as many others as ever.
    let others: Vec<v1::GroupRecord> =
        world.state.groups.iter().filter(|record| record.id != group).cloned().collect();
    for record in &others {
        let place = world.groups[&record.id].members.values().position(|m| m.0 != record.home);
        world.elect(record.id, place.unwrap());
        assert_ne!(world.leader_node(record.id), Some(record.home));
    }
    let is_home =
        |world: &World, record: &v1::GroupRecord| world.leader_node(record.id) == Some(record.home);
    until(&mut world, 30_000, |world| others.iter().all(|record| is_home(world, record)));
    let step = move_of(&world, id);
    assert_eq!(
        (step.state(), step.waiting.as_str()),
        (MoveState::CatchUp, "a leader of the group")
    );

    // Another group's member is damaged: a plan is made as soon as the move has waited long enough.
    let bad = others[0].members[1];
    let damaged = BTreeSet::from([bad.replica]);
    let mut schedule = Schedule::default();
    pass(&mut world, PATIENCE_MS);
    assert!(world.state.unfinished().any(|step| step.id == id));
    let proposals = schedule.next(&world.state, &damaged, world.now.group_ms);
    let Some(v1::ManagerCommand { command: Some(Change::AddMoves(plan)) }) = proposals.first()
    else {
        panic!("{proposals:?}");
    };
    assert!(plan.moves.iter().any(|step| step.from == Some(bad)));
    assert!(plan.moves.iter().all(|step| step.group != group));
    let planned = add(&mut world, plan.moves.clone());
    let of_others = planned.into_iter().filter(|other| *other != id).collect::<Vec<u64>>();
    assert!(!of_others.is_empty());
    until(&mut world, 120_000, |world| of_others.iter().all(|id| ended(*id)(world)));
    assert!(of_others.iter().all(|id| move_of(&world, *id).state() == MoveState::Done));
}

#[test]
fn homes_that_refuse_for_ever_do_not_stand_before_the_others() {
    let mut world = World::new(6, 3);
    let records = world.state.groups.clone();
    let last = records.last().unwrap();
    for record in &records {
        let place = world.groups[&record.id].members.values().position(|m| m.0 != record.home);
        world.elect(record.id, place.unwrap());
        if record.home != last.home {
            world.stubborn.insert(record.home);
        }
    }
    until(&mut world, 30_000, |world| world.leader_node(last.id) == Some(last.home));
}
