//! An operation id names one mutation: its repetition has the first result, and another mutation under it
//! is refused, at the leader that applied it and at the next one. Real processes, raw calls: the client
//! library never uses an id twice.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::time::Duration;

use annulus_harness::cluster::Cluster;
use annulus_proto::convert::error_of;
use annulus_proto::v1;
use annulus_proto::v1::kv_client::KvClient;
use annulus_runtime::Env;
use annulus_types::{ErrorKind, MayHaveApplied, token_of};
use tonic::transport::Channel;

const LONG: Duration = Duration::from_secs(30);
const KEY: &str = "counter";

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_annulus"))
}

async fn kv(cluster: &Cluster, node: u16) -> KvClient<Channel> {
    let env = Env::real().unwrap();
    KvClient::new(annulus_raft::channel(&env, &cluster.endpoint(node)).await.unwrap())
}

/// The first mutation of a writer.
fn incr(writer: u64, attempt: u32, delta: i64) -> v1::IncrRequest {
    let op = v1::OpId { writer, seq: 1, lowest_unacked: 0, attempt };
    let header = v1::RequestHeader { op: Some(op), ..Default::default() };
    v1::IncrRequest { header: Some(header), key: KEY.into(), delta, min: None, max: None }
}

/// What an addition came to, without what differs between two answers.
async fn added(kv: &mut KvClient<Channel>, request: v1::IncrRequest) -> (v1::IncrResult, i64, u64) {
    let reply = kv.incr(request).await.unwrap().into_inner();
    (reply.result(), reply.value, reply.version)
}

async fn assert_refused(kv: &mut KvClient<Channel>, request: v1::IncrRequest) {
    let refused = error_of(&kv.incr(request).await.unwrap_err());
    assert_eq!(refused.kind, ErrorKind::OpIdReused);
    assert_eq!(refused.may_have_applied, MayHaveApplied::No);
}

#[tokio::test]
async fn another_mutation_under_a_used_id_is_refused_and_a_repetition_has_the_first_result() {
    let mut cluster = Cluster::start_in_lanes(program(), 3, "op-ids", 1).await.unwrap();
    let client = cluster.client().await.unwrap();
    let leader = cluster.leader_of(&client, KEY).await.unwrap();
    let mut first_leader = kv(&cluster, leader).await;
    let opening = v1::OpenWriterRequest { header: None, token: token_of(KEY.as_bytes()).0 };
    let writer = first_leader.open_writer(opening).await.unwrap().into_inner().writer;

    let first = added(&mut first_leader, incr(writer, 0, 5)).await;
    assert_eq!((first.0, first.1), (v1::IncrResult::Done, 5));
    assert_refused(&mut first_leader, incr(writer, 1, 6)).await;
    assert_eq!(added(&mut first_leader, incr(writer, 2, 5)).await, first);

    // The group remembers it, not the node.
    cluster.kill(leader).unwrap();
    let client = cluster.client().await.unwrap();
    let next = cluster.leader_of(&client, KEY).await.unwrap();
    assert_ne!(next, leader);
    let mut next_leader = kv(&cluster, next).await;
    assert_refused(&mut next_leader, incr(writer, 3, 6)).await;
    assert_eq!(added(&mut next_leader, incr(writer, 4, 5)).await, first);

    let found = client.get(KEY).deadline(LONG).await.unwrap();
    assert_eq!(found.value.as_deref(), Some(b"5".as_slice()));
}
