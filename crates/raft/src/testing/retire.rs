//! Replicas are destroyed on the word of their group, and of nobody else (H4).

use std::collections::BTreeMap;
use std::path::Path;

use annulus_runtime::Disk as _;
use annulus_types::{Error, ErrorKind, NodeId, ReplicaId};
use annulus_wal::StreamId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::cluster::{LONG, TestCluster, ms, pass, until};
use super::membership::{change, seat_of};
use super::node::{End, GROUP, Rows, replica_of};
use crate::host::HostError;
use crate::machine::GroupState;
use crate::membership::Change;
use crate::options::WeakenHost;
use crate::remains;
use crate::types::{Membership, Payload, Seat};

fn stream_of(node: u32) -> StreamId {
    StreamId { group: GROUP, replica: replica_of(node) }
}

async fn holding_x(nodes: u32, seed: u64, weaken: WeakenHost) -> TestCluster {
    let cluster = Box::pin(TestCluster::new(nodes, seed, weaken)).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("x", 1)).await;
    cluster
}

fn is_not_ready(refused: &Result<(), Error>) -> bool {
    matches!(refused, Err(error) if matches!(error.kind, ErrorKind::NotReady { .. }))
}

/// Whether a node has destroyed its replica: nothing in the engine, no files, and for good.
async fn is_destroyed(cluster: &TestCluster, node: u32) -> bool {
    let host = cluster.host(node);
    if !host.wal().tombstones().contains(&stream_of(node)) {
        return false;
    }
    assert!(cluster.try_group(node).is_none() && host.held().is_empty());
    assert!(cluster.registers(node).is_empty());
    let (engine, snapshots) = (host.engine().as_ref(), Path::new("/snapshots"));
    assert_eq!(GroupState::load(engine, GROUP).expect("it reads"), GroupState::default());
    assert_eq!(remains::owner(engine, GROUP).expect("it reads"), None);
    let names = cluster.disk(node).list(snapshots).unwrap_or_default();
    assert!(names.is_empty(), "{names:?}");
    let again = cluster.open_again(node).await;
    assert!(matches!(again, Err(HostError::Tombstone(_))), "{again:?}");
    true
}

/// A manager that was restored from yesterday does not know node 2's replica, while node 3 is down.
/// Whether the replica is still there, and whether the group takes writes.
async fn somebody_wants_a_member_gone(weaken: WeakenHost) -> (bool, bool) {
    let mut cluster = holding_x(3, 111, weaken).await;
    pass(ms(20)).await;
    cluster.end(3, End::Kill).await;
    let asked = cluster.host(2).retire(GROUP, replica_of(2), &[], 0, ms(500)).await;
    let is_there = cluster.try_group(2).is_some() && cluster.register(2, "x") == Some(1);
    assert_eq!(is_not_ready(&asked), is_there, "{asked:?}");
    let is_written = cluster.propose(1, "y", 2, ms(3000)).await.is_ok();
    (is_there, is_written)
}

#[tokio::test(start_paused = true)]
async fn a_member_is_not_destroyed_whoever_asks() {
    let seen = Box::pin(somebody_wants_a_member_gone(WeakenHost::default())).await;
    assert_eq!(seen, (true, true));
    let weaken = WeakenHost { destroy_without_proof: true, ..WeakenHost::default() };
    let seen = Box::pin(somebody_wants_a_member_gone(weaken)).await;
    assert_eq!(seen, (false, false), "the majority is gone, and with it what was acknowledged");
}

async fn a_removal_is_not_committed_yet() {
    let cluster = holding_x(3, 112, WeakenHost::default()).await;
    let group = cluster.group(1);
    // The removal reaches nobody who could agree.
    let left: BTreeMap<u64, Seat> =
        [1, 2].into_iter().map(seat_of).map(|(id, node)| (id.0, Seat { node })).collect();
    let config = left.keys().copied().collect();
    let uniform = Membership::new(vec![config], left).expect("every voter has a seat");
    cluster.silence(1, 2);
    let appended = group.raft.append_membership(uniform, Payload::Blank, Vec::new());
    let waiting = tokio::time::timeout(ms(50), Box::pin(appended)).await;
    assert!(waiting.is_err(), "node 2 has not heard of it");
    let view = group.membership();
    assert_eq!((view.seats.len(), view.committed, view.joint), (2, false, false));

    let early = cluster.host(3).retire(GROUP, replica_of(3), &[], 0, ms(200)).await;
    assert!(is_not_ready(&early), "{early:?}");
    assert!(!is_destroyed(&cluster, 3).await);
    assert_eq!(cluster.register(3, "x"), Some(1));

    cluster.heal(1, 2);
    until("it is committed", || cluster.group(2).membership().seats.len() == 2).await;
    let retired = cluster.host(3).retire(GROUP, replica_of(3), &[], 0, LONG).await;
    assert_eq!(retired, Ok(()));
    assert!(is_destroyed(&cluster, 3).await);
    // And again.
    let again = cluster.host(3).retire(GROUP, replica_of(3), &[], 0, LONG).await;
    assert_eq!(again, Ok(()));
    cluster.propose(1, "y", 1, LONG).await.expect("nodes 1 and 2 are the group");
}

