//! Sessions, bounds and reads of several keys, against nodes that keep the promises of each mode.

use annulus_types::{Mode, ShardId, token_of};

use super::fake::{Cluster, not_leader, table, two_shards};
use super::*;

/// The session has seen a write, and nodes 1 and 3 have not.
async fn written(cluster: &Cluster) -> (Client, Session) {
    let client = cluster.client().await;
    let session = client.session();
    cluster.node(1).cut_off();
    cluster.node(3).cut_off();
    session.put("k", "new").await.unwrap();
    (client, session)
}

#[tokio::test(start_paused = true)]
async fn a_session_reads_its_writes_whoever_is_asked_first() {
    let cluster = Cluster::start(Some(table(1, Some(2))));
    let (client, session) = written(&cluster).await;
    let old = client.get("k").consistency(Consistency::Any).from_node(NodeId(1)).await.unwrap();
    assert_eq!(old.value.as_deref(), Some(&b"value"[..]), "the node does answer others");

    let clone = session.clone();
    let mut attempts = 0;
    for _ in 0..3 {
        for session in [&session, &clone] {
            let found = session.get("k").await.unwrap();
            assert_eq!(found.value.as_deref(), Some(&b"new"[..]));
            assert_eq!((found.receipt.mode, found.receipt.node), (Mode::Session, NodeId(2)));
            attempts += found.attempts;
        }
    }
    assert!(attempts > 6, "{attempts}: the others were asked too");
    let [first, second, third] = cluster.heard();
    assert!(first >= 2 && third >= 2, "{first} {second} {third}");
    let header = |id| cluster.node(id).state.lock().heard.last().cloned().unwrap();
    assert_eq!(header(3).session_token, session.token());
    let of_put = cluster.node(2).state.lock().heard[0].clone();
    assert!(of_put.session_token.is_empty(), "a mutation with a token would be refused");

    let many = session.multi_get(["k", "none"]).await.unwrap();
    let values: Vec<_> = many.iter().map(|found| found.value.as_deref()).collect();
    assert_eq!(values, [Some(&b"new"[..]), None]);
}

