//! Calls against the nodes of a small cluster, in simulated time.

use annulus_types::{Error as Said, NodeId, TableVersion};

use self::fake::{Cluster, Play, addr, not_leader, table};
use super::*;

mod fake;
mod once;
mod reads;
mod shard;
mod stats;

#[tokio::test(start_paused = true)]
async fn a_redirect_is_followed_at_once_and_remembered() {
    let cluster = Cluster::start(Some(table(1, None)));
    let client = cluster.client().await;
    cluster.play(1, [not_leader(Some(3))]);
    let start = tokio::time::Instant::now();
    let written = client.put("k", "v").await.unwrap();
    assert_eq!((written.attempts, written.receipt.node), (2, NodeId(3)));
    assert_eq!(written.version, Revision(5));
    assert!(start.elapsed() < Duration::from_millis(10), "shorter than the shortest pause");

    let written = client.delete("k").await.unwrap();
    assert_eq!((written.attempts, cluster.heard()), (1, [1, 0, 2]));
    let header = cluster.node(3).state.lock().heard[0].clone();
    assert_eq!((&header.cluster_id[..], header.table_version), (&[1; 16][..], 1));
}

#[tokio::test(start_paused = true)]
async fn without_an_id_a_mutation_with_an_unknown_outcome_is_sent_once() {
    let cluster = Cluster::start(Some(table(1, Some(2))));
    let client = cluster.builder().exactly_once(false).connect().await.unwrap();
    cluster.play(2, [Play::Refuse(Said::unknown(ErrorKind::OutcomeUnknown)), Play::Hang]);
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(error, Error::unknown(ErrorKind::OutcomeUnknown));
    assert_eq!(cluster.heard(), [0, 1, 0]);

    let error = client.cas("k", None, "v").deadline(Duration::from_secs(2)).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::DeadlineExceeded { .. }), "{error:?}");
    assert_eq!(error.may_have_applied, MayHaveApplied::Unknown);
    assert_eq!(cluster.heard(), [0, 2, 0]);
    let shard = cluster.shard();
    assert_eq!((shard.opened, shard.names.len()), (0, 0), "nothing has a name");
}

