//! A follower needs entries that its leader holds no more (L7), and gets the state that stands for
//! them.

use annulus_proto::v1;
use annulus_proto::v1::peer_client::PeerClient;
use annulus_proto::v1::snapshot_part::Part;
use annulus_wal::EntryId;
use bytes::Bytes;
use futures_util::stream;

use super::caller::about;
use super::cluster::{LONG, TestCluster, ms, pass, until};
use super::node::{CLUSTER, End, GROUP, Rows, info_of, replica_of};
use crate::connect;
use crate::machine::GroupState;
use crate::options::WeakenHost;
use crate::snapshot::files::Manifest;

/// A cluster in which node 3 is down and the logs of the others begin behind what it has; which of
/// them leads, and the entry behind which its log begins.
pub(super) async fn node_3_is_left_behind(seed: u64) -> (TestCluster, u32, EntryId) {
    let mut cluster = TestCluster::new(3, seed, WeakenHost::default()).await;
    cluster.propose(1, "early", 1, LONG).await.expect("the cluster works");
    cluster.propose(1, "removed from every log", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("removed from every log", 1)).await;
    pass(ms(20)).await;
    cluster.end(3, End::Kill).await;
    for number in 0..20 {
        let name = format!("register {number}");
        cluster.propose(1, &name, number, LONG).await.expect("two are a majority");
    }
    cluster.propose(1, "early", 2, LONG).await.expect("two are a majority");
    until("both have applied it", || cluster.applied(2) == cluster.applied(1)).await;
    pass(ms(20)).await;

    cluster.end(1, End::Kill).await;
    cluster.end(2, End::Kill).await;
    let begins = [cluster.restart_late(1).await, cluster.restart_late(2).await];
    let leader = cluster.leader_among(&[1, 2]).await;
    (cluster, leader, begins[leader as usize - 1])
}

pub(super) async fn until_node_3_is_brought_up(cluster: &TestCluster, leader: u32) {
    until("node 3 is brought up", || cluster.registers(3) == cluster.registers(leader)).await;
}

/// Whether node 3's log begins at or behind the entry, so that a snapshot must have made up for it.
pub(super) fn took_a_snapshot(cluster: &TestCluster, begin: EntryId) -> bool {
    cluster.log_state(3).purged.is_some_and(|purged| purged.index >= begin.index)
}

async fn a_follower_is_brought_up() {
    let (mut cluster, leader, begin) = Box::pin(node_3_is_left_behind(76)).await;
    let behind = cluster.registers(3);
    assert!(behind.len() < cluster.registers(leader).len());
    cluster.restart(3, Rows::Kept).await.expect("its log is undamaged");
    until_node_3_is_brought_up(&cluster, leader).await;
    until("its log begins late, too", || took_a_snapshot(&cluster, begin)).await;
    let seats = |node: u32| {
        let members = cluster.group(node).status().members.into_iter();
        members.map(|seat| (seat.replica, seat.node, seat.voter)).collect::<Vec<_>>()
    };
    assert_eq!((seats(3), cluster.group(3).status().halted), (seats(leader), None));

    cluster.propose(leader, "after", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("after", 1)).await;

    // What it took is there to stay.
    pass(ms(20)).await;
    cluster.end(3, End::PowerCut).await;
    cluster.restart(3, Rows::Kept).await.expect("its log is undamaged");
    let leader = cluster.leader_among(&[1, 2]).await;
    cluster.propose(leader, "last", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("last", 1)).await;
    until_node_3_is_brought_up(&cluster, leader).await;
}

#[tokio::test(start_paused = true)]
async fn a_follower_behind_the_beginning_of_its_leaders_log_is_brought_up() {
    Box::pin(a_follower_is_brought_up()).await;
}

