//! Stories of single moves; how they end when something never comes is in `exits`, whom a group counts on
//! in `members`, the laws for all of them are in `laws`.

mod exits;
mod laws;
mod members;
mod world;

use super::*;
use crate::sight::Act;
use crate::testing::put;
use world::World;

/// A move of the first group: `from` the member at this place, if given, `to` a node.
fn reseat(world: &World, from: Option<usize>, to: Option<u32>) -> v1::Move {
    let group = &world.state.groups[0];
    let seat = |node| v1::MemberRoute { node, replica: 0, learner: false };
    v1::Move {
        group: group.id,
        from: from.map(|place| group.members[place]),
        to: to.map(seat),
        ..Default::default()
    }
}

fn add(world: &mut World, moves: Vec<v1::Move>) -> Vec<u64> {
    let table_version = world.state.table_version;
    let plan = v1::AddMoves { plan: 1, table_version, moves, ..Default::default() };
    put(&mut world.state, Change::AddMoves(plan), world.now.group_ms).unwrap();
    world.state.unfinished().map(|step| step.id).collect()
}

fn move_of(world: &World, id: u64) -> v1::Move {
    world.state.moves.iter().find(|step| step.id == id).unwrap().clone()
}

/// A node without a seat in the first group.
fn outsider(world: &World) -> u32 {
    let group = &world.state.groups[0];
    (1..).find(|node| seats_on(group, *node).next().is_none()).unwrap()
}

/// One calm turn; returns the commands that were sent in it.
fn turn(world: &mut World) -> Vec<Tell> {
    world.tick(250);
    world.settle();
    world.heartbeats();
    world.round(usize::MAX);
    let sent: Vec<Tell> = world.wire.iter().map(|sent| sent.tell).collect();
    while !world.wire.is_empty() {
        world.deliver(0, true);
    }
    sent
}

/// Turns until `done`; returns the states that the move was seen in and the commands sent.
fn run(world: &mut World, id: u64, done: impl Fn(&World) -> bool) -> (Vec<MoveState>, Vec<Act>) {
    let (mut states, mut acts) = (Vec::new(), Vec::new());
    for _ in 0..400 {
        let state = move_of(world, id).state();
        if states.last() != Some(&state) {
            states.push(state);
        }
        if done(world) {
            return (states, acts);
        }
        acts.extend(turn(world).iter().map(|tell| tell.errand().act));
    }
    panic!("not in 400 turns: {:?} {:?}", states, move_of(world, id));
}

fn ended(id: u64) -> impl Fn(&World) -> bool {
    move |world| crate::state::is_ended(move_of(world, id).state())
}

fn reached(id: u64, state: MoveState) -> impl Fn(&World) -> bool {
    move |world| move_of(world, id).state() == state
}

fn voters(world: &World, group: u64) -> Vec<u32> {
    let mut nodes: Vec<u32> =
        world.groups[&group].members.values().filter(|(_, voter)| *voter).map(|m| m.0).collect();
    nodes.sort_unstable();
    nodes
}

#[test]
fn a_reseat_of_a_follower_takes_every_state_and_leaves_nothing() {
    use MoveState::{CatchUp, Create, Done, Lead, Planned, Retire, Seed, Swap, Verify};
    let mut world = World::new(5, 3);
    let (group, node) = (world.state.groups[0].id, outsider(&world));
    let step = reseat(&world, Some(2), Some(node));
    let left = step.from.unwrap();
    let id = add(&mut world, vec![step])[0];
    let (states, acts) = run(&mut world, id, ended(id));
    assert_eq!(states, [Planned, Create, Seed, CatchUp, Verify, Lead, Swap, Retire, Done]);
    let expected = [Act::Create, Act::Seed, Act::Change, Act::Verify, Act::Change, Act::Retire];
    assert_eq!(acts, expected);
    assert!(voters(&world, group).contains(&node) && !voters(&world, group).contains(&left.node));
    assert!(!world.nodes[&left.node].replicas.contains_key(&left.replica));
    let stored: Vec<u32> = world.state.groups[0].members.iter().map(|m| m.node).collect();
    assert!(stored.contains(&node) && stored.len() == 3);
    assert_eq!(move_of(&world, id).bytes_done, 100);
}

