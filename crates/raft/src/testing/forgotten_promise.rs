//! A process that starts again has forgotten its promise and must not vote yet (N3).
//!
//! A follower promises a leader, by accepting its frame, to vote for nobody else for one lease; the
//! leader's gate is built on that. The promise is in memory only. A third replica, whose own promise
//! has run out behind a partition, needs just this one vote.

use super::cluster::{LONG, TestCluster, ms, pass, until};
use super::node::{End, Rows};
use crate::options::{Timing, WeakenHost};

/// What was seen of the leader whose only follower started again.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Its gate was open when another was elected.
    two_could_answer: bool,
    /// What it answered after the other had overwritten the value.
    answer: Option<u64>,
}

async fn the_only_follower_starts_again(weaken: WeakenHost) -> Seen {
    let mut cluster = TestCluster::new(3, 63, weaken).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("x", 1)).await;

    // Node 3's promise runs out; node 1 goes on leading with node 2.
    cluster.partition(1, 3);
    pass(Timing::default().lease + ms(200)).await;
    assert!(cluster.gate_is_open(1) && !cluster.leads(3));

    // Node 2 has just promised when it is killed; it comes back at once.
    let before = cluster.group(1).replica.gate.view().horizon;
    until("node 2 confirms", || cluster.group(1).replica.gate.view().horizon > before).await;
    cluster.end(2, End::Kill).await;
    cluster.partition(1, 2);
    cluster.restart(2, Rows::Kept).await.expect("its log is undamaged");

    until("another is elected", || cluster.leads(2) || cluster.leads(3)).await;
    let two_could_answer = cluster.gate_is_open(1);
    let leader = cluster.leader_among(&[2, 3]).await;
    cluster.propose(leader, "x", 9, LONG).await.expect("nodes 2 and 3 are a majority");
    let answer = cluster.read(1, "x", false, ms(20)).await.ok().flatten();
    Seen { two_could_answer, answer }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_started_again_elects_nobody_while_its_promise_may_hold() {
    let seen = Box::pin(the_only_follower_starts_again(WeakenHost::default())).await;
    assert_eq!(seen, Seen { two_could_answer: false, answer: None });

    let weaken = WeakenHost { no_quarantine: true, ..WeakenHost::default() };
    let seen = Box::pin(the_only_follower_starts_again(weaken)).await;
    assert_eq!(seen, Seen { two_could_answer: true, answer: Some(1) }, "9 was there already");
}
