//! Frames that are not meant for what is here (N1, N2).
//!
//! openraft knows replicas by their ids alone: a frame for an earlier replica of the same node, or
//! from another cluster, would be obeyed like any other. And a replica is never made by a message.

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;
use annulus_proto::v1::peer_client::PeerClient;
use annulus_types::ClusterId;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use prost::Message as _;

use super::cluster::TestCluster;
use super::node::{CLUSTER, GROUP, info_of, replica_of};
use crate::connect;
use crate::frames::Assembler;
use crate::options::WeakenHost;

/// What node 2 answers to a stranger's envelope; `None` when it ends the link.
async fn answer(cluster: &TestCluster, from: ClusterId, envelope: v1::Envelope) -> Option<Body> {
    let channel = connect::channel(&cluster.stranger(), &info_of(2).peer_addr).await;
    let data = Bytes::from(envelope.encode_to_vec());
    let frame = v1::Frame {
        cluster_id: Bytes::copy_from_slice(&from.0),
        protocol: annulus_proto::PROTOCOL,
        node: 99,
        incarnation: 1,
        pieces: vec![v1::Piece { lane: 0, last: true, data }],
    };
    // The stranger's side stays open: if the link ends, node 2 has ended it.
    let frames = stream::iter([frame]).chain(stream::pending());
    let mut client = PeerClient::new(channel.expect("node 2 listens"));
    let replies = client.link(frames).await.expect("whoever calls is heard first");
    let reply = replies.into_inner().message().await.ok().flatten()?;
    let mut assembler = Assembler::default();
    let mut pieces = reply.pieces.into_iter();
    pieces.find_map(|piece| assembler.take(piece).expect("a whole envelope"))?.body
}

/// A frame of a leader with a later vote than any here.
fn usurper(group: u64, to: u64) -> v1::Envelope {
    let leader = replica_of(3).0;
    let vote = Some(v1::Vote { term: 1000, leader, committed: true });
    let body = Some(Body::Append(v1::AppendRequest { vote, ..Default::default() }));
    v1::Envelope { group, from: leader, to, call: 1, body }
}

/// Whether a frame for a replica that node 2 held in an earlier life moves the one it holds now.
async fn a_frame_for_a_former_replica_is_obeyed(weaken: WeakenHost) -> bool {
    let cluster = TestCluster::new(3, 71, weaken).await;
    let answer = answer(&cluster, CLUSTER, usurper(GROUP.0, 8)).await.expect("an answer");
    let obeyed = cluster.log_state(2).vote.is_some_and(|vote| vote.term == 1000);
    assert_eq!(obeyed, !matches!(answer, Body::Undeliverable(_)), "{answer:?}");
    obeyed
}

#[tokio::test(start_paused = true)]
async fn a_frame_for_a_former_replica_is_undeliverable() {
    assert!(!Box::pin(a_frame_for_a_former_replica_is_obeyed(WeakenHost::default())).await);
    let weaken = WeakenHost { trust_every_frame: true, ..WeakenHost::default() };
    assert!(Box::pin(a_frame_for_a_former_replica_is_obeyed(weaken)).await);
}

/// Whether node 2 answers a member of another cluster.
async fn another_cluster_is_answered(weaken: WeakenHost) -> bool {
    let cluster = TestCluster::new(3, 72, weaken).await;
    let ping = || v1::Envelope {
        call: 1,
        body: Some(Body::Ping(v1::Ping::default())),
        ..Default::default()
    };
    let own = answer(&cluster, CLUSTER, ping()).await;
    assert!(matches!(own, Some(Body::Pong(_))), "{own:?}");
    answer(&cluster, ClusterId([8; 16]), ping()).await.is_some()
}

#[tokio::test(start_paused = true)]
async fn a_frame_of_another_cluster_ends_its_link() {
    assert!(!Box::pin(another_cluster_is_answered(WeakenHost::default())).await);
    let weaken = WeakenHost { trust_every_frame: true, ..WeakenHost::default() };
    assert!(Box::pin(another_cluster_is_answered(weaken)).await);
}

#[tokio::test(start_paused = true)]
async fn a_frame_creates_no_replica() {
    // Whatever else is switched off: there is nothing that a frame could create one with.
    let weaken = WeakenHost { trust_every_frame: true, ..WeakenHost::default() };
    let cluster = Box::pin(TestCluster::new(3, 73, weaken)).await;
    let held = cluster.host(2).held();
    let unknown = answer(&cluster, CLUSTER, usurper(99, 8)).await;
    assert!(matches!(unknown, Some(Body::Undeliverable(_))), "{unknown:?}");
    assert_eq!((cluster.host(2).held(), cluster.host(2).groups().len()), (held, 1));
}