#[tokio::test(start_paused = true)]
async fn what_a_read_has_shown_is_not_taken_back() {
    let cluster = Cluster::start(Some(table(1, Some(2))));
    let (client, _) = written(&cluster).await;
    let session = client.session();
    assert!(session.token().is_empty());
    let new = session.get("k").consistency(Consistency::Linearizable).await.unwrap();
    assert_eq!(new.value.as_deref(), Some(&b"new"[..]));
    for _ in 0..3 {
        let found = session.get("k").await.unwrap();
        assert!(found.receipt.revision >= new.receipt.revision, "{found:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_goes_on_from_its_token() {
    let cluster = Cluster::start(Some(table(1, Some(2))));
    let (client, session) = written(&cluster).await;
    let resumed = Session::from_token(&client, &session.token()).unwrap();
    for _ in 0..3 {
        let found = resumed.get("k").await.unwrap();
        assert_eq!(found.value.as_deref(), Some(&b"new"[..]));
    }
    let kind = |token: &[u8]| Session::from_token(&client, token).unwrap_err().kind;
    assert!(matches!(kind(b"nonsense"), ErrorKind::BadRequest { .. }));
    let foreign = SessionToken::new(ClusterId([2; 16])).encode();
    assert_eq!(kind(&foreign), ErrorKind::WrongCluster { actual: ClusterId([1; 16]) });
}

#[tokio::test(start_paused = true)]
async fn a_lost_history_is_told_at_once() {
    let cluster = Cluster::start(Some(table(1, Some(2))));
    let client = cluster.client().await;
    let session = client.session();
    session.put("k", "new").await.unwrap();
    cluster.shard().revision = 1;
    let before: usize = cluster.heard().iter().sum();
    let error = session.get("k").await.unwrap_err();
    assert_eq!(error, Error::refused(ErrorKind::HistoryLost));
    assert_eq!(cluster.heard().iter().sum::<usize>(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_bound_is_kept_by_whoever_can() {
    let cluster = Cluster::start(Some(table(1, Some(2))));
    let (client, _) = written(&cluster).await;
    let limit = Consistency::Bounded(Duration::from_millis(500));
    let start = tokio::time::Instant::now();
    for _ in 0..3 {
        let found = client.get("k").consistency(limit.clone()).await.unwrap();
        assert_eq!((found.receipt.mode, found.receipt.node), (Mode::Bounded, NodeId(2)));
        assert_eq!(found.value.as_deref(), Some(&b"new"[..]));
    }
    assert!(start.elapsed() < Duration::from_millis(10), "the next one is asked at once");
    assert!(cluster.heard()[0] > 0 && cluster.heard()[2] > 0, "{:?}", cluster.heard());
    let header = cluster.node(1).state.lock().heard.last().cloned().unwrap();
    assert_eq!(header.bound_us, 500_000);

    cluster.node(2).cut_off();
    let start = tokio::time::Instant::now();
    let call = client.get("k").consistency(limit).deadline(Duration::from_secs(1));
    let error = call.await.unwrap_err();
    assert_eq!(error, Error::refused(ErrorKind::TooStale { limit_us: 1, actual_us: None }));
    assert!(start.elapsed() >= Duration::from_secs(1), "another answer may come until then");
    assert!(cluster.heard().iter().all(|heard| *heard < 30), "{:?}", cluster.heard());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_not_ready_is_passed_over() {
    let cluster = Cluster::start(Some(table(1, Some(2))));
    let client = cluster.client().await;
    let reason = "catching up".to_owned();
    let not_ready = Play::Refuse(Said::refused(ErrorKind::NotReady { reason }));
    cluster.play(1, std::iter::repeat_n(not_ready.clone(), 10));
    cluster.play(3, std::iter::repeat_n(not_ready, 10));
    for _ in 0..3 {
        let found = client.get("k").consistency(Consistency::Session).await.unwrap();
        assert_eq!(found.receipt.node, NodeId(2));
    }
}

/// Two keys of each of the two shards, with values of their own.
fn keys_of_two_shards(cluster: &Cluster) -> [Bytes; 4] {
    let table = two_shards();
    let home = |key: &Bytes| table.shard_of(token_of(key)).map(|route| route.id);
    let all: Vec<Bytes> = (0..100).map(|number| Bytes::from(format!("key{number}"))).collect();
    let of = |shard: u64| -> Vec<Bytes> {
        all.iter().filter(|key| home(key) == Some(ShardId(shard))).take(2).cloned().collect()
    };
    let (zero, one) = (of(0), of(1));
    let keys = [one[0].clone(), zero[0].clone(), one[1].clone(), zero[1].clone()];
    let values = keys.iter().map(|key| (key.clone(), Some(key.clone()))).collect();
    cluster.shard().change(values);
    keys
}

#[tokio::test(start_paused = true)]
async fn many_keys_are_asked_of_their_nodes_and_a_redirect_is_followed() {
    let cluster = Cluster::start(Some(two_shards()));
    let keys = keys_of_two_shards(&cluster);
    let client = cluster.client().await;
    let elsewhere = Said::refused(ErrorKind::NotLeader { leader: Some(NodeId(3)) });
    cluster.node(2).state.lock().refused.insert(ShardId(1), elsewhere);
    let start = tokio::time::Instant::now();
    let found = client.multi_get(keys.clone()).await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(10), "a redirect is followed at once");
    assert_eq!(cluster.heard(), [1, 1, 1]);
    for (key, found) in keys.iter().zip(&found) {
        assert_eq!(found.value.as_ref(), Some(key));
    }
    let told: Vec<_> = found
        .iter()
        .map(|found| (found.receipt.shard.0, found.receipt.node.0, found.attempts))
        .collect();
    assert_eq!(told, [(1, 3, 2), (0, 1, 1), (1, 3, 2), (0, 1, 1)]);

    let again = client.multi_get([keys[0].clone(), Bytes::from_static(b"none")]).await.unwrap();
    assert_eq!((again[0].attempts, again[0].receipt.node), (1, NodeId(3)), "it is remembered");
    assert_eq!((again[1].value.as_ref(), again[1].version), (None, Revision(0)));
    assert!(client.multi_get(Vec::<Bytes>::new()).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn keys_that_were_left_out_are_asked_for_again() {
    let cluster = Cluster::start(Some(table(1, Some(1))));
    let client = cluster.client().await;
    cluster.node(1).state.lock().room = Some(1);
    let found = client.multi_get(["k", "none", "k"]).await.unwrap();
    let values: Vec<_> = found.iter().map(|found| found.value.as_deref()).collect();
    assert_eq!(values, [Some(&b"value"[..]), None, Some(&b"value"[..])]);
    assert_eq!(cluster.heard(), [3, 0, 0]);

    cluster.node(1).state.lock().room = Some(0);
    let error = client.multi_get(["k"]).await.unwrap_err();
    assert!(matches!(error.error.kind, ErrorKind::Internal { .. }), "{error}");
    assert_eq!(cluster.heard(), [4, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn many_keys_fail_by_the_name_of_one() {
    let cluster = Cluster::start(Some(two_shards()));
    let keys = keys_of_two_shards(&cluster);
    let client = cluster.client().await;
    let damaged = ErrorKind::ShardHalted { file: "f".to_owned(), offset: 1 };
    cluster.node(2).state.lock().refused.insert(ShardId(1), Said::refused(damaged.clone()));
    let error = client.multi_get(keys.clone()).await.unwrap_err();
    assert_eq!((&error.key, &error.error.kind), (&keys[0], &damaged));
    assert!(error.to_string().contains("key"), "{error}");

    let no_leader = Said::refused(ErrorKind::NotLeader { leader: None });
    for node in &cluster.nodes {
        node.state.lock().refused.insert(ShardId(0), no_leader.clone());
    }
    let call = client.multi_get([keys[1].clone()]).deadline(Duration::from_secs(1));
    let error = call.await.unwrap_err();
    assert_eq!((&error.key, &error.error.kind), (&keys[1], &ErrorKind::NoQuorum));

    let error = client.multi_get([keys[1].clone(), Bytes::new()]).await.unwrap_err();
    assert!(error.key.is_empty());
    assert_eq!(*error.error, Error::bad_request("key", "1 to 4096 bytes, got 0"));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_down_costs_its_keys_an_attempt() {
    let cluster = Cluster::start(Some(table(1, Some(2))));
    let client = cluster.client().await;
    cluster.refuse_at(2);
    cluster.play(3, [not_leader(Some(1))]);
    let found = client.multi_get(["k"]).await.unwrap();
    assert_eq!((found[0].receipt.node, found[0].attempts), (NodeId(1), 3));
}
