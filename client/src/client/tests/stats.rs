//! What a client counts.

use annulus_types::Error as Said;

use super::super::*;
use super::fake::{Cluster, Play, not_leader, table};

/// A cluster whose second node leads, and a client of it.
async fn started() -> (Cluster, Client) {
    let cluster = Cluster::start(Some(table(1, Some(2))));
    let client = cluster.client().await;
    (cluster, client)
}

#[tokio::test(start_paused = true)]
async fn attempts_beyond_the_first_are_retries() {
    let (cluster, client) = started().await;
    client.put("k", "v").await.unwrap();
    client.get("k").await.unwrap();
    let quiet = Stats { calls: 2, attempts: 2, ..Stats::default() };
    assert_eq!(client.stats(), quiet);

    cluster.play(2, [Play::LoseReply]);
    let written = client.put("k", "w").await.unwrap();
    let leader = written.receipt.node.0;
    let other = leader % 3 + 1;
    cluster.play(leader, [not_leader(Some(other))]);
    let found = client.clone().get("k").await.unwrap();
    assert_eq!((written.attempts, found.attempts), (2, 2));
    assert_eq!(client.stats(), Stats { calls: 4, attempts: 6, retries: 2, unknown: 0 });
    assert_eq!(cluster.client().await.stats(), Stats::default(), "another client's");
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_is_not_opened_is_an_attempt() {
    let (cluster, client) = started().await;
    cluster.play_aside(2, [not_leader(Some(3))]);
    let written = client.put("k", "v").await.unwrap();
    assert_eq!((written.attempts, written.receipt.node.0), (2, 3));
    assert_eq!(client.stats(), Stats { calls: 1, attempts: 2, retries: 1, unknown: 0 });
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_counted_and_a_refusal_is_not() {
    let (cluster, _) = started().await;
    let client = cluster.builder().exactly_once(false).connect().await.unwrap();
    cluster.play(2, [Play::Refuse(Said::unknown(ErrorKind::OutcomeUnknown))]);
    client.put("k", "v").await.unwrap_err();
    cluster.play(2, [Play::Refuse(Said::bad_request("value", "too long"))]);
    client.put("k", "v").await.unwrap_err();
    assert_eq!(client.stats(), Stats { calls: 2, attempts: 2, retries: 0, unknown: 1 });
}

#[tokio::test(start_paused = true)]
async fn the_keys_of_a_multi_get_count_one_by_one() {
    let (cluster, client) = started().await;
    cluster.node(2).state.lock().room = Some(2);
    client.multi_get(["a", "b", "c"]).await.unwrap();
    let left_out = Stats { calls: 3, attempts: 3, ..Stats::default() };
    assert_eq!(client.stats(), left_out, "a full reply refuses nothing");

    cluster.play(2, [not_leader(Some(3))]);
    client.multi_get(["a", "b"]).await.unwrap();
    assert_eq!(client.stats(), Stats { calls: 5, attempts: 7, retries: 2, unknown: 0 });
}
