//! Nodes tell each other the addresses that they advertise, not those that they listen on: with a proxy there,
//! all that they say to each other goes through it, and a leader that is cut off there is replaced.

use std::path::Path;
use std::time::Duration;

use annulus_harness::cluster::Cluster;
use annulus_harness::process::wait_until;
use annulus_harness::proxy::{Cut, Way};

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn peers_are_reached_where_they_advertise() {
    let program = Path::new(env!("CARGO_BIN_EXE_annulus"));
    let cluster = Cluster::start_proxied(program, 3, "advertised").await.unwrap();
    let proxy = cluster.proxy().unwrap();
    wait_until("every pair is connected through the proxy", LONG, || async {
        [(1, 2), (2, 3), (1, 3)].iter().all(|(one, other)| proxy.connections(*one, *other) > 0)
    })
    .await
    .unwrap();
    cluster.ensure_no_bypass().unwrap();

    let client = cluster.client().await.unwrap();
    client.put("key", "before").deadline(LONG).await.unwrap();
    let leader = cluster.leader_of(&client, "key").await.unwrap();
    let others: Vec<u16> = cluster.nodes().filter(|node| *node != leader).collect();
    let ways: Vec<Way> =
        others.iter().flat_map(|other| [(leader, *other), (*other, leader)]).collect();
    proxy.cut(&ways, Cut::Hold);
    let written = client.put("key", "meanwhile").deadline(LONG).await.unwrap();
    assert!(others.iter().any(|other| u32::from(*other) == written.receipt.node.0));
    cluster.ensure_no_bypass().unwrap();

    proxy.heal();
    cluster.wait_ready().await.unwrap();
    let found = client.get("key").deadline(LONG).await.unwrap();
    assert_eq!(found.value.as_deref(), Some(&b"meanwhile"[..]));
}
