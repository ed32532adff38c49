//! Laws that hold on every way through a world of faults: of faults that pass, and of faults that stay.

use annulus_proto::v1;
use annulus_proto::v1::MoveState;
use annulus_proto::v1::manager_command::Command as Change;
use proptest::collection::vec;
use proptest::prelude::*;

use super::world::World;
use crate::sight::Act;
use crate::state::{StateExt, seats_on};

const NODES: u32 = 6;

/// What goes wrong, or on, next.
#[derive(Clone, Copy, Debug)]
enum Event {
    Round { most: usize, heard: bool },
    Deliver { at: usize, answered: bool },
    Lose(usize),
    Repeat(usize),
    Manager,
    Power(u32),
    Wipe(u32),
    Elect(usize),
    Cancel(usize),
    Slow(bool),
    Settle,
    BadDigest,
    Wait(u64),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (prop_oneof![4 => Just(99usize), 1 => 0usize..4], any::<bool>())
            .prop_map(|(most, heard)| Event::Round { most, heard }),
        10 => (any::<usize>(), prop_oneof![4 => Just(true), 1 => Just(false)])
            .prop_map(|(at, answered)| Event::Deliver { at, answered }),
        1 => any::<usize>().prop_map(Event::Lose),
        2 => any::<usize>().prop_map(Event::Repeat),
        1 => Just(Event::Manager),
        1 => (1..=NODES).prop_map(Event::Power),
        1 => (1..=NODES).prop_map(Event::Wipe),
        1 => any::<usize>().prop_map(Event::Elect),
        1 => any::<usize>().prop_map(Event::Cancel),
        1 => any::<bool>().prop_map(Event::Slow),
        1 => Just(Event::Settle),
        1 => Just(Event::BadDigest),
        2 => prop_oneof![Just(200u64), Just(2_500), Just(20_000)].prop_map(Event::Wait),
    ]
}

/// A step of some group; `kind` chooses among those that a planner could take.
fn step(state: &v1::ManagerState, (group, kind, pick): (usize, usize, usize)) -> v1::Move {
    let groups: Vec<&v1::GroupRecord> = state.all_groups().collect();
    let group = groups[group % groups.len()];
    let from = group.members[pick % group.members.len()];
    let outside = (1..=NODES).filter(|node| seats_on(group, *node).next().is_none());
    let outside: Vec<u32> = outside.collect();
    let to = |node: u32| Some(v1::MemberRoute { node, replica: 0, learner: false });
    let (kind, from, to) = match kind % 6 {
        0 | 1 => (v1::MoveKind::Reseat, Some(from), to(outside[pick % outside.len()])),
        // Leadership cannot be handed from one replica of a node to another, so not for one member.
        2 if group.members.len() > 1 => (v1::MoveKind::Reseat, Some(from), to(from.node)),
        2 | 3 => (v1::MoveKind::Reseat, None, to(outside[pick % outside.len()])),
        4 => (v1::MoveKind::Transfer, None, to(from.node)),
        _ => (v1::MoveKind::Rehome, None, to(from.node)),
    };
    let priority = (pick % 3) as u32;
    v1::Move { kind: kind.into(), group: group.id, from, to, priority, ..Default::default() }
}

/// A seat that is given up, as a planner does it when another one was filled before; or without that.
fn drop_steps(state: &v1::ManagerState, (group, pick): (usize, usize)) -> Vec<v1::Move> {
    let group = &state.groups[group % state.groups.len()];
    let from = Some(group.members[pick % group.members.len()]);
    let goes = v1::Move { group: group.id, from, ..Default::default() };
    if pick / 7 % 4 == 0 {
        return vec![goes];
    }
    let outside = (1..=NODES).filter(|node| seats_on(group, *node).next().is_none());
    let node =
        outside.cycle().nth(pick % 5).expect("a group has fewer members than there are nodes");
    let to = Some(v1::MemberRoute { node, replica: 0, learner: false });
    vec![v1::Move { to, from: None, ..goes.clone() }, goes]
}

