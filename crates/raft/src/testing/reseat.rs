//! A member is replaced while the group is written to (H2, H3, H4, E5).
//!
//! Node 4 takes the seat of node 1, which leads at the beginning. The steps are those of a manager: each
//! is tried at whoever leads until it is done, and none remembers what was done before. Between any two of
//! them the leader may be killed.

use std::collections::BTreeMap;
use std::time::Duration;

use annulus_types::{Error, NodeId};
use annulus_wal::StreamId;
use tokio::time::Instant;

use super::cluster::{LONG, TestCluster, ms, pass, until};
use super::membership::seat_of;
use super::node::{End, GROUP, Rows, replica_of};
use crate::host::HostError;
use crate::membership::Change;
use crate::options::WeakenHost;

/// An attempt at a step.
const TRY: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create,
    Seed,
    Learn,
    CatchUp,
    Verify,
    Lead,
    Swap,
    Retire,
}

const STEPS: [Step; 8] = [
    Step::Create,
    Step::Seed,
    Step::Learn,
    Step::CatchUp,
    Step::Verify,
    Step::Lead,
    Step::Swap,
    Step::Retire,
];

/// The node that may answer now.
fn find_leader(cluster: &TestCluster) -> Option<u32> {
    (1..=4).find(|node| {
        let group = cluster.try_group(*node);
        group.is_some_and(|group| group.replica.gate.is_open(group.env.clock.boot()))
    })
}

async fn leader(cluster: &TestCluster) -> u32 {
    until("somebody leads", || find_leader(cluster).is_some()).await;
    find_leader(cluster).expect("found just now")
}

/// Makes a change at whoever leads, of the membership that it has in force.
async fn change(cluster: &TestCluster, change: Change) -> Result<(), Error> {
    let group = cluster.group(leader(cluster).await);
    let index = group.membership().index;
    group.change_membership(index, change, TRY).await.map(drop)
}

/// Tries a step once.
async fn attempt(cluster: &TestCluster, step: Step) -> Result<(), String> {
    let told = |error: Error| format!("{error:?}");
    match step {
        Step::Create => cluster.open_again(4).await.map_err(|error| error.to_string()),
        Step::Seed => {
            let group = cluster.group(leader(cluster).await);
            group.seed(seat_of(4), TRY).await.map(drop).map_err(told)
        }
        Step::Learn => {
            let learn = Change { add_learner: Some(seat_of(4)), ..Change::default() };
            change(cluster, learn).await.map_err(told)
        }
        Step::CatchUp => {
            let status = cluster.group(leader(cluster).await).status();
            let new = status.members.iter().find(|seat| seat.replica == replica_of(4));
            match new {
                Some(new) if status.last_index < new.matched + 20 => Ok(()),
                other => Err(format!("{other:?} of {}", status.last_index)),
            }
        }
        Step::Verify => {
            let group = cluster.group(leader(cluster).await);
            let equal = group.verify(seat_of(4), TRY).await.map_err(told)?;
            assert!(equal, "the new replica holds something else");
            Ok(())
        }
        Step::Lead => give_way(cluster).await,
        Step::Swap => {
            let (joins, leaves) = (replica_of(4), replica_of(1));
            let swap = Change { promote: Some(joins), remove: Some(leaves), ..Change::default() };
            // Somebody's death may have brought leadership back to node 1.
            give_way(cluster).await?;
            change(cluster, swap).await.map_err(told)
        }
        Step::Retire => {
            let host = cluster.host(1);
            host.retire(GROUP, replica_of(1), &[NodeId(4)], 0, TRY).await.map_err(told)
        }
    }
}

/// Takes leadership off node 1.
async fn give_way(cluster: &TestCluster) -> Result<(), String> {
    if leader(cluster).await != 1 {
        return Ok(());
    }
    cluster.host(1).give_away(&cluster.group(1), ms(500)).await;
    Err("node 1 leads".to_owned())
}

async fn take(cluster: &TestCluster, step: Step) {
    let began = Instant::now();
    while let Err(why) = Box::pin(attempt(cluster, step)).await {
        assert!(began.elapsed() < LONG, "{step:?}: {why}");
        pass(ms(20)).await;
    }
}

/// Sets registers, each until it is acknowledged, at whoever leads. Returns them.
async fn write(cluster: &TestCluster, round: usize) -> BTreeMap<String, u64> {
    let mut acknowledged = BTreeMap::new();
    for value in 0..8 {
        let name = format!("{round}-{value}");
        let began = Instant::now();
        loop {
            let node = leader(cluster).await;
            match cluster.propose(node, &name, value, ms(1000)).await {
                Ok(_) => break,
                // Whatever became of it: the same again.
                Err(error) => assert!(began.elapsed() < LONG, "{name}: {error:?}"),
            }
            pass(ms(5)).await;
        }
        acknowledged.insert(name, value);
    }
    acknowledged
}

/// Plays all steps; before the one with number `cut` the leader is killed, and started again when another
/// leads.
async fn node_4_takes_the_seat_of_node_1(seed: u64, cut: Option<usize>) {
    let mut cluster = Box::pin(TestCluster::founded(4, 3, seed, WeakenHost::default())).await;
    let mut acknowledged = BTreeMap::new();
    for value in 0..40 {
        cluster.propose(1, "hot", value, LONG).await.expect("the cluster works");
        acknowledged.insert("hot".to_owned(), value);
    }
    for (number, step) in STEPS.into_iter().enumerate() {
        if cut == Some(number) {
            let killed = leader(&cluster).await;
            cluster.end(killed, End::Kill).await;
            leader(&cluster).await;
            cluster.restart(killed, Rows::Kept).await.expect("its log is undamaged");
        }
        let (written, ()) = tokio::join!(write(&cluster, number), take(&cluster, step));
        acknowledged.extend(written);
    }

    for node in [2, 3, 4] {
        let holds = || cluster.registers(node) == acknowledged;
        until("it holds what was acknowledged, and nothing else", holds).await;
    }
    let view = cluster.group(leader(&cluster).await).membership();
    let seats: Vec<(u32, bool)> = view.seats.iter().map(|it| (it.node.0, it.voter)).collect();
    assert_eq!((seats, view.joint), (vec![(2, true), (3, true), (4, true)], false));

    assert!(cluster.registers(1).is_empty());
    cluster.end(1, End::PowerCut).await;
    let opened = cluster.restart(1, Rows::Kept).await;
    assert!(matches!(opened, Err(HostError::Tombstone(_))), "{opened:?}");
    let stream = StreamId { group: GROUP, replica: replica_of(1) };
    assert_eq!(cluster.host(1).wal().tombstones(), [stream]);
    assert!(cluster.try_group(1).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_member_is_replaced_under_writes() {
    Box::pin(node_4_takes_the_seat_of_node_1(121, None)).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_is_replaced_whenever_the_leader_dies() {
    for cut in 0..STEPS.len() {
        Box::pin(node_4_takes_the_seat_of_node_1(122, Some(cut))).await;
    }
}