#[tokio::test(start_paused = true)]
async fn a_read_leaves_a_node_that_hangs() {
    let cluster = Cluster::start(Some(table(1, Some(2))));
    let client = cluster.client().await;
    cluster.play(2, [Play::Hang]);
    let found = client.get("k").await.unwrap();
    assert_eq!((found.attempts, found.receipt.node), (2, NodeId(3)));
    assert_eq!(found.value.as_deref(), Some(&b"value"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_refuses_connections_is_passed_over() {
    let cluster = Cluster::start(Some(table(1, Some(2))));
    let client = cluster.client().await;
    cluster.refuse_at(2);
    let written = client.put("k", "v").await.unwrap();
    assert_eq!((written.attempts, written.receipt.node), (2, NodeId(3)));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_finds_no_leader_ends_as_no_quorum_and_no() {
    let cluster = Cluster::start(Some(table(1, None)));
    let client = cluster.client().await;
    for id in 1..=3 {
        cluster.play(id, std::iter::repeat_n(not_leader(None), 1_000));
    }
    let start = tokio::time::Instant::now();
    let error = client.put("k", "v").deadline(Duration::from_secs(3)).await.unwrap_err();
    assert_eq!(error, Error::refused(ErrorKind::NoQuorum));
    // Half a second is for the question that is not needed here.
    assert!(start.elapsed() >= Duration::from_millis(2_500));
    assert!(cluster.heard().iter().all(|heard| (2..=20).contains(heard)), "{:?}", cluster.heard());
}

#[tokio::test(start_paused = true)]
async fn the_last_reason_is_told_when_it_is_not_a_missing_leader() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    let client = cluster.client().await;
    for id in 1..=3 {
        let full = Play::Refuse(Said::refused(ErrorKind::Overloaded));
        cluster.play(id, std::iter::repeat_n(full, 1_000));
    }
    let error = client.put("k", "v").deadline(Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error, Error::refused(ErrorKind::Overloaded));
}

#[tokio::test(start_paused = true)]
async fn a_failed_precondition_is_an_answer() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    let client = cluster.client().await;
    let current = Some(Revision(4));
    let failed = Said::refused(ErrorKind::PreconditionFailed { current });
    cluster.play(1, [Play::Refuse(failed.clone())]);
    assert_eq!(client.cas("k", Some(Revision(3)), "v").await.unwrap_err(), Error::from(failed));
    assert_eq!(cluster.heard(), [1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn any_reads_go_to_all_members() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    let client = cluster.client().await;
    for _ in 0..6 {
        client.get("k").consistency(Consistency::Any).await.unwrap();
    }
    assert_eq!(cluster.heard(), [2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_named_node_is_asked_alone() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    let client = cluster.client().await;
    let found = client.get("k").consistency(Consistency::Any).from_node(NodeId(3)).await.unwrap();
    assert_eq!(found.receipt.node, NodeId(3));

    cluster.play(3, [not_leader(Some(1))]);
    let error = client.get("k").strict(true).from_node(NodeId(3)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotLeader { leader: Some(NodeId(1)) });
    assert_eq!(cluster.heard(), [0, 0, 2]);
    assert!(cluster.node(3).state.lock().heard[1].strict);

    let error = client.get("k").from_node(NodeId(9)).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::BadRequest { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_value_is_not_handed_out() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    let client = cluster.client().await;
    cluster.play(1, [Play::Damage]);
    let error = client.get("k").await.unwrap_err();
    let ErrorKind::Internal { id } = &error.kind else { panic!("{error:?}") };
    assert!(id.contains("value_crc32") && id.contains("node 1"), "{id}");
    assert_eq!(error.may_have_applied, MayHaveApplied::No);
}

#[tokio::test(start_paused = true)]
async fn newer_routes_are_fetched_before_the_next_call() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    let client = cluster.client().await;
    assert_eq!(cluster.table_asked(), [1, 0, 0]);
    for node in &cluster.nodes {
        node.state.lock().table = Some(table(2, Some(2)));
    }
    client.put("k", "v").await.unwrap();
    assert_eq!(cluster.table_asked(), [1, 0, 0], "the answer told of them");
    // Tables are asked for at most every 200 ms.
    tokio::time::advance(Duration::from_millis(200)).await;
    let written = client.put("k", "v").await.unwrap();
    assert_eq!(cluster.table_asked(), [2, 0, 0]);
    assert_eq!(written.receipt.node, NodeId(2));
    assert_eq!(client.routes().await.unwrap().version, TableVersion(2));
}

#[tokio::test(start_paused = true)]
async fn an_unborn_cluster_can_be_connected_to() {
    let cluster = Cluster::start(None);
    let client = cluster.client().await;
    let error = client.put("k", "v").deadline(Duration::from_millis(500)).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::NotReady { .. }), "{error:?}");
    assert_eq!(error.may_have_applied, MayHaveApplied::No);

    cluster.node(2).state.lock().table = Some(table(1, Some(3)));
    assert_eq!(client.put("k", "v").await.unwrap().receipt.node, NodeId(3));
}

#[tokio::test(start_paused = true)]
async fn without_any_node_connecting_fails_at_the_deadline() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    for id in 1..=3 {
        cluster.refuse_at(id);
    }
    let error = Client::builder()
        .endpoints((1..=3).map(addr))
        .env(cluster.env.clone())
        .deadline(Duration::from_secs(1))
        .connect()
        .await
        .unwrap_err();
    assert!(matches!(error.kind, ErrorKind::NotReady { .. }), "{error:?}");
    assert_eq!(error.may_have_applied, MayHaveApplied::No);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_sent_is_refused_before() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    let client = cluster.client().await;
    let refused = |error: Error| match error.kind {
        ErrorKind::BadRequest { field, .. } => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(client.get("").await.unwrap_err()), "key");
    assert_eq!(refused(client.put(vec![0_u8; 4_097], "v").await.unwrap_err()), "key");
    assert_eq!(refused(client.put("k", vec![0_u8; 16 << 20]).await.unwrap_err()), "value");
    assert_eq!(cluster.heard(), [0, 0, 0]);
}

#[test]
fn endpoints_are_host_and_port() {
    let of = |endpoint: &str| addresses(&[endpoint.to_owned()]).map(|mut all| all.remove(0));
    for (endpoint, address) in [
        ("127.0.0.1:7400", "127.0.0.1:7400"),
        (" http://db.example:1/ ", "db.example:1"),
        ("[::1]:7400", "[::1]:7400"),
    ] {
        assert_eq!(of(endpoint).as_deref(), Ok(address));
    }
    for bad in ["", "host", ":7400", "host:", "host:70000", "https://host"] {
        assert!(of(bad).is_err(), "{bad:?}");
    }
    assert!(addresses(&[]).is_err());
}
