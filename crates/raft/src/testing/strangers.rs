//! Frames that are not meant for what is here (N1, N2).
//!
//! openraft knows replicas by their ids alone: a frame for an earlier replica of the same node, or
//! from another cluster, would be obeyed like any other. And a replica is never made by a message.

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;
use annulus_types::ClusterId;

use super::caller::Caller;
use super::cluster::{LONG, TestCluster, until};
use super::node::{CLUSTER, GROUP, replica_of};
use crate::options::WeakenHost;

/// A node that no membership knows, and a replica that none knows either.
const STRANGER: u32 = 99;

fn trusting() -> WeakenHost {
    WeakenHost { trust_every_frame: true, ..WeakenHost::default() }
}

/// What node 2 answers to an envelope that comes after a proper ping.
async fn answer(cluster: &TestCluster, envelope: v1::Envelope) -> Option<Body> {
    let mut caller = Caller::new(cluster, 2, STRANGER).await;
    let greeted = caller.ask(caller.ping(1, 1, 1)).await;
    assert!(matches!(greeted, Some(Body::Pong(_))), "{greeted:?}");
    caller.ask(envelope).await
}

/// A frame of a leader with a later vote than any here.
fn usurper(group: u64, from: u64, to: u64) -> v1::Envelope {
    let vote = Some(v1::Vote { term: 1000, leader: replica_of(3).0, committed: true });
    let body = Some(Body::Append(v1::AppendRequest { vote, ..Default::default() }));
    v1::Envelope { group, from, to, call: 2, body }
}

/// Whether node 2's replica has followed the usurper.
fn is_moved(cluster: &TestCluster) -> bool {
    cluster.log_state(2).vote.is_some_and(|vote| vote.term == 1000)
}

fn is_undeliverable(answer: &Option<Body>, why: &str) -> bool {
    matches!(answer, Some(Body::Undeliverable(told)) if told.reason.contains(why))
}

/// Whether a frame for a replica that node 2 held in an earlier life moves the one it holds now.
async fn a_frame_for_a_former_replica_is_obeyed(weaken: WeakenHost) -> bool {
    let cluster = TestCluster::new(3, 71, weaken).await;
    let answer = answer(&cluster, usurper(GROUP.0, u64::from(STRANGER), 8)).await;
    let obeyed = is_moved(&cluster);
    assert_eq!(obeyed, !is_undeliverable(&answer, "no such replica"), "{answer:?}");
    obeyed
}

#[tokio::test(start_paused = true)]
async fn a_frame_for_a_former_replica_is_undeliverable() {
    assert!(!Box::pin(a_frame_for_a_former_replica_is_obeyed(WeakenHost::default())).await);
    assert!(Box::pin(a_frame_for_a_former_replica_is_obeyed(trusting())).await);
}

/// Whether node 2's replica obeys a replica of node 3 that speaks from another node.
async fn a_replica_speaks_from_another_node(weaken: WeakenHost) -> bool {
    let cluster = TestCluster::new(3, 74, weaken).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("all hold it, and the membership", || cluster.everyone_holds("x", 1)).await;
    let answer = answer(&cluster, usurper(GROUP.0, replica_of(3).0, replica_of(2).0)).await;
    let obeyed = is_moved(&cluster);
    assert_eq!(obeyed, !is_undeliverable(&answer, "another node"), "{answer:?}");
    obeyed
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_sits_elsewhere_is_not_heard_from_here() {
    assert!(!Box::pin(a_replica_speaks_from_another_node(WeakenHost::default())).await);
    assert!(Box::pin(a_replica_speaks_from_another_node(trusting())).await);
}

/// Whether node 2's replica obeys somebody who did not say who it is.
async fn a_nameless_frame_is_obeyed(weaken: WeakenHost) -> bool {
    let cluster = TestCluster::new(3, 75, weaken).await;
    let mut caller = Caller::new(&cluster, 2, STRANGER).await;
    let unknown = usurper(GROUP.0, u64::from(STRANGER), replica_of(2).0);
    let answer = caller.ask(unknown).await;
    let obeyed = is_moved(&cluster);
    assert_eq!(obeyed, !is_undeliverable(&answer, "no ping"), "{answer:?}");
    // The link itself has not ended.
    let greeted = caller.ask(caller.ping(1, 1, 1)).await;
    assert!(matches!(greeted, Some(Body::Pong(_))), "{greeted:?}");
    obeyed
}

#[tokio::test(start_paused = true)]
async fn nobody_is_heard_before_a_ping() {
    assert!(!Box::pin(a_nameless_frame_is_obeyed(WeakenHost::default())).await);
    assert!(Box::pin(a_nameless_frame_is_obeyed(trusting())).await);
}

/// Whether node 2 answers a member of another cluster.
async fn another_cluster_is_answered(weaken: WeakenHost) -> bool {
    let cluster = TestCluster::new(3, 72, weaken).await;
    let mut caller = Caller::new(&cluster, 2, STRANGER).await;
    assert_eq!(caller.cluster, CLUSTER);
    let own = caller.ask(caller.ping(1, 1, 1)).await;
    assert!(matches!(own, Some(Body::Pong(_))), "{own:?}");
    let mut other = Caller::new(&cluster, 2, STRANGER).await;
    other.cluster = ClusterId([8; 16]);
    other.ask(other.ping(1, 1, 1)).await.is_some()
}

#[tokio::test(start_paused = true)]
async fn a_frame_of_another_cluster_ends_its_link() {
    assert!(!Box::pin(another_cluster_is_answered(WeakenHost::default())).await);
    assert!(Box::pin(another_cluster_is_answered(trusting())).await);
}

#[tokio::test(start_paused = true)]
async fn a_frame_creates_no_replica() {
    // Whatever else is switched off: there is nothing that a frame could create one with.
    let cluster = Box::pin(TestCluster::new(3, 73, trusting())).await;
    let held = cluster.host(2).held();
    let unknown = answer(&cluster, usurper(99, replica_of(3).0, 8)).await;
    assert!(matches!(unknown, Some(Body::Undeliverable(_))), "{unknown:?}");
    assert_eq!((cluster.host(2).held(), cluster.host(2).groups().len()), (held, 1));
}