fn happen(world: &mut World, event: Event, wiped: &mut Option<u32>) {
    world.tick(100);
    match event {
        Event::Round { most, heard } => {
            if heard {
                world.heartbeats();
            }
            world.round(most);
        }
        Event::Deliver { at, answered } => world.deliver(at, answered),
        Event::Lose(at) => world.lose(at),
        Event::Repeat(at) => world.repeat(at),
        Event::Manager => world.change_manager(),
        Event::Power(node) => {
            let down = world.nodes.iter().find(|(_, node)| !node.is_up).map(|(id, _)| *id);
            match down {
                Some(down) => world.revive(down),
                None if wiped.is_none() => world.kill(node),
                None => {}
            }
        }
        // One at a time: a majority of every group lives.
        Event::Wipe(node) => {
            if wiped.is_none() && world.nodes.values().all(|node| node.is_up) {
                world.wipe(node);
                *wiped = Some(node);
            }
        }
        Event::Elect(pick) => {
            let ids: Vec<u64> = world.groups.keys().copied().collect();
            world.elect(ids[pick % ids.len()], pick / 7);
        }
        Event::Cancel(pick) => {
            let ids: Vec<u64> = world.state.unfinished().map(|step| step.id).collect();
            if !ids.is_empty() {
                let id = ids[pick % ids.len()];
                world.propose(Change::Cancel(v1::CancelMove { id }));
            }
        }
        Event::Slow(is_slow) => world.is_slow = is_slow,
        Event::Settle => world.settle(),
        Event::BadDigest => world.bad_digests = 1,
        Event::Wait(ms) => world.tick(ms),
    }
}

/// Whether nothing is left to do.
fn is_tidy(world: &World) -> bool {
    let members_agree = world.state.all_groups().all(|record| {
        let group = &world.groups[&record.id];
        record.members.len() == group.members.len()
            && record
                .members
                .iter()
                .all(|member| group.members.get(&member.replica) == Some(&(member.node, true)))
    });
    let replicas_are_members = world.nodes.values().all(|node| {
        node.replicas.iter().all(|(id, held)| world.groups[&held.group].members.contains_key(id))
    });
    members_agree && replicas_are_members && world.state.unfinished().next().is_none()
}

/// From here on nothing goes wrong any more.
fn calm_down(world: &mut World) {
    let ids: Vec<u32> = world.nodes.keys().copied().collect();
    for id in ids {
        world.revive(id);
    }
    (world.is_slow, world.bad_digests) = (false, 0);
    for _ in 0..800 {
        world.tick(250);
        world.settle();
        world.heartbeats();
        world.round(usize::MAX);
        while !world.wire.is_empty() {
            world.deliver(0, true);
        }
        if is_tidy(world) {
            return;
        }
    }
    let moves: Vec<&v1::Move> = world.state.unfinished().collect();
    panic!("still to do: {moves:?} {:?} {:?}", world.groups, world.nodes);
}

fn add(world: &mut World, moves: Vec<v1::Move>) {
    let table_version = world.state.table_version;
    let plan = v1::AddMoves { plan: 1, table_version, moves, ..Default::default() };
    crate::testing::put(&mut world.state, Change::AddMoves(plan), world.now.group_ms).unwrap();
}

/// What goes wrong for good, until something else does.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Leaderless(usize),
    Led(usize),
    Refuses(u32, Act),
    Stubborn(u32),
    Bury(u32),
}

fn any_fault() -> impl Strategy<Value = Fault> {
    let act = prop_oneof![
        Just(Act::Create),
        Just(Act::Seed),
        Just(Act::Change),
        Just(Act::Verify),
        Just(Act::Transfer),
        Just(Act::Retire),
        Just(Act::Cancel),
    ];
    prop_oneof![
        3 => any::<usize>().prop_map(Fault::Leaderless),
        2 => any::<usize>().prop_map(Fault::Led),
        3 => (1..=NODES, act).prop_map(|(node, act)| Fault::Refuses(node, act)),
        2 => (1..=NODES).prop_map(Fault::Stubborn),
        1 => (1..=NODES).prop_map(Fault::Bury),
    ]
}

