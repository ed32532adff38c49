//! Replicas compare what their engines give back (E5).

use annulus_types::{ErrorKind, NodeId};

use super::cluster::{LONG, TestCluster, ms, pass, until};
use super::membership::seat_of;
use super::registers;
use crate::options::WeakenHost;
use crate::verify::{Compared, Verdict};

async fn with_some_state(seed: u64, weaken: WeakenHost) -> TestCluster {
    let cluster = Box::pin(TestCluster::new(3, seed, weaken)).await;
    for (value, name) in (1..).zip(["alpha", "beta", "psi", "omega"]) {
        cluster.propose(1, name, value, LONG).await.expect("the cluster works");
    }
    until("all hold it", || cluster.everyone_holds("omega", 4)).await;
    cluster
}

#[tokio::test(start_paused = true)]
async fn equal_replicas_are_equal_while_writes_go_on() {
    let cluster = with_some_state(101, WeakenHost::default()).await;
    let group = cluster.group(1);
    let writing = async {
        for value in 0..40 {
            cluster.propose(1, "hot", value, LONG).await.expect("the cluster works");
        }
    };
    let comparing = async {
        for _ in 0..4 {
            for node in [2, 3] {
                let equal = group.verify(seat_of(node), LONG).await;
                assert_eq!(equal, Ok(true), "node {node}");
            }
            pass(ms(5)).await;
        }
    };
    tokio::join!(writing, comparing);
}

#[tokio::test(start_paused = true)]
async fn a_row_that_was_changed_behind_the_log_is_found() {
    let cluster = with_some_state(102, WeakenHost::default()).await;
    registers::rot(cluster.host(3).engine().as_ref(), "beta", 77);
    let group = cluster.group(1);
    assert_eq!(group.verify(seat_of(3), LONG).await, Ok(false));
    assert_eq!(group.verify(seat_of(2), LONG).await, Ok(true));
    // A row that is not there at all is found as well.
    registers::rot(cluster.host(3).engine().as_ref(), "beta", 2);
    assert_eq!(group.verify(seat_of(3), LONG).await, Ok(true));
    registers::rot(cluster.host(2).engine().as_ref(), "gamma", 1);
    assert_eq!(group.verify(seat_of(2), LONG).await, Ok(false));
}

/// Whether a follower that applies the entry late, with what follows it, is found equal.
async fn a_follower_applies_late(weaken: WeakenHost) -> bool {
    let cluster = with_some_state(103, weaken).await;
    let release = cluster.hold_apply(3).await;
    let group = cluster.group(1);
    let writing = async {
        until("the leader has its digest", || group.replica.digests.last().is_some()).await;
        for value in 0..5 {
            cluster.propose(1, "later", value, LONG).await.expect("two others apply");
        }
        pass(ms(200)).await;
        drop(release);
    };
    let (equal, ()) = tokio::join!(group.verify(seat_of(3), LONG), writing);
    equal.expect("it catches up")
}

#[tokio::test(start_paused = true)]
async fn a_digest_is_of_the_state_at_its_entry() {
    assert!(Box::pin(a_follower_applies_late(WeakenHost::default())).await);
    let weaken = WeakenHost { late_digest: true, ..WeakenHost::default() };
    assert!(!Box::pin(a_follower_applies_late(weaken)).await, "of another state");
}

#[tokio::test(start_paused = true)]
async fn a_node_takes_two_digests_at_once_and_says_so() {
    let cluster = with_some_state(104, WeakenHost::default()).await;
    let group = cluster.group(1);
    let store = &cluster.host(3).snapshots;
    let taken = (store.may_digest(), store.may_digest());
    assert!(taken.0.is_some() && taken.1.is_some() && store.may_digest().is_none());
    let refused = group.verify(seat_of(3), LONG).await.expect_err("it has no digest");
    assert!(matches!(refused.kind, ErrorKind::NotReady { .. }), "{refused:?}");
    drop(taken);
    assert_eq!(group.verify(seat_of(3), LONG).await, Ok(true));
}

#[tokio::test(start_paused = true)]
async fn only_a_leader_compares_and_only_another_member() {
    let cluster = with_some_state(105, WeakenHost::default()).await;
    let refused = cluster.group(2).verify(seat_of(3), LONG).await.expect_err("it does not lead");
    assert!(matches!(refused.kind, ErrorKind::NotLeader { .. }), "{refused:?}");
    for node in [1, 4] {
        let refused = cluster.group(1).verify(seat_of(node), LONG).await.expect_err("no other");
        assert!(matches!(refused.kind, ErrorKind::BadRequest { .. }), "{refused:?}");
    }
    // Somebody who does not answer is asked until the limit.
    cluster.partition(1, 3);
    let refused = cluster.group(1).verify(seat_of(3), ms(300)).await.expect_err("no answer");
    assert!(matches!(refused.kind, ErrorKind::NotReady { .. }), "{refused:?}");
}

fn verdicts(others: &[Compared]) -> Vec<(NodeId, Verdict)> {
    others.iter().map(|other| (other.node, other.verdict)).collect()
}

#[tokio::test(start_paused = true)]
async fn voters_are_compared_at_one_entry_file_by_file() {
    let cluster = with_some_state(106, WeakenHost::default()).await;
    registers::rot(cluster.host(3).engine().as_ref(), "beta", 77);
    let found = cluster.group(1).verify_voters(LONG).await.expect("it leads");
    assert_eq!((found.leader.node, found.leader.verdict), (NodeId(1), Verdict::Equal));
    assert_eq!(
        verdicts(&found.others),
        [(NodeId(2), Verdict::Equal), (NodeId(3), Verdict::Different)]
    );
    let files = |of: &Compared| of.digest.as_ref().expect("it told one").files.clone();
    let (own, rotten) = (files(&found.leader), files(&found.others[1]));
    assert_eq!(files(&found.others[0]), own);
    // The names before "m" are in the first file, the others in the second.
    assert_eq!(own.len(), 2);
    assert_ne!(own[0], rotten[0]);
    assert_eq!(own[1], rotten[1]);
}

#[tokio::test(start_paused = true)]
async fn a_voter_that_cannot_be_asked_is_not_known_and_not_different() {
    let cluster = with_some_state(107, WeakenHost::default()).await;
    cluster.partition(1, 3);
    for limit in [ms(300), ms(5_000)] {
        let found = cluster.group(1).verify_voters(limit).await.expect("a majority is there");
        assert_eq!(
            verdicts(&found.others),
            [(NodeId(2), Verdict::Equal), (NodeId(3), Verdict::Unknown)]
        );
        let silent = &found.others[1];
        assert!(silent.digest.is_none() && silent.reason.contains("on node 3"), "{silent:?}");
    }
    let refused = cluster.group(2).verify_voters(LONG).await.expect_err("it does not lead");
    assert!(matches!(refused.kind, ErrorKind::NotLeader { .. }), "{refused:?}");
}
