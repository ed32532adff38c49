//! While the gate is shut nothing is proposed (W9).
//!
//! An operation that waits for the gate can still be taken back: its caller is told that it was not
//! applied and never will be. One that was proposed to nobody's ear can not: it lies in the leader's
//! log and is found there when the partition heals.

use annulus_types::{Error, ErrorKind};

use super::cluster::{LONG, TestCluster, ms, until};
use crate::options::WeakenHost;

/// What the caller was told, and whether the operation was found in the end.
async fn an_operation_meets_a_shut_gate(weaken: WeakenHost) -> (Error, bool) {
    let cluster = TestCluster::new(3, 64, weaken).await;
    cluster.propose(1, "before", 1, LONG).await.expect("the cluster works");

    cluster.partition(1, 2);
    cluster.partition(1, 3);
    until("the gate is shut", || !cluster.gate_is_open(1)).await;
    // Short: the others' promises hold a little longer than the gate, and the partition shall heal
    // before they elect somebody who would cut the entry off.
    let told = cluster.propose(1, "late", 1, ms(60)).await.expect_err("nobody hears it");
    cluster.heal(1, 2);
    cluster.heal(1, 3);

    let leader = cluster.leader_among(&[1, 2, 3]).await;
    cluster.propose(leader, "after", 1, LONG).await.expect("the cluster works again");
    until("all hold it", || cluster.everyone_holds("after", 1)).await;
    (told, cluster.everyone_holds("late", 1))
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_met_a_shut_gate_is_never_found() {
    let seen = Box::pin(an_operation_meets_a_shut_gate(WeakenHost::default())).await;
    assert_eq!(seen, (Error::refused(ErrorKind::NoQuorum), false));

    let weaken = WeakenHost { propose_with_shut_gate: true, ..WeakenHost::default() };
    let seen = Box::pin(an_operation_meets_a_shut_gate(weaken)).await;
    assert_eq!(seen, (Error::unknown(ErrorKind::OutcomeUnknown), true));
}