#[tokio::test(start_paused = true)]
async fn a_removal_counts_when_it_is_committed() {
    Box::pin(a_removal_is_not_committed_yet()).await;
}

async fn a_replica_is_cancelled() {
    let cluster = Box::pin(TestCluster::founded(4, 3, 113, WeakenHost::default())).await;
    for value in 0..20 {
        cluster.propose(1, "x", value, LONG).await.expect("the cluster works");
    }
    cluster.open_again(4).await.expect("a new replica opens");
    let seeded = cluster.group(1).seed(seat_of(4), LONG).await;
    assert!(seeded.is_ok_and(|bytes| bytes > 0));
    assert_eq!(cluster.register(4, "x"), Some(19));
    // It knows a membership, and has no seat in it.
    let retired = cluster.host(4).retire(GROUP, replica_of(4), &[], 0, ms(300)).await;
    assert!(is_not_ready(&retired), "{retired:?}");
    assert_eq!(cluster.host(4).cancel(GROUP, replica_of(4)).await, Ok(()));
    assert!(is_destroyed(&cluster, 4).await);
    assert_eq!(cluster.host(4).cancel(GROUP, replica_of(4)).await, Ok(()));

    // One that was never created, and never will be.
    let never = ReplicaId(44);
    assert_eq!(cluster.host(4).cancel(GROUP, never).await, Ok(()));
    let created = cluster.open_replica(4, never).await;
    assert!(matches!(created, Err(HostError::Tombstone(id)) if id == never), "{created:?}");

    let member = cluster.host(3).cancel(GROUP, replica_of(3)).await;
    assert!(is_not_ready(&member), "{member:?}");
    assert!(cluster.try_group(3).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_replica_without_a_seat_is_cancelled_and_a_member_is_not() {
    Box::pin(a_replica_is_cancelled()).await;
}

#[tokio::test(start_paused = true)]
async fn a_learner_had_a_seat() {
    let cluster = Box::pin(TestCluster::founded(4, 3, 114, WeakenHost::default())).await;
    cluster.open_again(4).await.expect("a new replica opens");
    let join = Change { add_learner: Some(seat_of(4)), ..Change::default() };
    change(&cluster, 1, join).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("node 4 follows", || cluster.register(4, "x") == Some(1)).await;
    let member = cluster.host(4).cancel(GROUP, replica_of(4)).await;
    assert!(is_not_ready(&member), "{member:?}");
    let leave = Change { remove: Some(replica_of(4)), ..Change::default() };
    change(&cluster, 1, leave).await;
    assert_eq!(cluster.host(4).retire(GROUP, replica_of(4), &[], 0, LONG).await, Ok(()));
    assert!(is_destroyed(&cluster, 4).await);
}

/// Node 3 has stopped between the tombstone of its replica and the end of its rows.
async fn a_crash_leaves_rows(seed: u64, weaken: WeakenHost) -> TestCluster {
    let mut cluster = holding_x(3, seed, weaken).await;
    let (done, durable) = oneshot::channel();
    let destroyed = Box::new(move |result| drop(done.send(result)));
    cluster.host(3).wal().destroy(stream_of(3), destroyed);
    durable.await.expect("the writer runs").expect("a sound disk");
    cluster.end(3, End::PowerCut).await;
    assert_eq!(cluster.register(3, "x"), Some(1));
    cluster.start(3).await;
    cluster
}

/// What the next replica of the group on that node holds before anybody has told it anything.
async fn another_begins(weaken: WeakenHost) -> Option<u64> {
    let cluster = a_crash_leaves_rows(115, weaken).await;
    let again = cluster.open_again(3).await;
    assert!(matches!(again, Err(HostError::Tombstone(_))), "{again:?}");
    cluster.open_replica(3, ReplicaId(33)).await.expect("a new replica opens");
    cluster.register(3, "x")
}

#[tokio::test(start_paused = true)]
async fn what_a_destroyed_replica_left_is_nobodys() {
    assert_eq!(Box::pin(another_begins(WeakenHost::default())).await, None);
    let weaken = WeakenHost { keep_remains: true, ..WeakenHost::default() };
    assert_eq!(Box::pin(another_begins(weaken)).await, Some(1), "it applied nothing of that");
}

#[tokio::test(start_paused = true)]
async fn rows_that_a_crash_has_left_go_at_the_next_start() {
    let cluster = Box::pin(a_crash_leaves_rows(116, WeakenHost::default())).await;
    let engine = cluster.host(3).engine().as_ref();
    assert_eq!(GroupState::load(engine, GROUP).expect("it reads"), GroupState::default());
    assert_eq!(remains::owner(engine, GROUP).expect("it reads"), None);
    assert!(cluster.host(3).held().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_replica_does_not_open_beside_another_of_its_group() {
    let mut cluster = Box::pin(holding_x(3, 117, WeakenHost::default())).await;
    let other = ReplicaId(33);
    let beside = cluster.open_replica(3, other).await;
    assert!(matches!(beside, Err(HostError::Occupied(id)) if id == replica_of(3)), "{beside:?}");
    // Nor before the one that the folder holds has been tried.
    cluster.end(3, End::Kill).await;
    cluster.start(3).await;
    let before = cluster.open_replica(3, other).await;
    assert!(matches!(before, Err(HostError::Occupied(id)) if id == replica_of(3)), "{before:?}");
    assert_eq!(cluster.host(3).held(), [(GROUP, replica_of(3))]);
    cluster.open_again(3).await.expect("its log is undamaged");
    assert_eq!(cluster.register(3, "x"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_replica_that_is_destroyed_is_told() {
    let weaken = WeakenHost { destroy_without_proof: true, ..WeakenHost::default() };
    let cluster = Box::pin(holding_x(3, 118, weaken)).await;
    let group = cluster.group(3);
    cluster.partition(1, 3);
    let began = Instant::now();
    let destroying = async {
        pass(ms(50)).await;
        cluster.host(3).retire(GROUP, replica_of(3), &[], 0, LONG).await
    };
    let (read, destroyed) = tokio::join!(group.read_grant(true, LONG), destroying);
    assert_eq!(destroyed, Ok(()));
    let refused = read.expect_err("nobody vouches for it any more");
    assert!(matches!(refused.kind, ErrorKind::NotReady { .. }), "{refused:?}");
    assert!(began.elapsed() < ms(1000), "{:?}", began.elapsed());
    assert!(is_destroyed(&cluster, 3).await);
}

#[tokio::test(start_paused = true)]
async fn a_destroyed_replica_is_destroyed_after_a_restart() {
    let weaken = WeakenHost { destroy_without_proof: true, ..WeakenHost::default() };
    let mut cluster = Box::pin(holding_x(3, 119, weaken)).await;
    let retired = cluster.host(3).retire(GROUP, replica_of(3), &[], 0, LONG).await;
    assert_eq!(retired, Ok(()));
    cluster.end(3, End::PowerCut).await;
    let opened = cluster.restart(3, Rows::Kept).await;
    assert!(matches!(opened, Err(HostError::Tombstone(_))), "{opened:?}");
    assert!(is_destroyed(&cluster, 3).await);
}

/// Another replica takes the place of node 3's on the same node, and its log is lost later.
async fn a_replica_that_failed_is_replaced_in_place() {
    let cluster = holding_x(3, 120, WeakenHost::default()).await;
    let (host, new) = (cluster.host(3), ReplicaId(33));
    let sound = host.make_room(GROUP, new).await;
    assert!(matches!(sound, Err(HostError::Occupied(id)) if id == replica_of(3)), "{sound:?}");
    let applied = cluster.applied(3);
    cluster.group(3).distrust("a value does not match its checksum");
    host.make_room(GROUP, new).await.expect("it has failed");
    assert!(cluster.try_group(3).is_none());
    assert!(host.absent().iter().any(|(_, id, _)| *id == replica_of(3)));
    cluster.open_replica(3, new).await.expect("the other one has given way");
    assert_eq!(cluster.register(3, "x"), None);

    let learn = Change { add_learner: Some((new, NodeId(3))), ..Change::default() };
    change(&cluster, 1, learn).await;
    until("it follows", || cluster.register(3, "x") == Some(1)).await;
    let swap = Change { promote: Some(new), remove: Some(replica_of(3)), ..Change::default() };
    let floor = change(&cluster, 1, swap).await.index;

    let (done, durable) = oneshot::channel();
    let log = host.wal().log(stream_of(3)).expect("the log is undamaged");
    log.reset(applied, Box::new(move |result| drop(done.send(result))));
    durable.await.expect("the writer runs").expect("a sound disk");
    for unproved in [0, floor + 100] {
        let asked = host.retire(GROUP, replica_of(3), &[NodeId(1)], unproved, ms(300)).await;
        assert!(is_not_ready(&asked), "{asked:?}");
        assert!(host.wal().tombstones().is_empty());
    }
    let retired = host.retire(GROUP, replica_of(3), &[NodeId(1)], floor, LONG).await;
    assert_eq!(retired, Ok(()));
    assert_eq!(host.wal().tombstones(), [stream_of(3)]);
    assert_eq!(host.held(), [(GROUP, new)]);
    assert_eq!(cluster.register(3, "x"), Some(1), "the rows are the new one's");
}

#[tokio::test(start_paused = true)]
async fn a_failed_replica_gives_way_and_is_destroyed_on_proof() {
    Box::pin(a_replica_that_failed_is_replaced_in_place()).await;
}