#[test]
fn a_command_leaves_only_after_its_state_is_stored() {
    let mut world = World::new(5, 3);
    let step = reseat(&world, Some(2), Some(outsider(&world)));
    add(&mut world, vec![step]);
    world.heartbeats();
    let first = next(&world.state, &world.sight, world.now);
    assert!(first.iter().all(|action| matches!(action, Action::Propose(_))), "{first:?}");
    // Asked again without having done anything, the answer is the same.
    assert_eq!(next(&world.state, &world.sight, world.now), first);
}

#[test]
fn a_leader_hands_over_before_it_leaves() {
    let mut world = World::new(5, 3);
    let group = world.state.groups[0].id;
    let home = world.state.groups[0].home;
    assert_eq!(world.leader_node(group), Some(home));
    let step = reseat(&world, Some(0), Some(outsider(&world)));
    let id = add(&mut world, vec![step])[0];
    let (_, acts) = run(&mut world, id, ended(id));
    let transfer = acts.iter().position(|act| *act == Act::Transfer).unwrap();
    let last_change = acts.iter().rposition(|act| *act == Act::Change).unwrap();
    assert!(transfer < last_change);
    assert_eq!(move_of(&world, id).state(), MoveState::Done);
    assert_ne!(world.leader_node(group), Some(home));
}

#[test]
fn leadership_that_comes_back_to_who_leaves_is_handed_over_again() {
    let mut world = World::new(5, 3);
    let group = world.state.groups[0].id;
    let step = reseat(&world, Some(0), Some(outsider(&world)));
    let left = step.from.unwrap();
    let id = add(&mut world, vec![step])[0];
    run(&mut world, id, reached(id, MoveState::Swap));
    // Before the membership changed, its former leader wins an election.
    let place = world.groups[&group].members.iter().filter(|(_, seat)| seat.1);
    let place = place.map(|(replica, _)| *replica).position(|replica| replica == left.replica);
    world.elect(group, place.unwrap());
    let (_, acts) = run(&mut world, id, ended(id));
    assert!(acts.contains(&Act::Transfer), "{acts:?}");
    assert_eq!(move_of(&world, id).state(), MoveState::Done);
}

#[test]
fn a_membership_that_is_left_joint_is_finished_by_the_next_leader() {
    for leads in [1, 2] {
        let mut world = World::new(5, 3);
        let (group, node) = (world.state.groups[0].id, outsider(&world));
        let step = reseat(&world, Some(2), Some(node));
        let left = step.from.unwrap();
        let next = world.state.groups[0].members[leads].replica;
        let id = add(&mut world, vec![step])[0];
        run(&mut world, id, reached(id, MoveState::Swap));
        world.is_slow = true;
        turn(&mut world);
        assert!(world.is_joint(group));
        // Before the second half is written another one wins: one that stays, or who leaves.
        let voters_of = world.groups[&group].members.iter().filter(|(_, seat)| seat.1);
        let place = voters_of.map(|(replica, _)| *replica).position(|replica| replica == next);
        world.elect(group, place.unwrap());
        world.is_slow = false;
        let (_, acts) = run(&mut world, id, ended(id));
        assert_eq!(move_of(&world, id).state(), MoveState::Done);
        assert_eq!(acts.contains(&Act::Transfer), next == left.replica, "{acts:?}");
        let voters = voters(&world, group);
        assert!(voters.contains(&node) && !voters.contains(&left.node), "{voters:?}");
    }
}

#[test]
fn a_joint_membership_without_a_move_is_finished_too() {
    for place in [0, 2] {
        let mut world = World::new(5, 3);
        let group = world.state.groups[0].id;
        // The one that leads, and one that follows.
        let gone = world.state.groups[0].members[place];
        turn(&mut world);
        world.leave_joint(group, gone.replica);
        for _ in 0..120 {
            turn(&mut world);
        }
        assert!(!world.is_joint(group));
        assert!(!world.groups[&group].members.contains_key(&gone.replica));
        assert!(!world.nodes[&gone.node].replicas.contains_key(&gone.replica));
    }
}

