//! Whom a group counts on: no member is given up for one that does not come, serves nothing, or is not
//! enough; nothing begins on a membership that may be another one; nothing is destroyed on a proof from
//! before the replica came.

use super::exits::{is_clean, last_word, pass, stopped_in, until};
use super::*;

fn has_begun(world: &World, id: u64) -> bool {
    let lead = format!("move {id}: LEAD");
    world.state.history.iter().any(|decision| decision.what == lead)
}

#[test]
fn a_member_stays_when_the_one_that_was_to_come_for_it_does_not() {
    // Its node never makes the replica, or an operator stops it.
    for by_operator in [false, true] {
        let mut world = World::new(5, 3);
        let (group, node) = (world.state.groups[0].id, outsider(&world));
        let before = voters(&world, group);
        let comes = reseat(&world, None, Some(node));
        let leads = v1::Move { kind: MoveKind::Rehome.into(), ..comes.clone() };
        let goes = reseat(&world, Some(0), None);
        let ids = add(&mut world, vec![comes, leads, goes]);
        if by_operator {
            run(&mut world, ids[0], reached(ids[0], MoveState::Seed));
            let cancel = Change::Cancel(v1::CancelMove { id: ids[0] });
            put(&mut world.state, cancel, world.now.group_ms).unwrap();
        } else {
            world.refusals.insert((node, Act::Create));
        }
        until(&mut world, 3 * PATIENCE_MS, |world| world.state.unfinished().next().is_none());
        for id in &ids {
            let step = move_of(&world, *id);
            assert_eq!((step.state(), step.cancel), (MoveState::Cancelled, by_operator));
        }
        assert!(last_word(&world, ids[2]).contains("builds on move"));
        assert!(!has_begun(&world, ids[2]));
        assert_eq!(voters(&world, group), before);
        until(&mut world, 30_000, is_clean);
    }
}

#[test]
fn a_member_goes_without_a_successor_only_if_as_many_live_ones_stay_as_should() {
    // Nodes, members that the group should have, whether another member is down, whether its node drains.
    let cases = [
        (5, 3, false, false, false),
        (5, 3, false, true, false),
        (5, 2, false, false, true),
        (5, 2, true, false, false),
        // There are no more nodes.
        (3, 3, false, true, true),
        (3, 3, true, true, false),
    ];
    for (nodes, replication, is_down, drains, goes) in cases {
        let mut world = World::new(nodes, 3);
        world.state.replication = replication;
        let record = world.state.groups[0].clone();
        if is_down {
            world.kill(record.members[1].node);
            world.tick(4_000);
            turn(&mut world);
        }
        for node in &mut world.state.nodes {
            node.draining = drains && crate::state::id_of(node) == record.members[2].node;
        }
        let step = reseat(&world, Some(2), None);
        let id = add(&mut world, vec![step])[0];
        until(&mut world, 30_000, ended(id));
        let end = if goes { MoveState::Done } else { MoveState::Cancelled };
        assert_eq!(move_of(&world, id).state(), end, "{replication} of {nodes}");
        assert_eq!(has_begun(&world, id), goes);
        assert_eq!(voters(&world, record.id).len(), if goes { 2 } else { 3 });
    }
}

#[test]
fn nobody_leaves_for_a_newcomer_that_serves_nothing() {
    for is_held in [true, false] {
        let (mut world, group, id, to) = stopped_in(MoveState::Swap, 2);
        let before = voters(&world, group);
        let replicas = &mut world.nodes.get_mut(&to.node).unwrap().replicas;
        if is_held {
            replicas.get_mut(&to.replica).unwrap().halted = true;
        } else {
            replicas.remove(&to.replica);
        }
        let took_ms = until(&mut world, 3 * PATIENCE_MS, ended(id));
        assert!(took_ms + 1_000 >= PATIENCE_MS, "{took_ms} ms");
        assert_eq!(move_of(&world, id).state(), MoveState::Cancelled);
        assert_eq!(voters(&world, group), before);
        until(&mut world, 60_000, is_clean);
    }
}

#[test]
fn a_newcomer_that_serves_again_in_time_gets_its_vote() {
    let (mut world, group, id, to) = stopped_in(MoveState::Swap, 2);
    let halt = |world: &mut World, halted: bool| {
        let replicas = &mut world.nodes.get_mut(&to.node).unwrap().replicas;
        replicas.get_mut(&to.replica).unwrap().halted = halted;
    };
    halt(&mut world, true);
    pass(&mut world, PATIENCE_MS / 2);
    let step = move_of(&world, id);
    assert_eq!(step.state(), MoveState::Swap);
    assert_eq!(step.waiting, "the new replica to be reported sound");
    halt(&mut world, false);
    until(&mut world, 30_000, ended(id));
    assert_eq!(move_of(&world, id).state(), MoveState::Done);
    assert!(voters(&world, group).contains(&to.node));
}

