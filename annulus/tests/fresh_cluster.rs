//! A fresh cluster of five real processes: everything lies where the rules of placement say.
//!
//! The table is held against a placement that an independent implementation computed, the way from
//! a key to its shard and around the ring against a second implementation, below: made from the
//! rules, with nothing of the product in it. Last, the nodes' disks are asked.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::cell::RefCell;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use annulus_client::{Client, Consistency, NodeId, RoutingTable, StatusReply, ring_walk};
use annulus_harness::cluster::Cluster;
use annulus_harness::process::wait_until;
use annulus_types::{GroupRoute, token_of};
use serde::Deserialize;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(30);
/// How long the homes get to take the lead of their groups.
const SETTLED: Duration = Duration::from_secs(10);
const NODES: u16 = 5;
const SHARDS: u32 = 128;
const COPIES: usize = 128 * 3;
/// What a token is shifted by to get one of 128 slices.
const SLICE_SHIFT: u32 = 25;
const SEED: u64 = 0x0005_eed5;
const MARKER: &str = "{marker}:1";
const VALUE: &str = "here";

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_annulus"))
}

/// Runs a command of the binary to its end.
fn run(args: &[&str]) -> Output {
    Command::new(program()).args(args).output().unwrap()
}

#[derive(Deserialize)]
struct Placement {
    name: String,
    nodes: Vec<Value>,
    homes: Vec<u32>,
    groups: Vec<PlacedGroup>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct PlacedGroup {
    home: u32,
    lane: u32,
    members: Vec<u32>,
    shards: Vec<u32>,
}

/// The placement of five equal nodes without zones, with default settings.
fn placement_of_five() -> Placement {
    let text = include_str!("../../crates/ring/testdata/placement.json");
    let mut file: Value = serde_json::from_str(text).unwrap();
    let all: Vec<Placement> = serde_json::from_value(file["placements"].take()).unwrap();
    let mut placement = all.into_iter().find(|one| one.name == "five").unwrap();
    for group in &mut placement.groups {
        group.members = home_first(std::mem::take(&mut group.members));
    }
    placement
}

/// The home first. The order of the others says nothing: it depends on whether the node that gave
/// the table is a member itself.
fn home_first(mut members: Vec<u32>) -> Vec<u32> {
    members[1..].sort_unstable();
    members
}

fn members_of(group: &GroupRoute) -> Vec<u32> {
    home_first(group.members.iter().map(|member| member.node.0).collect())
}

/// Everything that follows from a key in this cluster.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    token: u32,
    slice: u32,
    shard: u64,
    home: u32,
    lane: u32,
    /// Home first, the others by id.
    members: Vec<u32>,
    walk_from_token: Vec<u32>,
    walk_from_slice: Vec<u32>,
}

/// As the product finds it.
fn address_by_table(key: &str, table: &RoutingTable) -> Address {
    let token = token_of(key.as_bytes());
    let shard = table.shard_of(token).unwrap();
    let group = table.group(shard.group).unwrap();
    let walk = |token| ring_walk(table, token).iter().map(|node| node.0).collect();
    Address {
        token: token.0,
        slice: shard.slice,
        shard: shard.id.0,
        home: group.home.0,
        lane: group.lane,
        members: members_of(group),
        walk_from_token: walk(token),
        walk_from_slice: walk(table.bounds(shard).0),
    }
}

/// As the second implementation finds it; a new cluster's shards are numbered by their slices.
fn address_by_rules(key: &str, placement: &Placement, points: &[(u32, u32)]) -> Address {
    let token = murmur3(hashed_part(key).as_bytes());
    let slice = token >> SLICE_SHIFT;
    let group = placement.groups.iter().find(|group| group.shards.contains(&slice)).unwrap();
    Address {
        token,
        slice,
        shard: u64::from(slice),
        home: placement.homes[slice as usize],
        lane: group.lane,
        members: group.members.clone(),
        walk_from_token: walk(points, token),
        walk_from_slice: walk(points, slice << SLICE_SHIFT),
    }
}

