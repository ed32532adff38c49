//! A leader loses its unsynced tail and comes back at once (architecture 9, rule 1).
//!
//! A leader sends entries before its own log has them: two followers make a write durable that the
//! leader's disk never saw. If the leader then dies and is *restored* as the leader of the same
//! term, it counts on from where its log ends and gives the lost write's identity to another one.
//! Followers take equal identities for equal entries: from then on the replicas differ, without any
//! error anywhere.

use std::collections::BTreeMap;

use super::cluster::{LONG, TestCluster, ms, pass, until};
use super::node::{End, Rows};
use crate::options::WeakenHost;

/// What the three nodes hold in the end.
async fn registers_after_a_leader_lost_its_tail(weaken: WeakenHost) -> Vec<BTreeMap<String, u64>> {
    let mut cluster = TestCluster::new(3, 61, weaken).await;
    cluster.propose(1, "settled", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("settled", 1)).await;
    // Its sync is over, too.
    pass(ms(20)).await;

    cluster.stall_disk(1, true);
    cluster.propose(1, "first", 2, LONG).await.expect("the other two are a majority");
    cluster.end(1, End::PowerCut).await;
    cluster.restart(1, Rows::Lost).await.expect("its log is undamaged");

    let index = cluster.write_unguarded("second", 3).await;
    until("all have applied it", || (1..=3).all(|node| cluster.applied(node).index >= index)).await;
    (1..=3).map(|node| cluster.registers(node)).collect()
}

fn holding(registers: &[(&str, u64)]) -> BTreeMap<String, u64> {
    registers.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_lost_its_tail_does_not_lead_its_term_again() {
    let held = Box::pin(registers_after_a_leader_lost_its_tail(WeakenHost::default())).await;
    let all = holding(&[("settled", 1), ("first", 2), ("second", 3)]);
    assert_eq!(held, [all.clone(), all.clone(), all]);

    let weaken = WeakenHost { leader_restore: true, ..WeakenHost::default() };
    let held = Box::pin(registers_after_a_leader_lost_its_tail(weaken)).await;
    let restored = holding(&[("settled", 1), ("second", 3)]);
    let others = holding(&[("settled", 1), ("first", 2)]);
    assert_eq!(held, [restored, others.clone(), others], "each side lost what the other kept");
}