#[test]
fn a_voter_that_serves_nothing_is_none_to_stay_behind() {
    let mut world = World::new(5, 3);
    world.state.replication = 2;
    let record = world.state.groups[0].clone();
    let other = record.members[1];
    let step = reseat(&world, Some(2), None);
    let id = add(&mut world, vec![step])[0];
    run(&mut world, id, reached(id, MoveState::Swap));
    let replicas = &mut world.nodes.get_mut(&other.node).unwrap().replicas;
    replicas.get_mut(&other.replica).unwrap().halted = true;
    until(&mut world, 10_000, ended(id));
    assert_eq!(move_of(&world, id).state(), MoveState::Cancelled);
    assert_eq!(last_word(&world, id), "the others would be no majority");
    assert_eq!(voters(&world, record.id).len(), 3);
}

#[test]
fn nothing_begins_on_a_membership_that_is_not_settled() {
    let mut world = World::new(5, 3);
    let group = world.state.groups[0].id;
    turn(&mut world);
    let gone = world.state.groups[0].members[2];
    world.leave_joint(group, gone.replica);
    world.refusals.extend((1..=5).map(|node| (node, Act::Change)));
    let step = reseat(&world, Some(1), Some(outsider(&world)));
    let id = add(&mut world, vec![step])[0];
    pass(&mut world, 10_000);
    let step = move_of(&world, id);
    assert_eq!(step.state(), MoveState::Planned);
    assert_eq!(step.waiting, "the membership to settle");
    world.refusals.clear();
    until(&mut world, 60_000, ended(id));
    assert_eq!(move_of(&world, id).state(), MoveState::Done);
}

#[test]
fn nothing_begins_on_a_membership_that_is_not_stored() {
    let mut world = World::new(5, 3);
    let record = world.state.groups[1].clone();
    assert_eq!((record.membership_index, world.groups[&record.id].index), (0, 1));
    let node = (1..).find(|node| seats_on(&record, *node).next().is_none()).unwrap();
    let to = Some(v1::MemberRoute { node, replica: 0, learner: false });
    let from = Some(record.members[2]);
    let step = v1::Move { group: record.id, from, to, ..Default::default() };
    let id = add(&mut world, vec![step])[0];
    let begins = |world: &World| {
        let is_advance = |action: &Action| match action {
            Action::Propose(command) => {
                matches!(&command.command, Some(Change::Advance(step)) if step.id == id)
            }
            Action::Tell(_) => false,
        };
        next(&world.state, &world.sight, world.now).iter().any(is_advance)
    };
    world.heartbeats();
    assert!(!begins(&world));
    turn(&mut world);
    assert_eq!(world.state.groups[1].membership_index, 1);
    assert!(begins(&world));
}

#[test]
fn a_lost_log_is_made_up_for_by_no_membership_from_before_the_replica_came() {
    let mut world = World::new(5, 3);
    let come = |world: &mut World, place: usize| {
        let step = reseat(world, Some(place), Some(outsider(world)));
        let id = add(world, vec![step])[0];
        until(world, 30_000, ended(id));
        assert_eq!(move_of(world, id).state(), MoveState::Done);
        move_of(world, id).to.unwrap()
    };
    // Its group has had other memberships before it comes.
    come(&mut world, 1);
    let to = come(&mut world, 2);
    assert!(world.state.groups[0].members.contains(&to));
    // It goes again while its node is away, and its log is lost.
    let members = &world.state.groups[0].members;
    let place = members.iter().position(|member| member.replica == to.replica);
    let step = reseat(&world, place, Some(outsider(&world)));
    let id = add(&mut world, vec![step])[0];
    run(&mut world, id, reached(id, MoveState::Swap));
    world.kill(to.node);
    until(&mut world, 30_000, ended(id));
    assert_eq!(move_of(&world, id).state(), MoveState::Done);
    let held = world.nodes.get_mut(&to.node).unwrap().replicas.get_mut(&to.replica).unwrap();
    (held.halted, held.is_partial) = (true, true);
    world.revive(to.node);
    until(&mut world, 60_000, is_clean);
}

#[test]
fn what_is_left_in_a_group_that_never_changed_is_told_and_goes_with_its_first_change() {
    let (mut world, _, id, to) = stopped_in(MoveState::Seed, 2);
    assert_eq!(world.state.groups[0].membership_index, 0);
    let held = world.nodes.get_mut(&to.node).unwrap().replicas.get_mut(&to.replica).unwrap();
    (held.halted, held.is_partial) = (true, true);
    put(&mut world.state, Change::Cancel(v1::CancelMove { id }), world.now.group_ms).unwrap();
    until(&mut world, 2 * PATIENCE_MS, ended(id));
    let told = |world: &World| {
        let decisions = world.state.history.iter();
        decisions
            .filter(|told| told.what.contains(&format!("keeps replica {}", to.replica)))
            .count()
    };
    until(&mut world, 3 * PATIENCE_MS, |world| told(world) > 0);
    pass(&mut world, PATIENCE_MS);
    assert_eq!(told(&world), 1);
    assert!(world.nodes[&to.node].replicas.contains_key(&to.replica));

    let record = &world.state.groups[0];
    let is_free = |node: &u32| *node != to.node && seats_on(record, *node).next().is_none();
    let node = (1..).find(is_free);
    let step = reseat(&world, Some(2), node);
    let id = add(&mut world, vec![step])[0];
    until(&mut world, 60_000, ended(id));
    assert_eq!(move_of(&world, id).state(), MoveState::Done);
    until(&mut world, 60_000, is_clean);
}