fn any_turn() -> impl Strategy<Value = Result<Event, Fault>> {
    prop_oneof![
        12 => any_event().prop_map(Ok::<Event, Fault>),
        1 => any_fault().prop_map(Err::<Event, Fault>),
    ]
}

fn go_wrong(world: &mut World, fault: Fault) {
    let ids: Vec<u64> = world.groups.keys().copied().collect();
    match fault {
        Fault::Leaderless(pick) => {
            world.leaderless.insert(ids[pick % ids.len()]);
        }
        Fault::Led(pick) => {
            world.leaderless.remove(&ids[pick % ids.len()]);
        }
        Fault::Refuses(node, act) => {
            world.refusals.insert((node, act));
        }
        Fault::Stubborn(node) => {
            world.stubborn.insert(node);
        }
        // One at a time, as with power.
        Fault::Bury(node) => {
            if world.nodes.values().all(|node| node.is_up) {
                world.bury(node);
            }
        }
    }
}

/// The first move that should have ended and has not. One that never began may wait for a leader, or for a
/// change that nobody finishes.
fn unended(world: &World) -> Option<String> {
    let may_wait = |step: &&v1::Move| {
        let is_settled = world.groups[&step.group].next.is_none();
        let is_led = world.leader_node(step.group).is_some();
        step.state() == MoveState::Planned && !(is_led && is_settled)
    };
    world.state.unfinished().find(|step| !may_wait(step)).map(|step| format!("{step:?}"))
}

/// The first group that could be led by its home and is not.
fn not_at_home(world: &World) -> Option<String> {
    let away = world.state.groups.iter().find(|record| {
        let group = &world.groups[&record.id];
        let Some(leader) = world.leader_node(record.id) else { return false };
        let known = |replica: &u64| record.members.iter().any(|seat| seat.replica == *replica);
        let seat = group.members.iter().find(|(replica, (node, voter))| {
            *node == record.home
                && *voter
                && known(replica)
                && world.is_alive(**replica, *node)
                && !world.state.is_lost(**replica)
        });
        let is_hindered = world.refusals.contains(&(leader, Act::Transfer))
            || world.stubborn.contains(&record.home)
            || group.next.is_some();
        let moves = world.state.running().any(|step| step.group == record.id);
        seat.is_some() && !is_hindered && !moves && leader != record.home
    });
    away.map(|record| format!("{record:?} is led by {:?}", world.leader_node(record.id)))
}

/// The first replica or learner that is left over where somebody could clear it up.
fn left_over(world: &World) -> Option<String> {
    // A leader that leaves has to be able to hand over before its change can be finished.
    let hinders = |node: u32| {
        let refuses = |act| world.refusals.contains(&(node, act));
        refuses(Act::Change) || refuses(Act::Transfer) || world.stubborn.contains(&node)
    };
    let is_led = |id: u64| {
        let mut members = world.groups[&id].members.values();
        world.leader_node(id).is_some() && members.all(|(node, _)| !hinders(*node))
    };
    let refuses = |node: u32| {
        [Act::Retire, Act::Cancel].iter().any(|act| world.refusals.contains(&(node, *act)))
    };
    for (id, node) in world.nodes.iter().filter(|(id, node)| node.is_up && !refuses(**id)) {
        let stray = node.replicas.iter().find(|(replica, held)| {
            is_led(held.group) && !world.groups[&held.group].members.contains_key(*replica)
        });
        if let Some((replica, held)) = stray {
            return Some(format!("replica {replica} on node {id}: {held:?}"));
        }
    }
    let has_learner = |id: &u64| {
        let group = &world.groups[id];
        group.next.is_some() || group.members.values().any(|(_, voter)| !voter)
    };
    world.groups.keys().find(|id| is_led(**id) && has_learner(id)).map(|id| format!("group {id}"))
}

