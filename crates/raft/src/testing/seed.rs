//! A new replica is sent its group's state before it gets a seat (H2).

use annulus_types::{ErrorKind, NodeId};

use super::cluster::{LONG, TestCluster, ms, pass, until};
use super::membership::{change, seat_of};
use super::node::{End, Rows, replica_of};
use super::registers;
use crate::membership::Change;
use crate::options::WeakenHost;
use crate::traffic::MoveTraffic;

/// The value of register `x`: how often it was set.
const WRITES: u64 = 70;

/// A group on nodes 1 to 3 whose log is long and whose state is small, and a new replica on node 4.
async fn node_4_is_new(seed: u64, weaken: WeakenHost) -> TestCluster {
    let cluster = Box::pin(TestCluster::founded(4, 3, seed, weaken)).await;
    for value in 1..=WRITES {
        cluster.propose(1, "x", value, LONG).await.expect("the cluster works");
    }
    until("all hold it", || (1..=3).all(|node| cluster.register(node, "x") == Some(WRITES))).await;
    cluster.open_again(4).await.expect("a new replica opens");
    cluster
}

/// Node 4 gets a seat, and follows.
async fn node_4_joins(cluster: &TestCluster) {
    let join = Change { add_learner: Some(seat_of(4)), ..Change::default() };
    change(cluster, 1, join).await;
    cluster.propose(1, "y", 1, LONG).await.expect("the cluster works");
    until("node 4 follows", || cluster.register(4, "y") == Some(1)).await;
}

/// The entry up to which node 4 was seeded, and the entries that it was sent when it had a seat.
async fn a_replica_is_seeded(weaken: WeakenHost) -> (u64, Vec<u64>) {
    let cluster = node_4_is_new(96, weaken).await;
    let group = cluster.group(1);
    let bytes = group.seed(seat_of(4), LONG).await.expect("node 4 holds nothing");
    assert!(bytes > 0);
    assert_eq!(cluster.register(4, "x"), Some(WRITES));
    let upto = cluster.log_state(4).last.expect("its log begins behind the state").index;
    assert!(upto > WRITES, "{upto}");
    assert!(group.replica.sent(replica_of(4)).is_empty(), "it has no seat");
    let members = cluster.group(4).membership().seats.into_iter();
    assert_eq!(members.map(|seat| seat.node.0).collect::<Vec<_>>(), [1, 2, 3]);

    node_4_joins(&cluster).await;
    assert_eq!(cluster.registers(4), cluster.registers(1));
    (upto, group.replica.sent(replica_of(4)))
}