#[test]
fn a_group_without_a_leader_is_not_waited_for_before_it_was_asked_anything() {
    for state in [MoveState::Create, MoveState::Seed] {
        let mut world = World::new(5, 3);
        let node = outsider(&world);
        let step = reseat(&world, Some(2), Some(node));
        let others: Vec<u32> =
            world.state.groups[0].members[..2].iter().map(|member| member.node).collect();
        let id = add(&mut world, vec![step])[0];
        run(&mut world, id, reached(id, state));
        for other in &others {
            world.kill(*other);
        }
        let since = world.now.mono_ms;
        run(&mut world, id, ended(id));
        assert!(world.now.mono_ms - since >= PATIENCE_MS);
        let ended = move_of(&world, id);
        assert_eq!((ended.state(), ended.cancel), (MoveState::Cancelled, false));
        // What it made is destroyed on the group's word.
        let replica = ended.to.unwrap().replica;
        assert!(world.nodes[&node].replicas.contains_key(&replica));
        for other in others {
            world.revive(other);
        }
        for _ in 0..120 {
            turn(&mut world);
        }
        assert!(!world.nodes[&node].replicas.contains_key(&replica));
    }
}

#[test]
fn nothing_begins_without_a_leader_of_the_group() {
    let mut world = World::new(5, 3);
    let step = reseat(&world, Some(2), Some(outsider(&world)));
    let killed: Vec<u32> =
        world.state.groups[0].members[..2].iter().map(|member| member.node).collect();
    for node in killed {
        world.kill(node);
    }
    world.tick(4_000);
    turn(&mut world);
    let id = add(&mut world, vec![step])[0];
    for _ in 0..4 {
        turn(&mut world);
    }
    let waiting = move_of(&world, id);
    assert_eq!(waiting.state(), MoveState::Planned);
    assert_eq!(waiting.waiting, "a leader of the group");
}

#[test]
fn a_node_that_is_down_holds_up_none_of_its_groups() {
    let mut world = World::new(6, 3);
    let seats = |node: &u32| {
        world.state.groups.iter().filter(|group| seats_on(group, *node).next().is_some()).count()
    };
    let dead = (1..=6).max_by_key(seats).unwrap();
    world.kill(dead);
    world.tick(4_000);
    turn(&mut world);
    let mut coming: BTreeMap<u32, usize> = BTreeMap::new();
    let mut moves = Vec::new();
    for group in &world.state.groups {
        let Some(from) = seats_on(group, dead).next() else { continue };
        let free = (1..=6).find(|node| {
            seats_on(group, *node).next().is_none()
                && coming.get(node).is_none_or(|n| *n < RESEATS_PER_NODE)
        });
        let Some(node) = free else { continue };
        *coming.entry(node).or_default() += 1;
        let to = Some(v1::MemberRoute { node, replica: 0, learner: false });
        moves.push(v1::Move { group: group.id, from: Some(from), to, ..Default::default() });
    }
    let count = moves.len();
    assert!(count > RESEATS_PER_NODE);
    add(&mut world, moves);
    turn(&mut world);
    assert_eq!(world.state.running().count(), count);
}

#[test]
fn the_only_member_lets_its_successor_vote_before_it_hands_over() {
    let mut world = World::new(3, 1);
    let (group, node) = (world.state.groups[0].id, outsider(&world));
    let step = reseat(&world, Some(0), Some(node));
    let id = add(&mut world, vec![step])[0];
    let (_, acts) = run(&mut world, id, ended(id));
    let changes = acts.iter().filter(|act| **act == Act::Change).count();
    // Learner in, vote, old member out; and leadership before the last.
    assert_eq!(changes, 3, "{acts:?}");
    assert_eq!(voters(&world, group), [node]);
}

#[test]
fn the_last_member_is_never_given_up() {
    let mut world = World::new(3, 1);
    let step = reseat(&world, Some(0), None);
    let id = add(&mut world, vec![step])[0];
    let (states, acts) = run(&mut world, id, ended(id));
    assert_eq!(states, [MoveState::Planned, MoveState::Cancelled]);
    assert!(acts.is_empty());
}

#[test]
fn a_copy_that_differs_is_undone_and_destroyed() {
    let mut world = World::new(5, 3);
    let (group, node) = (world.state.groups[0].id, outsider(&world));
    let before = voters(&world, group);
    let step = reseat(&world, Some(2), Some(node));
    let id = add(&mut world, vec![step])[0];
    world.bad_digests = 1;
    run(&mut world, id, ended(id));
    let replica = move_of(&world, id).to.unwrap().replica;
    assert_eq!(move_of(&world, id).state(), MoveState::Cancelled);
    assert_eq!(voters(&world, group), before);
    assert!(!world.groups[&group].members.contains_key(&replica));
    assert!(!world.nodes[&node].replicas.contains_key(&replica));
    let why: Vec<&str> =
        world.state.history.iter().filter(|d| d.move_id == id).map(|d| d.why.as_str()).collect();
    assert!(why.contains(&"its digest differs from the leader's"), "{why:?}");
}