/// Nothing goes wrong any more, but what went wrong for good stays so.
fn settle_with_faults(world: &mut World) {
    let ids: Vec<u32> = world.nodes.keys().copied().collect();
    for id in ids {
        world.revive(id);
    }
    (world.is_slow, world.bad_digests) = (false, 0);
    let mut wrong = None;
    // Enough for five moves of one group, each given up twice.
    for _ in 0..1_500 {
        world.tick(1_000);
        world.settle();
        world.heartbeats();
        world.round(usize::MAX);
        while !world.wire.is_empty() {
            world.deliver(0, true);
        }
        wrong = unended(world).or_else(|| not_at_home(world)).or_else(|| left_over(world));
        if wrong.is_none() {
            return;
        }
    }
    let faults = (&world.refusals, &world.stubborn, &world.leaderless, &world.buried);
    panic!("{wrong:?} with {faults:?}, {:?} {:?}", world.groups, world.nodes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Groups without a leader for a while or for ever, nodes that refuse commands, do not take
    /// leadership over or are gone for good: moves end all the same, and whoever has no problem does
    /// not feel those of others. That no live voter is lost and nothing is destroyed without proof is
    /// asserted by the world itself.
    #[test]
    fn every_move_ends_whatever_never_comes(
        steps in vec((any::<usize>(), any::<usize>(), any::<usize>()), 1..4),
        dropped in proptest::option::of((any::<usize>(), any::<usize>())),
        replication in 1u32..=3,
        events in vec(any_turn(), 0..150),
    ) {
        let mut world = World::new(NODES, replication);
        let mut moves: Vec<v1::Move> =
            steps.into_iter().map(|choice| step(&world.state, choice)).collect();
        // Whatever else is planned for the same group.
        moves.extend(dropped.into_iter().flat_map(|choice| drop_steps(&world.state, choice)));
        add(&mut world, moves);
        let mut wiped = None;
        for event in events {
            match event {
                // A member that lost its disk can be the only one of a small group.
                Ok(Event::Wipe(_)) if replication < 3 => {}
                Ok(event) => happen(&mut world, event, &mut wiped),
                Err(fault) => go_wrong(&mut world, fault),
            }
        }
        settle_with_faults(&mut world);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Destroyed members, changes without comparison and lost members panic in the world itself.
    #[test]
    fn every_move_ends_and_leaves_nothing_behind(
        steps in vec((any::<usize>(), any::<usize>(), any::<usize>()), 1..8),
        dropped in proptest::option::of((any::<usize>(), any::<usize>())),
        replication in 1u32..=3,
        events in vec(any_event(), 0..250),
    ) {
        // Faults take at most one member of a group, so smaller groups only see lost messages.
        let mut world = World::new(NODES, replication);
        let is_small = replication < 3;
        let mut moves: Vec<v1::Move> =
            steps.into_iter().map(|choice| step(&world.state, choice)).collect();
        // Whatever else is planned for the same group.
        moves.extend(dropped.into_iter().flat_map(|choice| drop_steps(&world.state, choice)));
        add(&mut world, moves);
        let mut wiped = None;
        for event in events {
            let is_power = matches!(event, Event::Power(_) | Event::Wipe(_));
            if !is_small || !is_power {
                happen(&mut world, event, &mut wiped);
            }
        }
        calm_down(&mut world);
        let ended = |step: &v1::Move| {
            matches!(step.state(), MoveState::Done | MoveState::Cancelled)
        };
        prop_assert!(world.state.moves.iter().all(ended));
        // What was not cancelled came to pass, also where nobody watched.
        for step in world.state.moves.iter().filter(|step| step.state() == MoveState::Done) {
            let members = &world.groups[&step.group].members;
            let (from, to) = (step.from, step.to.filter(|to| to.replica != 0));
            prop_assert!(from.is_none_or(|from| !members.contains_key(&from.replica)));
            let later = |other: &v1::Move| {
                other.group == step.group
                    && other.state() == MoveState::Done
                    && other.from.map(|seat| seat.replica) == to.map(|seat| seat.replica)
            };
            let replaced = world.state.moves.iter().any(later);
            prop_assert!(replaced || to.is_none_or(|to| members.contains_key(&to.replica)));
        }
    }
}
