//! What the tour makes of moves and tables.

use annulus_types::{GroupId, GroupRoute, MemberRoute, NodeInfo, ReplicaId};

use super::*;

/// Groups of three members each, the first of which is the home; four nodes.
fn table(groups: &[[u32; 3]]) -> RoutingTable {
    let member = |node: &u32| MemberRoute {
        node: NodeId(*node),
        replica: ReplicaId(u64::from(*node)),
        role: MemberRole::Voter,
    };
    let group = |(id, members): (u64, &[u32; 3])| GroupRoute {
        id: GroupId(id),
        home: NodeId(members[0]),
        lane: 0,
        members: members.iter().map(member).collect(),
        leader: None,
        term: 1,
        membership_index: 1,
    };
    RoutingTable {
        groups: (1..).zip(groups).map(group).collect(),
        nodes: (1..=4).map(|id| NodeInfo { id: NodeId(id), ..NodeInfo::default() }).collect(),
        ..RoutingTable::default()
    }
}

#[test]
fn a_node_without_its_share_is_seen() {
    let level = table(&[[1, 2, 3], [2, 3, 4], [3, 4, 1], [4, 1, 2]]);
    assert!(is_even(&shares(&level), 4));
    assert!(!is_even(&shares(&level), 5), "one has not come yet");
    let empty = table(&[[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]]);
    assert!(!is_even(&shares(&empty), 4), "node 4 has nothing");
    let homeless = table(&[[1, 2, 3], [2, 3, 4], [3, 4, 1], [2, 4, 1], [1, 2, 4], [3, 4, 2]]);
    let share = shares(&homeless)[&NodeId(4)];
    assert_eq!(share, Share { seats: 5, homes: 0 });
    assert!(!is_even(&shares(&homeless), 4), "node 4 leads nothing");
}

#[test]
fn a_learner_has_no_seat_yet() {
    let mut table = table(&[[1, 2, 3]]);
    table.groups[0].members[2].role = MemberRole::Learner;
    assert_eq!(shares(&table)[&NodeId(3)].seats, 0);
}

fn step(id: u64, state: v1::MoveState, bytes_done: u64) -> v1::Move {
    let seat = |node| Some(v1::MemberRoute { node, replica: 7, learner: false });
    v1::Move {
        id,
        kind: v1::MoveKind::Reseat.into(),
        group: 10,
        from: seat(2),
        to: seat(4),
        state: state.into(),
        bytes_done,
        ..Default::default()
    }
}

#[test]
fn each_move_is_told_once_when_it_has_ended() {
    const MIB: u64 = 1024 * 1024;
    let former = [step(1, v1::MoveState::Done, 9 * MIB)];
    let mut joined = Joined::default();
    let mut followed = Followed::new(&former);
    let begun = [
        former[0].clone(),
        step(2, v1::MoveState::Done, 2 * MIB),
        step(3, v1::MoveState::Seed, MIB),
    ];
    let told: Vec<String> = followed.take_in(&begun, &mut joined).into_iter().map(line).collect();
    assert_eq!(told, ["group 10: seat from node 2 to node 4, 2.0 MiB copied"]);
    assert_eq!((joined.moves, joined.ended, joined.bytes), (2, 1, 3 * MIB));
    assert!(has_begun(&begun[2]) && !has_begun(&begun[1]));

    let over = [begun[1].clone(), step(3, v1::MoveState::Cancelled, MIB)];
    let told: Vec<String> = followed.take_in(&over, &mut joined).into_iter().map(line).collect();
    assert_eq!(told, ["group 10: seat from node 2 to node 4, 1.0 MiB copied; undone"]);
    assert_eq!((joined.moves, joined.ended, joined.undone), (2, 2, 1));
    assert!(followed.take_in(&over, &mut joined).is_empty());
}

#[test]
fn a_table_of_shares_has_every_node() {
    let before = BTreeMap::from([(NodeId(1), Share { seats: 12, homes: 4 })]);
    let after = BTreeMap::from([
        (NodeId(1), Share { seats: 9, homes: 3 }),
        (NodeId(4), Share { seats: 9, homes: 3 }),
    ]);
    assert_eq!(
        before_and_after(&before, &after),
        ["node 1: 12 ->  9 seats, at home 4 -> 3", "node 4:  0 ->  9 seats, at home 0 -> 3"]
    );
}
