//! Leadership is handed over (H3, R1 c).
//!
//! Before the act proposals are held back, the target has everything, and the gate is latched: the
//! target's voters forget their promise to the old leader. Nothing that was acknowledged is lost,
//! and who waited is sent on.

use std::collections::BTreeMap;
use std::time::Duration;

use annulus_types::{ErrorKind, NodeId};

use super::cluster::{LONG, TestCluster, ms, pass, until};
use super::node::End;
use crate::gate::Weaken;
use crate::options::WeakenHost;
use crate::types::Seat;

/// Sets one register after another, each until it is acknowledged, wherever it is sent to; returns
/// what was acknowledged.
async fn write_many(cluster: &TestCluster, writer: u64) -> BTreeMap<String, u64> {
    let mut acknowledged = BTreeMap::new();
    let mut target = 1;
    for round in 0..40 {
        let name = format!("{writer}-{round}");
        while let Err(error) = cluster.propose(target, &name, round, LONG).await {
            match error.kind {
                ErrorKind::NotLeader { leader: Some(node) } => target = node.0,
                // The new leader has not spoken yet.
                ErrorKind::NotLeader { leader: None } => pass(ms(5)).await,
                kind => panic!("nothing is in flight when leadership goes: {kind:?}"),
            }
        }
        acknowledged.insert(name, round);
    }
    acknowledged
}

#[tokio::test(start_paused = true)]
async fn a_transfer_under_load_loses_nothing_and_sends_the_writers_on() {
    let cluster = Box::pin(TestCluster::new(3, 67, WeakenHost::default())).await;
    let writers = futures_util::future::join_all((0..8).map(|writer| write_many(&cluster, writer)));
    let transfer = async {
        pass(ms(100)).await;
        cluster.group(1).transfer(NodeId(2), LONG).await.expect("node 2 is a voter with a link");
        assert!(!cluster.gate_is_open(1));
    };
    let (written, ()) = tokio::join!(writers, transfer);
    let acknowledged: BTreeMap<String, u64> = written.into_iter().flatten().collect();
    assert_eq!(acknowledged.len(), 320);
    assert!(cluster.gate_is_open(2));
    until("all hold everything", || (1..=3).all(|node| cluster.registers(node) == acknowledged))
        .await;
    let refused = cluster.propose(1, "late", 1, LONG).await.expect_err("it leads no more");
    assert_eq!(refused.kind, ErrorKind::NotLeader { leader: Some(NodeId(2)) });
}

/// What the old leader answered when it had handed over but did not hear of it.
async fn an_old_leader_does_not_hear_that_it_is_over(weaken: WeakenHost) -> Option<u64> {
    let cluster = TestCluster::new(3, 68, weaken).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("x", 1)).await;
    // Their acknowledgements have arrived, too.
    pass(ms(20)).await;

    cluster.silence(2, 1);
    cluster.silence(3, 1);
    cluster.group(1).transfer(NodeId(2), ms(100)).await.expect("everything is there already");
    until("node 2 is elected", || cluster.leads(2)).await;
    cluster.propose(2, "x", 9, LONG).await.expect("nodes 2 and 3 are a majority");
    cluster.read(1, "x", false, ms(20)).await.ok().flatten()
}

#[tokio::test(start_paused = true)]
async fn the_gate_is_shut_for_good_before_leadership_is_handed_over() {
    let story = an_old_leader_does_not_hear_that_it_is_over(WeakenHost::default());
    assert_eq!(Box::pin(story).await, None);

    let gate = Weaken { no_latch_on_transfer: true, ..Weaken::default() };
    let weaken = WeakenHost { gate, ..WeakenHost::default() };
    let answer = Box::pin(an_old_leader_does_not_hear_that_it_is_over(weaken)).await;
    assert_eq!(answer, Some(1), "9 was there already");
}

#[tokio::test(start_paused = true)]
async fn leadership_goes_to_no_one_but_another_voter() {
    let cluster = Box::pin(TestCluster::new(3, 69, WeakenHost::default())).await;
    let group = cluster.group(1);
    let learner = group.raft.add_learner(14, Seat { node: NodeId(4) }, false);
    Box::pin(learner).await.expect("the cluster works");
    let mut members = group.status().members.into_iter();
    assert!(members.any(|member| member.node == NodeId(4) && !member.voter));

    for target in [1, 4, 9] {
        let refused = group.transfer(NodeId(target), ms(100)).await.expect_err("no other voter");
        assert!(matches!(refused.kind, ErrorKind::BadRequest { .. }), "{target}: {refused:?}");
    }
    assert!(cluster.gate_is_open(1), "nothing was begun, so nothing is latched");
    cluster.propose(1, "x", 1, LONG).await.expect("node 1 leads as before");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_stops_hands_over_to_a_voter_that_it_can_reach() {
    let mut cluster = Box::pin(TestCluster::new(3, 70, WeakenHost::default())).await;
    cluster.end(2, End::Kill).await;
    until("the link is down", || !cluster.host(1).is_linked(NodeId(2))).await;
    cluster.host(1).hand_over(LONG).await;
    until("node 3 leads", || cluster.gate_is_open(3)).await;
    cluster.propose(3, "x", 1, LONG).await.expect("nodes 1 and 3 are a majority");
}

#[tokio::test(start_paused = true)]
async fn a_transfer_that_is_given_up_holds_nobody_back() {
    let cluster = Box::pin(TestCluster::new(3, 73, WeakenHost::default())).await;
    cluster.stall_disk(2, true);
    cluster.propose(1, "x", 1, LONG).await.expect("nodes 1 and 3 are a majority");
    let group = cluster.group(1);
    let transfer = tokio::time::timeout(ms(50), group.transfer(NodeId(2), LONG));
    assert!(transfer.await.is_err(), "node 2 has not flushed everything");
    cluster.propose(1, "y", 1, ms(500)).await.expect("node 1 leads as before");
}

/// How long after a transfer that goes nowhere another leads, in simulated time.
async fn nobody_takes_over(weaken: WeakenHost) -> Duration {
    let cluster = Box::pin(TestCluster::new(3, 71, weaken)).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("x", 1)).await;
    pass(ms(20)).await;
    // The one that is meant to take over never hears of it, and nobody hears of it.
    cluster.silence(1, 2);
    cluster.silence(2, 3);
    cluster.silence(2, 1);
    let clock = cluster.group(1).env.clock.clone();
    let began = clock.boot();
    cluster.group(1).transfer(NodeId(2), ms(100)).await.expect("everything is there already");
    until("node 3 is elected", || cluster.leads(3)).await;
    clock.boot().since(began)
}

#[tokio::test(start_paused = true)]
async fn when_no_successor_shows_the_voters_campaign_as_soon_as_they_may() {
    let told = Box::pin(nobody_takes_over(WeakenHost::default())).await;
    let gate = Weaken { ignore_resignation: true, ..Weaken::default() };
    let weaken = WeakenHost { gate, ..WeakenHost::default() };
    let not_told = Box::pin(nobody_takes_over(weaken)).await;
    assert!(told < ms(800), "one lease and the steps between two ranks, not {told:?}");
    assert!(told + ms(200) < not_told, "{not_told:?} by openraft's own timers");
}
