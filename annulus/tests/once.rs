//! An operation id names one mutation: its repetition has the first result, and another mutation under it
//! is refused: at the leader that applied it, at the next one, after all processes were killed, and at a
//! replica that came later and was sent the state. Real processes, raw calls: the client library never uses
//! an id twice.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::time::Duration;

use annulus_client::{Client, NodeChange, NodeChangeKind, NodeState};
use annulus_harness::cluster::Cluster;
use annulus_harness::process::wait_until;
use annulus_proto::convert::error_of;
use annulus_proto::v1;
use annulus_proto::v1::kv_client::KvClient;
use annulus_runtime::Env;
use annulus_types::{Error, ErrorKind, MayHaveApplied, token_of};
use tonic::transport::Channel;

const LONG: Duration = Duration::from_secs(30);
/// For a handful of moves.
const MOVES: Duration = Duration::from_secs(120);
const KEY: &str = "{op}:counter";
/// Of the same shard.
const FILLER: &str = "{op}:filler";
/// Writes of it, and the bytes of each: the log gets larger than the state, which a new replica is sent then.
const FILLINGS: (usize, usize) = (200, 10_000);
/// Leadership may go home at any moment: so often it is looked for.
const HOPS_MOST: usize = 50;
/// What the first mutation of the writer adds.
const DELTA: i64 = 5;

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

/// What an addition came to, without what differs between two answers: how, the sum, and the version.
type Added = (v1::IncrResult, i64, u64);

/// The leader of the key's group.
async fn leader(cluster: &Cluster) -> u16 {
    let client = cluster.client().await.unwrap();
    cluster.leader_of(&client, KEY).await.unwrap()
}

/// What the leader of the key's group answers, and which node that is.
async fn at_leader(cluster: &Cluster, request: v1::IncrRequest) -> (u16, Result<Added, Error>) {
    for _ in 0..HOPS_MOST {
        let node = leader(cluster).await;
        match kv(cluster, node).await.incr(request.clone()).await {
            Ok(reply) => {
                let reply = reply.into_inner();
                return (node, Ok((reply.result(), reply.value, reply.version)));
            }
            Err(status) => {
                let error = error_of(&status);
                if !error.is_retryable() {
                    return (node, Err(error));
                }
            }
        }
    }
    panic!("nobody goes on leading the key's group");
}

/// The writer's first id names its first mutation, as ever. Returns the node that says so.
async fn assert_remembered(cluster: &Cluster, writer: u64, attempt: u32, first: Added) -> u16 {
    let (_, other) = at_leader(cluster, incr(writer, attempt, DELTA + 1)).await;
    let refused = other.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::OpIdReused);
    assert_eq!(refused.may_have_applied, MayHaveApplied::No);
    let (node, again) = at_leader(cluster, incr(writer, attempt + 1, DELTA)).await;
    assert_eq!(again.unwrap(), first);
    node
}

async fn is_up(client: &Client, node: u16) -> bool {
    let Ok(overview) = client.admin().overview().await else { return false };
    let mut nodes = overview.nodes.iter().filter(|known| known.node == u32::from(node));
    nodes.any(|known| known.state() == NodeState::Up)
}

/// Adds a fourth node and takes everything off the key's home, so that each group has a replica on the new
/// node; then has that one lead the key's group. Returns the new node.
async fn seat_a_new_leader(cluster: &mut Cluster) -> u16 {
    let added = cluster.add_node().unwrap();
    let client = cluster.client().await.unwrap();
    wait_until("the new node is up", LONG, || is_up(&client, added)).await.unwrap();
    let table = client.routes().await.unwrap();
    let group = table.shard_of(token_of(KEY.as_bytes())).unwrap().group;
    let home = table.group(group).unwrap().home.0;

    let change = NodeChange { node: home, change: Some(NodeChangeKind::Draining(true)) };
    wait_until("the manager drains the home", LONG, || async {
        client.admin().change_node(change.clone(), false).await.is_ok()
    })
    .await
    .unwrap();
    wait_until("the home is empty and nothing moves", MOVES, || async {
        let Ok(overview) = client.admin().overview().await else { return false };
        let mut nodes = overview.nodes.iter();
        overview.moves.is_empty() && nodes.any(|known| known.node == home && known.seats == 0)
    })
    .await
    .unwrap();
    wait_until("the new node leads the key's group", MOVES, || async {
        let found = client.get(KEY).await;
        if found.is_ok_and(|found| found.receipt.node.0 == u32::from(added)) {
            return true;
        }
        // Refused while the leader is on its way; the next look tells.
        let _ = client.admin().move_leader(group.0, u32::from(added), false).await;
        false
    })
    .await
    .unwrap();
    added
}

#[tokio::test]
async fn another_mutation_under_a_used_id_is_refused_and_a_repetition_has_the_first_result() {
    let mut cluster = Cluster::start_in_lanes(program(), 3, "op-ids", 1).await.unwrap();
    let opening = v1::OpenWriterRequest { header: None, token: token_of(KEY.as_bytes()).0 };
    let mut opener = kv(&cluster, leader(&cluster).await).await;
    let writer = opener.open_writer(opening).await.unwrap().into_inner().writer;

    let (first_leader, first) = at_leader(&cluster, incr(writer, 0, DELTA)).await;
    let first = first.unwrap();
    assert_eq!((first.0, first.1), (v1::IncrResult::Done, DELTA));
    assert_remembered(&cluster, writer, 1, first).await;

    // The group remembers it, not the node.
    cluster.kill(first_leader).unwrap();
    let next = assert_remembered(&cluster, writer, 3, first).await;
    assert_ne!(next, first_leader);

    // What is remembered outlives every process.
    cluster.start_node(first_leader).unwrap();
    cluster.wait_ready().await.unwrap();
    cluster.kill_all().unwrap();
    for node in cluster.nodes() {
        cluster.start_node(node).unwrap();
    }
    cluster.wait_ready().await.unwrap();
    assert_remembered(&cluster, writer, 5, first).await;

    // It is part of the state that a new replica is sent.
    let client = cluster.client().await.unwrap();
    for _ in 0..FILLINGS.0 {
        client.put(FILLER, vec![b'x'; FILLINGS.1]).deadline(LONG).await.unwrap();
    }
    let seated = Box::pin(seat_a_new_leader(&mut cluster)).await;
    assert_eq!(assert_remembered(&cluster, writer, 7, first).await, seated);

    let found = client.get(KEY).deadline(LONG).await.unwrap();
    assert_eq!(found.value.as_deref(), Some(b"5".as_slice()));
}
