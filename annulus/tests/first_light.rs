//! Three real processes of the real binary: they store, replicate, answer, and survive kills.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use annulus_client::{Client, Consistency, ErrorKind, MayHaveApplied, Mode, NodeId, ServedBy};
use annulus_harness::checkers::acknowledged;
use annulus_harness::cluster::Cluster;
use annulus_harness::process::wait_until;
use annulus_runtime::Env;

const LONG: Duration = Duration::from_secs(30);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_annulus"))
}

async fn put(client: &Client, key: &str, value: &str) {
    client.put(key.to_owned(), value.to_owned()).deadline(LONG).await.unwrap();
}

async fn get(client: &Client, key: &str) -> Option<String> {
    let found = client.get(key.to_owned()).deadline(LONG).await.unwrap();
    found.value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

#[tokio::test]
async fn a_write_survives_the_death_of_its_leader_and_of_everybody() {
    let mut cluster = Cluster::start(program(), 3, "first-light").await.unwrap();
    let client = cluster.client().await.unwrap();
    for n in 0..50 {
        put(&client, &format!("key-{n}"), &format!("value-{n}")).await;
    }
    let leader = cluster.leader_of(&client, "key-0").await.unwrap();
    cluster.kill(leader).unwrap();
    // The first attempt may reach the dead leader's connection: its outcome is then unknown, and
    // only whoever knows that a repetition does no harm may repeat it.
    wait_until("a write is acknowledged after the kill", LONG, || async {
        client.put("key-0", "written after the kill").await.is_ok()
    })
    .await
    .unwrap();
    assert_eq!(get(&client, "key-1").await.as_deref(), Some("value-1"));

    cluster.kill_all().unwrap();
    cluster.move_ports().unwrap();
    for node in cluster.nodes() {
        cluster.start_node(node).unwrap();
    }
    cluster.wait_ready().await.unwrap();
    let client = cluster.client().await.unwrap();
    assert_eq!(get(&client, "key-0").await.as_deref(), Some("written after the kill"));
    for n in 1..50 {
        assert_eq!(get(&client, &format!("key-{n}")).await, Some(format!("value-{n}")));
    }
    assert_eq!(get(&client, "never-written").await, None);
}

#[tokio::test]
async fn what_is_acknowledged_under_a_kill_is_there_and_nothing_else() {
    let mut cluster = Cluster::start(program(), 3, "kill").await.unwrap();
    let client = cluster.client().await.unwrap();
    let leader = cluster.leader_of(&client, "k0").await.unwrap();
    let (mut acknowledged, mut unknown, mut refused) =
        (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for n in 0..300 {
        if n == 100 {
            cluster.kill(leader).unwrap();
        }
        let (key, value) = (format!("k{n}"), format!("v{n}"));
        let sent = client.put(key.clone(), value.clone()).deadline(Duration::from_secs(5)).await;
        match sent {
            Ok(_) => acknowledged.insert(key, value),
            Err(error) if error.may_have_applied == MayHaveApplied::No => {
                refused.insert(key, value)
            }
            Err(_) => unknown.insert(key, value),
        };
    }
    assert!(acknowledged.len() > 250, "only {} of 300 acknowledged", acknowledged.len());
    cluster.start_node(leader).unwrap();
    cluster.wait_ready().await.unwrap();
    let mut found = BTreeMap::new();
    for n in 0..300 {
        let key = format!("k{n}");
        if let Some(value) = get(&client, &key).await {
            found.insert(key, value);
        }
    }
    acknowledged::check(&acknowledged, &unknown, &refused, &found).unwrap();
}

#[tokio::test]
async fn without_a_majority_writes_say_no_and_any_reads_go_on() {
    let mut cluster = Cluster::start(program(), 3, "minority").await.unwrap();
    let client = cluster.client().await.unwrap();
    put(&client, "k", "v").await;
    let everywhere = wait_until("every node serves the value", LONG, || async {
        for node in 1..=3 {
            let read = client.get("k").consistency(Consistency::Any).from_node(NodeId(node));
            match read.await {
                Ok(found) if found.value.as_deref() == Some(b"v") => {}
                _ => return false,
            }
        }
        true
    });
    everywhere.await.unwrap();
    cluster.kill(1).unwrap();
    cluster.kill(2).unwrap();

    // A write of the first moment may have been proposed; what is sent after a failure was said
    // must be refused for good.
    let limit = Duration::from_secs(2);
    wait_until("the survivor knows that it is alone", LONG, || async {
        let refused = client.put("k", "lost").deadline(limit).await;
        refused.is_err_and(|error| error.may_have_applied == MayHaveApplied::No)
    })
    .await
    .unwrap();
    let error = client.put("k", "refused").deadline(limit).await.unwrap_err();
    assert_eq!((error.kind, error.may_have_applied), (ErrorKind::NoQuorum, MayHaveApplied::No));
    let error = client.get("k").deadline(limit).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoQuorum);
    let read = client.get("k").consistency(Consistency::Any).await.unwrap();
    assert_eq!(read.receipt.node, NodeId(3));
    assert!(read.value.is_some());

    cluster.start_node(1).unwrap();
    cluster.start_node(2).unwrap();
    cluster.wait_ready().await.unwrap();
    assert_ne!(get(&client, "k").await.as_deref(), Some("refused"));
}

#[tokio::test]
async fn a_stopped_node_hands_over_and_bad_input_is_told_apart() {
    let mut cluster = Cluster::start(program(), 3, "stop").await.unwrap();
    let client = cluster.client().await.unwrap();
    let again = client.init(0, 0, 0).await.unwrap();
    assert!(!again.1, "a second init creates nothing");
    let written = client.put("k", "v").deadline(LONG).await.unwrap();
    let stale = client.cas("k", None, "other").await.unwrap_err();
    assert_eq!(stale.kind, ErrorKind::PreconditionFailed { current: Some(written.version) });
    let swapped = client.cas("k", Some(written.version), "w").await.unwrap();
    assert!(swapped.version > written.version);
    let empty = client.put("", "v").await.unwrap_err();
    assert!(matches!(empty.kind, ErrorKind::BadRequest { ref field, .. } if field == "key"));
    let large = client.put("k", vec![0; (1 << 20) + 1]).await.unwrap_err();
    assert!(matches!(large.kind, ErrorKind::BadRequest { ref field, .. } if field == "value"));

    let leader = cluster.leader_of(&client, "k").await.unwrap();
    cluster.stop(leader).await.unwrap();
    assert_eq!(get(&client, "k").await.as_deref(), Some("w"));
    let deleted = client.delete("k").deadline(LONG).await.unwrap();
    assert_eq!(deleted.version.0, 0);
    assert_eq!(get(&client, "k").await, None);
}

#[tokio::test]
async fn strict_reads_at_every_replica_see_what_was_acknowledged() {
    let cluster = Cluster::start(program(), 3, "strict").await.unwrap();
    let client = cluster.client().await.unwrap();
    for turn in 0..20 {
        let value = format!("value-{turn}");
        put(&client, "k", &value).await;
        let mut roles = BTreeMap::new();
        for node in 1..=3 {
            let read = client.get("k").strict(true).from_node(NodeId(node)).deadline(LONG);
            let found = read.await.unwrap();
            assert_eq!(found.value.as_deref(), Some(value.as_bytes()), "node {node}");
            let receipt = found.receipt;
            assert_eq!(
                (receipt.mode, receipt.served_by),
                (Mode::Linearizable, ServedBy::ReadIndex)
            );
            assert!(receipt.staleness_bound_us.is_some());
            *roles.entry(format!("{:?}", receipt.role)).or_insert(0) += 1;
        }
        assert_eq!(roles, BTreeMap::from([("Follower".to_owned(), 2), ("Leader".to_owned(), 1)]));
    }
}

#[tokio::test]
async fn a_key_with_a_time_to_live_ends_without_traffic_and_not_before() {
    let cluster = Cluster::start(program(), 3, "ttl").await.unwrap();
    let client = cluster.client().await.unwrap();
    let clock = Env::real().unwrap().clock;
    let (begun_us, ttl) = (clock.monotonic_us(), Duration::from_secs(2));
    client.put("k", "v").ttl(ttl).deadline(LONG).await.unwrap();
    put(&client, "stays", "v").await;
    wait_until("it has ended", LONG, || async {
        let found = client.get("k").await;
        if let Ok(found) = &found
            && let Some(left) = found.expires_in
        {
            // Of the last millisecond nobody knows how much was over when it was asked for.
            let most = ttl + Duration::from_millis(1);
            assert!(found.value.is_some() && left <= most, "{found:?}");
        }
        found.is_ok_and(|found| found.value.is_none())
    })
    .await
    .unwrap();
    let lived = Duration::from_micros(clock.monotonic_us() - begun_us);
    assert!(lived >= ttl, "{lived:?}");
    wait_until("it has ended at every node", LONG, || async {
        for node in 1..=3 {
            let read = client.get("k").consistency(Consistency::Any).from_node(NodeId(node));
            if !read.await.is_ok_and(|found| found.value.is_none()) {
                return false;
            }
        }
        true
    })
    .await
    .unwrap();
    assert_eq!(get(&client, "stays").await.as_deref(), Some("v"));
    let refused = client.put("k", "v").ttl(Duration::ZERO).await.unwrap_err();
    assert!(matches!(refused.kind, ErrorKind::BadRequest { ref field, .. } if field == "ttl_ms"));
}

#[tokio::test]
async fn a_generic_tool_finds_the_services_of_a_node() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServiceResponse};

    let cluster = Cluster::start(program(), 1, "reflection").await.unwrap();
    let env = Env::real().unwrap();
    let channel = annulus_raft::channel(&env, &cluster.endpoint(1)).await.unwrap();
    let asked = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(tokio_stream::once(asked)).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(listed)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<String> =
        listed.service.into_iter().map(|ServiceResponse { name }| name).collect();
    for name in ["annulus.v1.Kv", "annulus.v1.Routes", "annulus.v1.Admin", "grpc.health.v1.Health"]
    {
        assert!(names.iter().any(|listed| listed == name), "{name} is not among {names:?}");
    }
}
