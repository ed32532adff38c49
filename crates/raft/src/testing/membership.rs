//! The members of a group change (R1 b, H3, H6).

use std::collections::{BTreeMap, BTreeSet};

use annulus_types::{Error, ErrorKind, MayHaveApplied, NodeId, ReplicaId};

use super::cluster::{LONG, TestCluster, ms, until};
use super::node::replica_of;
use crate::gate::Weaken;
use crate::membership::{Change, MembershipView};
use crate::options::WeakenHost;
use crate::types::{Membership, Payload, Seat};

pub(super) fn seat_of(node: u32) -> (ReplicaId, NodeId) {
    (replica_of(node), NodeId(node))
}

/// Node 4's replica joins as a learner.
fn join_4() -> Change {
    Change { add_learner: Some(seat_of(4)), ..Change::default() }
}

/// Changes the membership that node `leader` has in force.
pub(super) async fn change(cluster: &TestCluster, leader: u32, change: Change) -> MembershipView {
    // New voters have to confirm first.
    until("it is sure to lead", || cluster.gate_is_open(leader)).await;
    let group = cluster.group(leader);
    let index = group.membership().index;
    let changed = group.change_membership(index, change, LONG).await;
    changed.expect("nothing is in the way")
}

/// The nodes that vote.
fn voters(view: &MembershipView) -> Vec<u32> {
    view.seats.iter().filter(|seat| seat.voter).map(|seat| seat.node.0).collect()
}

/// What the founder of a group answers when the group has grown, the founder is cut off, and another
/// leads.
async fn the_founder_of_a_grown_group_is_cut_off(weaken: WeakenHost) -> Option<u64> {
    let cluster = Box::pin(TestCluster::founded(3, 1, 91, weaken)).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    for node in [2, 3] {
        cluster.open_again(node).await.expect("a new replica opens");
        let (replica, _) = seat_of(node);
        let grow = Change {
            add_learner: Some(seat_of(node)),
            promote: Some(replica),
            ..Change::default()
        };
        change(&cluster, 1, grow).await;
    }
    assert_eq!(voters(&cluster.group(1).membership()), [1, 2, 3]);
    until("all hold it", || cluster.everyone_holds("x", 1)).await;
    until("it is sure to lead", || cluster.gate_is_open(1)).await;

    cluster.partition(1, 2);
    cluster.partition(1, 3);
    until("another is elected", || cluster.leads(2) || cluster.leads(3)).await;
    cluster.write_unguarded_at(&[2, 3], "x", 9).await;
    cluster.read(1, "x", false, ms(20)).await.ok().flatten()
}

#[tokio::test(start_paused = true)]
async fn a_leader_counts_the_voters_that_it_has_added() {
    let story = the_founder_of_a_grown_group_is_cut_off(WeakenHost::default());
    assert_eq!(Box::pin(story).await, None);

    let gate = Weaken { ignore_membership: true, ..Weaken::default() };
    let weaken = WeakenHost { gate, ..WeakenHost::default() };
    let answer = Box::pin(the_founder_of_a_grown_group_is_cut_off(weaken)).await;
    assert_eq!(answer, Some(1), "9 was there already");
}

fn is_moved_on(refused: &Error) -> bool {
    matches!(&refused.kind, ErrorKind::BadRequest { field, .. } if field == "membership_index")
}

