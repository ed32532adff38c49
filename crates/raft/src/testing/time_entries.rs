//! Time goes on in a group without traffic, as long as something in it ends by time (W5).
//!
//! What ends does so at the same moment of group time on every replica, and that time is what entries told.
//! What a leader did not tell is lost with it: if it tells nothing until something is due, a deadline moves
//! by all the time that it led.

use std::time::Duration;

use annulus_types::NodeId;
use tokio::time::Instant;

use super::cluster::{LONG, TestCluster, ms, pass, until};
use super::node::End;
use super::registers::ENDS;
use crate::gate::Core;
use crate::options::WeakenHost;

/// Lets something end `span_ms` after an entry. Returns a moment shortly before that entry.
async fn end_after(cluster: &TestCluster, span_ms: u64) -> Instant {
    let begun = Instant::now();
    cluster.propose(1, "begun", 1, LONG).await.expect("the cluster works");
    let begun_ms = cluster.group(1).group_time_ms();
    cluster.propose(1, ENDS, begun_ms + span_ms, LONG).await.expect("the cluster works");
    begun
}

fn has_ended(cluster: &TestCluster, nodes: &[u32]) -> bool {
    nodes.iter().all(|node| cluster.register(*node, ENDS).is_none())
}

#[tokio::test(start_paused = true)]
async fn a_group_in_which_nothing_ends_proposes_nothing() {
    let cluster = Box::pin(TestCluster::new(3, 301, WeakenHost::default())).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("x", 1)).await;
    let (last, time_ms) = (cluster.applied(1), cluster.group(1).group_time_ms());
    pass(ms(60_000)).await;
    assert_eq!((cluster.applied(1), cluster.group(1).group_time_ms()), (last, time_ms));
    assert_eq!(cluster.group(1).status().last_index, last.index, "nor is anything on its way");
}

#[tokio::test(start_paused = true)]
async fn what_is_due_ends_without_traffic_by_few_entries() {
    let cluster = Box::pin(TestCluster::new(3, 302, WeakenHost::default())).await;
    let begun = end_after(&cluster, 25_000).await;
    let first = cluster.applied(1).index;
    until("it has ended everywhere", || has_ended(&cluster, &[1, 2, 3])).await;
    let lived = begun.elapsed();
    assert!(lived >= ms(25_000) && lived < ms(26_000), "{lived:?}");
    assert_eq!(cluster.applied(1).index - first, 3, "after 10 s, 20 s and 25 s");
    let last = cluster.applied(1);
    pass(ms(60_000)).await;
    assert_eq!(cluster.applied(1), last, "and nothing more");
}

#[tokio::test(start_paused = true)]
async fn entries_with_operations_make_time_entries_superfluous() {
    let cluster = Box::pin(TestCluster::new(3, 303, WeakenHost::default())).await;
    end_after(&cluster, 600_000).await;
    let first = cluster.applied(1).index;
    for value in 0..5 {
        pass(ms(9_000)).await;
        cluster.propose(1, "x", value, LONG).await.expect("the cluster works");
    }
    assert_eq!(cluster.applied(1).index - first, 5);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_nobody_answers_proposes_no_time() {
    let cluster = Box::pin(TestCluster::new(3, 304, WeakenHost::default())).await;
    end_after(&cluster, 5_000).await;
    cluster.partition(1, 2);
    cluster.partition(1, 3);
    until("the gate is shut", || !cluster.gate_is_open(1)).await;
    let last = cluster.group(1).status().last_index;
    until("its successor has ended it", || has_ended(&cluster, &[2, 3])).await;
    assert_eq!(cluster.group(1).status().last_index, last, "nothing was proposed meanwhile");
    assert!(!has_ended(&cluster, &[1]), "its own clock ends nothing");
    cluster.heal(1, 2);
    cluster.heal(1, 3);
    until("it has ended everywhere", || has_ended(&cluster, &[1, 2, 3])).await;
}

#[tokio::test(start_paused = true)]
async fn proposals_that_are_held_back_hold_back_time_entries() {
    let cluster = Box::pin(TestCluster::new(3, 306, WeakenHost::default())).await;
    end_after(&cluster, 5_000).await;
    let (group, last) = (cluster.group(1), cluster.applied(1));
    let held = group.packer.hold();
    pass(ms(20_000)).await;
    assert!(cluster.gate_is_open(1), "nothing else keeps it from proposing");
    assert_eq!((group.status().last_index, cluster.applied(1)), (last.index, last));
    drop(held);
    until("it has ended everywhere", || has_ended(&cluster, &[1, 2, 3])).await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_gate_is_latched_leaves_time_to_its_successor() {
    let cluster = Box::pin(TestCluster::new(3, 307, WeakenHost::default())).await;
    end_after(&cluster, 5_000).await;
    let (group, last) = (cluster.group(1), cluster.applied(1));
    assert!(group.replica.gate.change(Core::latch), "it leads");
    pass(ms(20_000)).await;
    assert!(cluster.leads(1), "nobody else does");
    assert_eq!((group.status().last_index, cluster.applied(1)), (last.index, last));
    group.transfer(NodeId(2), LONG).await.expect("node 2 is a voter with a link");
    until("its successor has ended it", || has_ended(&cluster, &[1, 2, 3])).await;
}

/// How long something lives that should live for 40 s, when the leader dies after 35 s.
async fn the_leader_dies_before_the_deadline(weaken: WeakenHost) -> Duration {
    let mut cluster = Box::pin(TestCluster::new(3, 305, weaken)).await;
    let begun = end_after(&cluster, 40_000).await;
    pass(ms(35_000)).await;
    assert!(!has_ended(&cluster, &[1]));
    cluster.end(1, End::Kill).await;
    cluster.leader_among(&[2, 3]).await;
    let elected = Instant::now();
    let ended = || has_ended(&cluster, &[2, 3]);
    // In two parts: together they may be longer than what is waited for.
    until("it has ended, or long has passed", || ended() || elected.elapsed() > ms(25_000)).await;
    until("it has ended", ended).await;
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_deadline_moves_with_a_leader_by_what_it_did_not_tell_and_that_is_little() {
    let lived = Box::pin(the_leader_dies_before_the_deadline(WeakenHost::default())).await;
    // 10 s, and the time without a leader.
    assert!(lived >= ms(40_000) && lived < ms(52_000), "{lived:?}");
    let weaken = WeakenHost { no_time_steps: true, ..WeakenHost::default() };
    let lived = Box::pin(the_leader_dies_before_the_deadline(weaken)).await;
    assert!(lived >= ms(70_000), "{lived:?}");
}