async fn a_bit_is_flipped_in_transit() {
    let (mut cluster, leader, begin) = Box::pin(node_3_is_left_behind(77)).await;
    // The last bit of a file: of a register's value.
    cluster.host(leader).snapshots.spoil_next_part();
    cluster.restart(3, Rows::Kept).await.expect("its log is undamaged");
    until("a snapshot was spoilt", || !cluster.host(leader).snapshots.is_to_spoil()).await;
    until_node_3_is_brought_up(&cluster, leader).await;
    until("its log begins late, too", || took_a_snapshot(&cluster, begin)).await;
    assert_eq!(cluster.group(3).status().halted, None);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_with_a_flipped_bit_is_refused_and_sent_again() {
    Box::pin(a_bit_is_flipped_in_transit()).await;
}

/// The header of a snapshot without files that node 3 could send to node 2, if it led.
fn header(cluster: &TestCluster) -> v1::SnapshotHeader {
    let state = GroupState::load(cluster.host(2).engine().as_ref(), GROUP).expect("it reads");
    let (sender, leader) = (cluster.host(3), replica_of(3).0);
    v1::SnapshotHeader {
        cluster_id: Bytes::copy_from_slice(&CLUSTER.0),
        protocol: annulus_proto::PROTOCOL,
        node: 3,
        incarnation: sender.options().incarnation,
        group: GROUP.0,
        from: leader,
        to: replica_of(2).0,
        vote: Some(v1::Vote { term: 1000, leader, committed: true }),
        manifest: Manifest { group: GROUP, state, files: Vec::new() }.encode(),
        about: Some(sender.links.about()),
    }
}

/// What node 2 says to a snapshot that is nothing but a header.
async fn answer(cluster: &TestCluster, header: v1::SnapshotHeader) -> String {
    let channel = connect::channel(&cluster.stranger(), &info_of(2).peer_addr).await;
    let mut client = PeerClient::new(channel.expect("node 2 listens"));
    let part = v1::SnapshotPart { part: Some(Part::Header(header)) };
    match client.send_snapshot(stream::iter([part])).await {
        Ok(_) => "taken".to_owned(),
        Err(status) => status.message().to_owned(),
    }
}

async fn cluster_with_a_write(seed: u64, weaken: WeakenHost) -> TestCluster {
    let cluster = TestCluster::new(3, seed, weaken).await;
    cluster.propose(1, "x", 1, LONG).await.expect("the cluster works");
    until("all hold it", || cluster.everyone_holds("x", 1)).await;
    cluster
}

async fn strangers_send_snapshots() {
    let cluster = cluster_with_a_write(78, WeakenHost::default()).await;
    let voted = cluster.log_state(2).vote;
    let mut other = header(&cluster);
    other.cluster_id = Bytes::from_static(&[8; 16]);
    let other = answer(&cluster, other).await;
    assert!(other.contains("another cluster"), "{other}");
    let former = answer(&cluster, v1::SnapshotHeader { to: 8, ..header(&cluster) }).await;
    assert!(former.contains("no such replica"), "{former}");
    let mut impossible = header(&cluster);
    impossible.vote = impossible.vote.map(|vote| v1::Vote { term: 0, ..vote });
    let impossible = answer(&cluster, impossible).await;
    assert!(impossible.contains("not from the leader"), "{impossible}");
    assert_eq!(cluster.log_state(2).vote, voted, "nobody was obeyed");
    // The same from whom it may be from; the state is held already.
    assert_eq!(answer(&cluster, header(&cluster)).await, "taken");
    assert!(cluster.everyone_holds("x", 1));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_for_somebody_else_or_from_nobody_is_refused() {
    Box::pin(strangers_send_snapshots()).await;
}

/// What node 2 says to snapshots that seem to be of node 3's replica and are not of node 3 as it runs: of
/// another node, of another folder, of an earlier start, of nobody in particular.
async fn others_send_snapshots(weaken: WeakenHost) -> [String; 4] {
    let mut answers: [String; 4] = Default::default();
    for (nth, told) in answers.iter_mut().enumerate() {
        // Each has a cluster of its own: one that is obeyed is obeyed for good.
        let cluster = cluster_with_a_write(79, weaken).await;
        let mut header = header(&cluster);
        match nth {
            0 => {
                header.node = 99;
                header.about = Some(about(99, (1, 1), (1, 8192), (0, 0)));
            }
            1 => header.incarnation += 1,
            2 => header.about = Some(about(3, (0, 1), (9, 8192), (8, 8192))),
            _ => header.about = None,
        }
        *told = answer(&cluster, header).await;
        let is_obeyed = cluster.log_state(2).vote.is_some_and(|vote| vote.term == 1000);
        assert_eq!(is_obeyed, *told == "taken", "{told}");
    }
    answers
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_another_life_or_from_another_seat_is_refused() {
    let answers = Box::pin(others_send_snapshots(WeakenHost::default())).await;
    let reasons =
        ["sits on another node", "is known with data folder", "this is start 0", "sender"];
    for (told, reason) in answers.iter().zip(reasons) {
        assert!(told.contains(reason), "{told} for {reason}");
    }
    let trusting = WeakenHost { trust_every_frame: true, ..WeakenHost::default() };
    let answers = Box::pin(others_send_snapshots(trusting)).await;
    assert_eq!(answers, ["taken"; 4]);
}