/// Whether a learner is removed by a command that was decided when it had not joined yet.
async fn a_command_comes_late(weaken: WeakenHost) -> bool {
    let cluster = Box::pin(TestCluster::founded(4, 3, 92, weaken)).await;
    cluster.open_again(4).await.expect("a new replica opens");
    let group = cluster.group(1);
    let seen = group.membership();
    assert!(seen.committed && !seen.joint && voters(&seen) == [1, 2, 3], "{seen:?}");
    let added = group.change_membership(seen.index, join_4(), LONG).await.expect("it leads");
    assert!(added.index > seen.index && added.seats.len() == 4 && added.committed, "{added:?}");

    // The same again: it is so, whatever was seen.
    let again = group.change_membership(seen.index, join_4(), LONG).await.expect("it is so");
    assert_eq!(again.index, added.index, "nothing was written");

    let (replica, _) = seat_of(4);
    let leave = Change { remove: Some(replica), ..Change::default() };
    let late = group.change_membership(seen.index, leave, LONG).await;
    if let Err(refused) = &late {
        assert!(is_moved_on(refused), "{refused:?}");
        assert_eq!(group.membership().index, added.index, "nothing has happened");
        let left = group.change_membership(added.index, leave, LONG).await.expect("it leads");
        assert_eq!((left.seats.len(), left.index > added.index), (3, true));
    }
    let refused = cluster.group(2).change_membership(added.index, leave, LONG).await;
    let refused = refused.expect_err("it does not lead");
    assert_eq!(refused.kind, ErrorKind::NotLeader { leader: Some(NodeId(1)) });
    late.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_command_counts_for_the_membership_that_it_was_decided_on() {
    assert!(!Box::pin(a_command_comes_late(WeakenHost::default())).await);
    let weaken = WeakenHost { any_membership: true, ..WeakenHost::default() };
    assert!(Box::pin(a_command_comes_late(weaken)).await);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_does_not_say_that_it_is_so_already() {
    let cluster = Box::pin(TestCluster::new(3, 93, WeakenHost::default())).await;
    let group = cluster.group(1);
    cluster.partition(1, 2);
    cluster.partition(1, 3);
    assert!(cluster.gate_is_open(1), "it does not know yet");
    let index = group.membership().index;
    let answer = group.change_membership(index, Change::default(), ms(300)).await;
    assert_eq!(answer, Err(Error::unknown(ErrorKind::OutcomeUnknown)));
}

/// Voters of nodes, in the order of nodes 1 to 4.
fn config(nodes: [u32; 3]) -> BTreeSet<u64> {
    nodes.into_iter().map(|node| replica_of(node).0).collect()
}

#[tokio::test(start_paused = true)]
async fn a_change_that_was_left_half_way_is_finished_first() {
    let cluster = Box::pin(TestCluster::founded(4, 3, 94, WeakenHost::default())).await;
    cluster.open_again(4).await.expect("a new replica opens");
    change(&cluster, 1, join_4()).await;
    // What a leader leaves that dies between the two entries.
    let seats: BTreeMap<u64, Seat> =
        (1..=4).map(|node| (replica_of(node).0, Seat { node: NodeId(node) })).collect();
    let configs = vec![config([1, 2, 3]), config([1, 2, 4])];
    let joint = Membership::new(configs, seats).expect("every voter has a seat");
    let group = cluster.group(1);
    let left = Box::pin(group.raft.append_membership(joint, Payload::Blank, Vec::new())).await;
    left.expect("all are there");
    let seen = group.membership();
    assert!(seen.joint && voters(&seen) == [1, 2, 3, 4], "{seen:?}");

    let swap =
        Change { promote: Some(replica_of(4)), remove: Some(replica_of(3)), ..Change::default() };
    let refused = group.change_membership(seen.index - 1, swap, LONG).await;
    assert!(is_moved_on(&refused.expect_err("it is joint by now")));
    let made = group.change_membership(seen.index, swap, LONG).await.expect("it leads");
    assert_eq!((made.joint, made.committed, voters(&made)), (false, true, vec![1, 2, 4]));
    assert_eq!((made.seats.len(), made.index), (3, seen.index + 1), "one entry was left");
    cluster.propose(1, "x", 1, LONG).await.expect("the group works");
}

#[tokio::test(start_paused = true)]
async fn a_leader_gives_leadership_away_before_its_seat() {
    let cluster = Box::pin(TestCluster::new(3, 95, WeakenHost::default())).await;
    let group = cluster.group(1);
    let leave = Change { remove: Some(replica_of(1)), ..Change::default() };
    let index = group.membership().index;
    let refused = group.change_membership(index, leave, LONG).await.expect_err("it leads");
    assert!(matches!(refused.kind, ErrorKind::NotReady { .. }), "{refused:?}");
    assert_eq!(group.membership().index, index);
    group.transfer(NodeId(2), LONG).await.expect("node 2 is a voter with a link");
    until("node 2 leads", || cluster.gate_is_open(2)).await;
    let made = change(&cluster, 2, leave).await;
    assert_eq!(voters(&made), [2, 3]);
    cluster.propose(2, "x", 1, LONG).await.expect("the group works");
}

/// Replica 4 takes the place of replica `leaves`.
fn swap_4_for(leaves: u32) -> Change {
    Change { promote: Some(replica_of(4)), remove: Some(replica_of(leaves)), ..Change::default() }
}

#[tokio::test(start_paused = true)]
async fn voters_that_do_not_answer_are_not_proposed() {
    let cluster = Box::pin(TestCluster::founded(4, 3, 96, WeakenHost::default())).await;
    cluster.open_again(4).await.expect("a new replica opens");
    let index = change(&cluster, 1, join_4()).await.index;
    // Nodes 1 and 2 are a majority of the present voters, node 1 alone is none of those to be.
    cluster.partition(1, 3);
    cluster.partition(1, 4);
    let group = cluster.group(1);
    let refused = group.change_membership(index, swap_4_for(2), LONG).await;
    let refused = refused.expect_err("nodes 3 and 4 are cut off");
    let ErrorKind::NotReady { reason } = &refused.kind else { panic!("{refused:?}") };
    let named = [3, 4].map(|node| format!("{} on node {node}", replica_of(node)));
    assert!(named.iter().all(|name| reason.contains(name)), "{reason}");
    assert_eq!(refused.may_have_applied, MayHaveApplied::No);
    let view = group.membership();
    assert_eq!((view.index, view.joint), (index, false), "nothing was written");
    cluster.propose(1, "x", 1, LONG).await.expect("the group works");

    cluster.heal(1, 4);
    until("node 4 follows", || cluster.register(4, "x") == Some(1)).await;
    let made = change(&cluster, 1, swap_4_for(2)).await;
    assert_eq!((voters(&made), made.joint), (vec![1, 3, 4], false));
    cluster.propose(1, "x", 2, LONG).await.expect("the group works");
}

#[tokio::test(start_paused = true)]
async fn half_a_change_is_finished_while_a_majority_of_either_half_answers() {
    let cluster = Box::pin(TestCluster::founded(4, 3, 97, WeakenHost::default())).await;
    cluster.open_again(4).await.expect("a new replica opens");
    change(&cluster, 1, join_4()).await;
    let seats: BTreeMap<u64, Seat> =
        (1..=4).map(|node| (replica_of(node).0, Seat { node: NodeId(node) })).collect();
    let configs = vec![config([1, 2, 3]), config([1, 2, 4])];
    let joint = Membership::new(configs, seats).expect("every voter has a seat");
    let group = cluster.group(1);
    let left = Box::pin(group.raft.append_membership(joint, Payload::Blank, Vec::new())).await;
    left.expect("all are there");
    // Who leaves and who comes are both gone.
    cluster.partition(1, 3);
    cluster.partition(1, 4);
    let made = change(&cluster, 1, swap_4_for(3)).await;
    assert_eq!((voters(&made), made.joint), (vec![1, 2, 4], false));
    cluster.propose(1, "x", 1, LONG).await.expect("the group works");
}