/// `MurmurHash3_x86_32`, seed 0. A rest of up to three bytes is mixed in as a word whose other
/// bytes are zero, and without the rotation that follows a whole word.
fn murmur3(bytes: &[u8]) -> u32 {
    let mut hash = 0_u32;
    for chunk in bytes.chunks(4) {
        let mut word = [0_u8; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        let word = u32::from_le_bytes(word).wrapping_mul(0xcc9e_2d51);
        hash ^= word.rotate_left(15).wrapping_mul(0x1b87_3593);
        if chunk.len() == 4 {
            hash = hash.rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
        }
    }
    hash ^= u32::try_from(bytes.len()).unwrap();
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// The hash tag, if the key has one that is not empty, else the key.
fn hashed_part(key: &str) -> &str {
    match key.split_once('{').and_then(|(_, rest)| rest.split_once('}')) {
        Some((tag, _)) if !tag.is_empty() => tag,
        _ => key,
    }
}

/// The virtual nodes of five nodes of the default weight: token and node.
fn ring_points() -> Vec<(u32, u32)> {
    let of_node =
        |node: u32| (0..64).map(move |i| (murmur3(format!("server{node}-{i}").as_bytes()), node));
    (1..=u32::from(NODES)).flat_map(of_node).collect()
}

/// The nodes in the order in which somebody meets them who goes up from `token` and around.
fn walk(points: &[(u32, u32)], token: u32) -> Vec<u32> {
    let mut met: Vec<u32> = Vec::new();
    loop {
        let left = points.iter().filter(|(_, node)| !met.contains(node));
        let next = left.min_by_key(|(point, node)| (point.wrapping_sub(token), *node));
        let Some((_, node)) = next else { return met };
        met.push(*node);
    }
}

/// Short and long ones, with letters of one to three bytes and with many braces. None begins with
/// a dash: on a command line it would be an option.
fn random_keys() -> Vec<String> {
    const LETTERS: [char; 16] =
        ['a', 'b', 'c', 'x', 'y', '0', '5', '9', ':', '/', '.', ' ', 'ä', '漢', '{', '}'];
    let mut random = fastrand::Rng::with_seed(SEED);
    let random_key = |_| {
        let length = random.usize(1..=40);
        (0..length).map(|_| LETTERS[random.usize(..LETTERS.len())]).collect()
    };
    (0..1_000).map(random_key).collect()
}

/// The nodes that lead a group and may answer for it.
fn leaders(status: &StatusReply, group: u64) -> Vec<u32> {
    let leads = status.nodes.iter().filter(|node| {
        node.replicas.iter().any(|replica| replica.group == group && replica.gate_open)
    });
    leads.filter_map(|node| Some(node.info.as_ref()?.id)).collect()
}

/// Whether every group is led by its home and every copy of every shard exists.
fn is_settled(status: &StatusReply) -> bool {
    let Some(table) = &status.table else { return false };
    let copies: usize = status.nodes.iter().map(|node| node.shards.len()).sum();
    copies == COPIES && table.groups.iter().all(|group| leaders(status, group.id) == [group.home])
}

/// Homes take the lead, and the load is even.
async fn check_load(client: &Client) {
    let settled = RefCell::new(None);
    wait_until("every group is led by its home", SETTLED, || async {
        match client.status(false).await {
            Ok(status) if is_settled(&status) => {
                *settled.borrow_mut() = Some(status);
                true
            }
            _ => false,
        }
    })
    .await
    .unwrap();
    let status: StatusReply = settled.into_inner().unwrap();
    let table = status.table.as_ref().unwrap();
    assert_eq!(status.nodes.len(), usize::from(NODES));
    for node in &status.nodes {
        let id = node.info.as_ref().unwrap().id;
        let led = table.shards.iter().filter(|shard| leaders(&status, shard.group) == [id]);
        let (led, copies) = (led.count(), node.shards.len());
        assert!((25..=26).contains(&led), "node {id} leads {led} shards");
        assert!((76..=77).contains(&copies), "node {id} holds {copies} shards");
        for held in &node.shards {
            let group = table.groups.iter().find(|group| group.id == held.group).unwrap();
            let is_member = group.members.iter().any(|member| member.node == id);
            assert!(is_member, "node {id} holds shard {} of group {}", held.shard, held.group);
        }
    }
}

fn check_table(table: &RoutingTable, placement: &Placement) {
    let nodes = table
        .nodes
        .iter()
        .map(|node| json!({ "id": node.id.0, "weight": node.weight, "zone": node.zone }));
    assert_eq!(nodes.collect::<Vec<_>>(), placement.nodes);
    let slices: Vec<u32> = table.shards.iter().map(|shard| shard.slice).collect();
    assert_eq!(slices, (0..SHARDS).collect::<Vec<_>>());
    let homes = table.shards.iter().map(|shard| table.group(shard.group).unwrap().home.0);
    assert_eq!(homes.collect::<Vec<_>>(), placement.homes);
    let groups = table.groups.iter().map(|group| {
        let shards = table.shards.iter().filter(|shard| shard.group == group.id);
        PlacedGroup {
            home: group.home.0,
            lane: group.lane,
            members: members_of(group),
            shards: shards.map(|shard| shard.slice).collect(),
        }
    });
    assert_eq!(groups.collect::<Vec<_>>(), placement.groups);
}

/// What `kvctl` says of a key. Blocks the thread: nothing else runs here.
fn check_explained(cluster: &Cluster, key: &str, table: &RoutingTable, expected: &Address) {
    let endpoints = cluster.endpoints().join(",");
    let to_node = ["kvctl", "--endpoints", &endpoints, "--timeout", "30s"];
    let output = run(&[&to_node[..], &["explain", "key", key, "-o", "json"]].concat());
    assert!(output.status.success(), "{key:?}: {output:?}");
    let view: Value = serde_json::from_slice(&output.stdout).unwrap();
    let group = table.shards[expected.slice as usize].group.0;
    for (name, wanted) in [
        ("key", json!(key)),
        ("routing_key", json!(hashed_part(key))),
        ("token", json!(expected.token)),
        ("slice", json!(expected.slice)),
        ("shard", json!(expected.shard)),
        ("group", json!(group)),
        ("home", json!(expected.home)),
        ("ring_walk", json!(expected.walk_from_slice)),
    ] {
        assert_eq!(view[name], wanted, "{name} of {key:?}");
    }
    let replicas: Vec<u32> = serde_json::from_value(view["replicas"].clone()).unwrap();
    assert_eq!(home_first(replicas), expected.members, "replicas of {key:?}");
}

/// What the folder of a stopped node says of the marker; whether it was found.
fn find_marker(cluster: &Cluster, node: u16, version: u64, expected: &Address) -> bool {
    let folder = cluster.data_dir(node).display().to_string();
    let output = run(&["debug", "find", MARKER, "--data-dir", &folder, "-o", "json"]);
    let replicas: Vec<Value> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("node {node}: {error}: {output:?}"));
    let Some(replica) = replicas.first() else {
        assert_eq!(output.status.code(), Some(1), "node {node}: {output:?}");
        return false;
    };
    assert_eq!((replicas.len(), output.status.code()), (1, Some(0)), "node {node}: {output:?}");
    for (name, wanted) in [
        ("node", json!(node)),
        ("shard", json!(expected.shard)),
        ("found", json!(true)),
        ("version", json!(version)),
        ("bytes", json!(VALUE.len())),
        ("intact", json!(true)),
    ] {
        assert_eq!(replica[name], wanted, "{name} on node {node}");
    }
    true
}

#[tokio::test]
async fn a_fresh_cluster_lies_as_the_rules_say() {
    println!("seed {SEED:#x}");
    let mut cluster = Cluster::start(program(), NODES, "fresh").await.unwrap();
    let client = cluster.client().await.unwrap();
    check_load(&client).await;
    let table = client.routes().await.unwrap();
    let (placement, points) = (placement_of_five(), ring_points());
    check_table(&table, &placement);

    let keys = random_keys();
    let tagged = keys.iter().filter(|key| hashed_part(key) != key.as_str()).count();
    assert!((100..=900).contains(&tagged), "{tagged} keys have a tag");
    for (n, key) in keys.iter().enumerate() {
        let expected = address_by_rules(key, &placement, &points);
        assert_eq!(address_by_table(key, &table), expected, "{key:?}");
        if n < 30 {
            check_explained(&cluster, key, &table, &expected);
        }
    }

    let written = client.put(MARKER, VALUE).deadline(LONG).await.unwrap();
    let expected = address_by_rules(MARKER, &placement, &points);
    wait_until("every member has applied the marker", LONG, || async {
        for node in &expected.members {
            let read = client.get(MARKER).consistency(Consistency::Any).from_node(NodeId(*node));
            let found = read.await.ok().and_then(|found| found.value);
            if found.as_deref() != Some(VALUE.as_bytes()) {
                return false;
            }
        }
        true
    })
    .await
    .unwrap();
    for node in cluster.nodes() {
        cluster.stop(node).await.unwrap();
    }
    let is_holder = |node: &u16| find_marker(&cluster, *node, written.version.0, &expected);
    let holders = cluster.nodes().filter(is_holder).map(u32::from);
    let mut members = expected.members.clone();
    members.sort_unstable();
    assert_eq!(members.len(), 3);
    assert_eq!(holders.collect::<Vec<_>>(), members);
}