#[test]
fn a_new_leader_of_the_manager_goes_on_from_every_state() {
    use MoveState::{CatchUp, Create, Lead, Retire, Seed, Swap, Verify};
    for state in [Create, Seed, CatchUp, Verify, Lead, Swap, Retire] {
        let mut world = World::new(5, 3);
        let step = reseat(&world, Some(0), Some(outsider(&world)));
        let id = add(&mut world, vec![step])[0];
        run(&mut world, id, reached(id, state));
        world.change_manager();
        run(&mut world, id, ended(id));
        assert_eq!(move_of(&world, id).state(), MoveState::Done, "from {state:?}");
    }
}

#[test]
fn a_newcomer_that_died_before_it_votes_is_given_up_even_in_swap() {
    let mut world = World::new(5, 3);
    let (group, node) = (world.state.groups[0].id, outsider(&world));
    let before = voters(&world, group);
    let step = reseat(&world, Some(2), Some(node));
    let id = add(&mut world, vec![step])[0];
    run(&mut world, id, reached(id, MoveState::Swap));
    world.wipe(node);
    world.tick(4_000);
    // The new life is let in, and with it the replica is lost.
    turn(&mut world);
    let (states, _) = run(&mut world, id, ended(id));
    assert!(states.contains(&MoveState::Undo), "{states:?}");
    assert_eq!(voters(&world, group), before);
}

#[test]
fn pause_holds_back_what_has_not_begun() {
    let mut world = World::new(5, 3);
    let step = reseat(&world, Some(2), Some(outsider(&world)));
    let other = v1::Move {
        group: world.state.groups[1].id,
        to: Some(world.state.groups[1].members[1]),
        kind: MoveKind::Transfer.into(),
        ..Default::default()
    };
    let first = add(&mut world, vec![step])[0];
    run(&mut world, first, reached(first, MoveState::Seed));
    let second = add(&mut world, vec![other])[1];
    let pause = |paused| {
        Change::Settings(v1::SettingsChange { paused: Some(paused), ..Default::default() })
    };
    put(&mut world.state, pause(true), 5).unwrap();
    run(&mut world, first, ended(first));
    assert_eq!(move_of(&world, first).state(), MoveState::Done);
    assert_eq!(move_of(&world, second).state(), MoveState::Planned);
    put(&mut world.state, pause(false), 6).unwrap();
    run(&mut world, second, ended(second));
}

#[test]
fn two_reseats_per_node_and_the_urgent_first() {
    let mut world = World::new(6, 3);
    turn(&mut world);
    // A node that takes in every group that it has no seat in.
    let node = 6;
    let moves: Vec<v1::Move> = world
        .state
        .groups
        .iter()
        .filter(|group| seats_on(group, node).next().is_none())
        .zip([2, 2, 0])
        .map(|(group, priority)| v1::Move {
            group: group.id,
            to: Some(v1::MemberRoute { node, replica: 0, learner: false }),
            priority,
            ..Default::default()
        })
        .collect();
    assert_eq!(moves.len(), 3);
    let ids = add(&mut world, moves);
    turn(&mut world);
    let begun = |world: &World| -> Vec<u64> { world.state.running().map(|step| step.id).collect() };
    assert_eq!(begun(&world), [ids[0], ids[2]]);
    run(&mut world, ids[1], ended(ids[1]));
    run(&mut world, ids[2], ended(ids[2]));
    assert!(begun(&world).is_empty());
}

#[test]
fn a_planned_move_without_premise_is_given_up() {
    let mut world = World::new(5, 3);
    let (first, second) = {
        let node = outsider(&world);
        let step = reseat(&world, Some(2), Some(node));
        // The same member to leave again.
        let ids = add(&mut world, vec![step.clone(), step]);
        (ids[0], ids[1])
    };
    run(&mut world, second, ended(second));
    assert_eq!(move_of(&world, first).state(), MoveState::Done);
    assert_eq!(move_of(&world, second).state(), MoveState::Cancelled);
}

