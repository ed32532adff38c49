//! The engine is ahead of the log after a power cut (L7).
//!
//! openraft applies what is committed, also before it is in the local log. If the log's sync stalls,
//! the engine's own flush does not, and the power goes, then the engine holds an entry that the log
//! has lost. Worse: the log still holds another leader's entry in its place, which openraft takes
//! for corruption.

use annulus_types::{Error, ErrorKind};

use super::cluster::{LONG, TestCluster, log_state, ms, pass, until};
use super::node::{End, Rows, replica_of};
use crate::host::HostError;
use crate::options::WeakenHost;

/// Whether the replica starts again; if so, it must catch up.
async fn a_power_cut_leaves_the_engine_ahead(weaken: WeakenHost) -> Result<(), HostError> {
    let mut cluster = TestCluster::new(3, 66, weaken).await;
    cluster.propose(1, "settled", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("settled", 1)).await;

    // Node 1 syncs an entry that nobody else ever gets.
    cluster.partition(1, 2);
    cluster.partition(1, 3);
    let told = cluster.propose(1, "lost", 1, ms(100)).await;
    assert_eq!(told, Err(Error::unknown(ErrorKind::OutcomeUnknown)));
    let leader = cluster.leader_among(&[2, 3]).await;

    // Its disk stalls as soon as it has sworn to the new leader: it takes that one's entry over the
    // lost one, hears that it is committed, and applies it.
    let sworn_to = replica_of(leader);
    cluster.stall_disk_when(1, move |wal| {
        let vote = log_state(wal, 1).vote;
        vote.is_some_and(|vote| vote.committed && vote.leader == sworn_to)
    });
    cluster.heal(1, 2);
    cluster.heal(1, 3);
    until("node 1 has applied it", || cluster.applied(1).leader == sworn_to).await;
    let applied = cluster.applied(1);
    pass(ms(20)).await;
    cluster.end(1, End::PowerCut).await;
    cluster.restart(1, Rows::Kept).await?;

    assert_eq!(cluster.log_state(1).purged, Some(applied), "the log begins behind the engine");
    // From now on nobody but the engine has what the log gave up: another power cut must leave it.
    cluster.end(1, End::PowerCut).await;
    cluster.restart(1, Rows::Undurable).await?;
    let leader = cluster.leader_among(&[2, 3]).await;
    cluster.propose(leader, "after", 1, LONG).await.expect("two others work");
    until("all hold it", || cluster.everyone_holds("after", 1)).await;
    assert!((1..=3).all(|node| cluster.register(node, "lost").is_none()));

    // An engine that is lost now cannot be rebuilt from a log that begins late: the replica must say
    // so instead of building on nothing.
    cluster.end(1, End::PowerCut).await;
    let refused = cluster.restart(1, Rows::Lost).await;
    assert!(matches!(refused, Err(HostError::NeedsRefill { .. })), "{refused:?}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_log_that_the_engine_has_overtaken_begins_behind_it() {
    let started = Box::pin(a_power_cut_leaves_the_engine_ahead(WeakenHost::default())).await;
    assert!(started.is_ok(), "{started:?}");

    let weaken = WeakenHost { keep_log_below_applied: true, ..WeakenHost::default() };
    let started = Box::pin(a_power_cut_leaves_the_engine_ahead(weaken)).await;
    assert!(matches!(started, Err(HostError::Raft(_))), "{started:?}");

    let weaken = WeakenHost { reset_before_durable: true, ..WeakenHost::default() };
    let started = Box::pin(a_power_cut_leaves_the_engine_ahead(weaken)).await;
    assert!(matches!(started, Err(HostError::NeedsRefill { .. })), "{started:?}");
}