#[tokio::test(start_paused = true)]
async fn a_seeded_learner_is_sent_what_came_since_and_nothing_else() {
    let (upto, sent) = Box::pin(a_replica_is_seeded(WeakenHost::default())).await;
    assert!(!sent.is_empty() && sent.iter().all(|index| *index > upto), "{upto}: {sent:?}");

    let weaken = WeakenHost { forget_seeds: true, ..WeakenHost::default() };
    let (upto, sent) = Box::pin(a_replica_is_seeded(weaken)).await;
    let again = sent.iter().filter(|index| **index <= upto).count();
    assert!(again > 16, "openraft looks for the end of its log with entries: {sent:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_newcomer_took_in_is_counted_once_it_votes() {
    let cluster = Box::pin(node_4_is_new(95, WeakenHost::default())).await;
    let seeded = cluster.group(1).seed(seat_of(4), LONG).await.expect("node 4 holds nothing");
    node_4_joins(&cluster).await;
    let sent = cluster.host(1).move_traffic();
    assert_eq!(sent.state_sent, seeded);
    assert!(sent.log_sent > 0, "{sent:?}");
    assert_eq!(cluster.host(4).move_traffic(), MoveTraffic::default(), "it has no vote");

    let promote = Change { promote: Some(replica_of(4)), ..Change::default() };
    change(&cluster, 1, promote).await;
    let needed = || cluster.host(4).move_traffic();
    until("its log says that it votes", || needed() != MoveTraffic::default()).await;
    let (sent, needed) = (cluster.host(1).move_traffic(), needed());
    assert!((1..sent.state_sent).contains(&needed.state_needed), "{sent:?} {needed:?}");
    assert!((1..sent.log_sent).contains(&needed.log_needed), "{sent:?} {needed:?}");
    assert_eq!((needed.state_sent, needed.log_sent), (0, 0));
}

async fn a_seeded_replica_starts_again(rows: Rows) {
    let mut cluster = node_4_is_new(97, WeakenHost::default()).await;
    let seeded = cluster.group(1).seed(seat_of(4), LONG).await;
    assert!(seeded.is_ok_and(|bytes| bytes > 0));
    pass(ms(20)).await;
    cluster.end(4, End::PowerCut).await;
    cluster.restart(4, rows).await.expect("kept files and log reach");
    assert_eq!(cluster.register(4, "x"), Some(WRITES), "{rows:?}");
    let begins = cluster.log_state(4).purged;
    // The former connection may still break.
    let mut again = cluster.group(1).seed(seat_of(4), LONG).await;
    for _ in 0..100 {
        if !again.as_ref().is_err_and(|error| matches!(error.kind, ErrorKind::NotReady { .. })) {
            break;
        }
        pass(ms(20)).await;
        again = cluster.group(1).seed(seat_of(4), LONG).await;
    }
    assert_eq!(again, Ok(0), "it holds something");
    node_4_joins(&cluster).await;
    assert_eq!(cluster.registers(4), cluster.registers(1));
    assert_eq!(cluster.log_state(4).purged, begins, "no other snapshot was needed");
}

#[tokio::test(start_paused = true)]
async fn a_seeded_replica_starts_again_before_it_has_a_seat() {
    Box::pin(a_seeded_replica_starts_again(Rows::Kept)).await;
    Box::pin(a_seeded_replica_starts_again(Rows::Lost)).await;
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_smaller_than_the_state_is_sent_itself() {
    let cluster = Box::pin(node_4_is_new(98, WeakenHost::default())).await;
    for number in 0..2000 {
        registers::rot(cluster.host(1).engine().as_ref(), &format!("much {number}"), 1);
    }
    let group = cluster.group(1);
    assert_eq!(group.seed(seat_of(4), LONG).await, Ok(0));
    assert_eq!(cluster.log_state(4).last, None);
    node_4_joins(&cluster).await;
    assert_eq!(cluster.register(4, "x"), Some(WRITES));
    assert_eq!(cluster.log_state(4).purged, None);
    let sent = group.replica.sent(replica_of(4));
    assert!((0..WRITES).all(|index| sent.contains(&index)), "{sent:?}");
}

#[tokio::test(start_paused = true)]
async fn only_a_leader_seeds_and_only_whom_it_can_reach() {
    let mut cluster = Box::pin(node_4_is_new(99, WeakenHost::default())).await;
    let refused = cluster.group(2).seed(seat_of(4), LONG).await.expect_err("it does not lead");
    assert_eq!(refused.kind, ErrorKind::NotLeader { leader: Some(NodeId(1)) });
    let group = cluster.group(1);
    assert_eq!(group.seed(seat_of(3), LONG).await, Ok(0), "it is a member");
    let nobody = group.seed((replica_of(9), NodeId(4)), LONG).await.expect_err("not created");
    assert!(matches!(nobody.kind, ErrorKind::NotReady { .. }), "{nobody:?}");

    cluster.end(4, End::Kill).await;
    let late = group.seed(seat_of(4), ms(500)).await.expect_err("nobody answers");
    let stages = ["DeadlineExceeded", "NotReady"];
    assert!(stages.contains(&late.kind.name()), "{late:?}");
    cluster.restart(4, Rows::Kept).await.expect("its log is undamaged");
    assert!(group.seed(seat_of(4), LONG).await.is_ok_and(|bytes| bytes > 0));
    assert_eq!(cluster.register(4, "x"), Some(WRITES));
}