#[test]
fn homes_lead_again_one_after_another_and_pinned_members_instead() {
    let mut world = World::new(5, 3);
    let homes: BTreeMap<u64, u32> = world.state.groups.iter().map(|g| (g.id, g.home)).collect();
    let pinned = world.state.groups[1].id;
    let wanted = world.state.groups[1].members[1].node;
    world.state.groups[1].pinned = wanted;
    for id in homes.keys() {
        let group = &world.groups[id];
        let away = group.members.keys().position(|replica| *replica != group.leader).unwrap();
        world.elect(*id, away);
    }
    let is_settled = |world: &World| {
        homes.iter().all(|(id, home)| {
            let lead = if *id == pinned { wanted } else { *home };
            world.leader_node(*id) == Some(lead)
        })
    };
    let mut gone_home = 0;
    for _ in 0..400 {
        let before = world.now.mono_ms;
        let acts: Vec<Act> = turn(&mut world).iter().map(|tell| tell.errand().act).collect();
        gone_home += acts.len();
        assert!(acts.len() <= 1 && acts.iter().all(|act| *act == Act::Transfer), "{acts:?}");
        assert!(before >= 1_000 + SETTLED_MS || acts.is_empty(), "too early");
        if is_settled(&world) {
            assert!(gone_home <= homes.len());
            return;
        }
    }
    panic!("homes do not lead");
}

/// As in `leads`: a leadership is left alone for so long.
const SETTLED_MS: u64 = 2_500;

#[test]
fn a_replica_that_nobody_expects_is_retired_cancelled_or_left_alone() {
    let mut world = World::new(5, 3);
    let (group, node) = (world.state.groups[0].id, outsider(&world));
    // One that was a member until its node was away, one that never was, and one of an unknown
    // hand.
    let step = reseat(&world, Some(2), Some(node));
    let left = step.from.unwrap();
    let id = add(&mut world, vec![step])[0];
    run(&mut world, id, reached(id, MoveState::Swap));
    world.kill(left.node);
    world.tick(4_000);
    run(&mut world, id, ended(id));
    assert!(world.nodes[&left.node].replicas.contains_key(&left.replica));
    world.revive(left.node);
    world.state.counter += 1;
    let unused = annulus_types::ids::allocated_id(world.state.incarnation, world.state.counter);
    let foreign = annulus_types::ids::allocated_id(77, 4);
    for replica in [unused, foreign] {
        world.plant(left.node, group, replica);
    }
    let voter = world.state.groups[0].home;
    world.unaware.insert(voter);
    for _ in 0..120 {
        turn(&mut world);
    }
    let held = &world.nodes[&left.node].replicas;
    assert!(!held.contains_key(&left.replica), "retired");
    assert!(!held.contains_key(&unused), "cancelled");
    assert!(held.contains_key(&foreign), "left alone");
    let told = world.state.history.iter().filter(|d| d.what.contains(&foreign.to_string()));
    assert_eq!(told.count(), 1);
    // No voter obeys the one any more that made it.
    world.unaware.clear();
    for _ in 0..60 {
        turn(&mut world);
    }
    assert!(!world.nodes[&left.node].replicas.contains_key(&foreign), "cancelled");
}

#[test]
fn a_damaged_seat_of_the_managers_group_is_replaced_like_any_other() {
    let mut world = World::new(5, 3);
    let own = world.state.group(0).unwrap().clone();
    let bad = own.members[0];
    world.nodes.get_mut(&bad.node).unwrap().replicas.get_mut(&bad.replica).unwrap().halted = true;
    turn(&mut world);
    let damaged = world.sight.damaged(&world.state);
    assert_eq!(damaged, BTreeSet::from([bad.replica]));
    let step = crate::voters::next_step(&world.state, &damaged, world.now.group_ms).unwrap();
    let id = add(&mut world, vec![step])[0];
    run(&mut world, id, ended(id));
    assert_eq!(move_of(&world, id).state(), MoveState::Done);
    assert_eq!(voters(&world, 0), [1, 2, 3]);
    assert!(!world.groups[&0].members.contains_key(&bad.replica));
    assert!(!world.nodes[&bad.node].replicas.contains_key(&bad.replica));
}
