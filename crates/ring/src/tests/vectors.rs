//! Agreement, to the last seat, with values that an independent implementation computed.

use annulus_types::token::{hash, routing_key};
use annulus_types::{NodeId, Token, token_of};
use serde::Deserialize;

use crate::{PlacedGroup, PlacementNode, Ring, RingNode, Settings, place};

#[derive(Deserialize)]
struct HashFile {
    vectors: Vec<HashVector>,
    hash_tags: Vec<TagVector>,
}

#[derive(Deserialize)]
struct HashVector {
    key_hex: String,
    murmur3_x86_32_seed0: u32,
    shard_of_128: u32,
    shard_of_1024: u32,
}

#[derive(Deserialize)]
struct TagVector {
    key: String,
    routing_key: String,
    hash: u32,
}

#[derive(Deserialize)]
struct PlacementFile {
    ring_of_five: RingVector,
    placements: Vec<PlacementVector>,
}

#[derive(Deserialize)]
struct RingVector {
    points_first: Vec<(u32, u32)>,
    points_last: Vec<(u32, u32)>,
    walks: Vec<WalkVector>,
}

#[derive(Deserialize)]
struct WalkVector {
    token: u32,
    walk: Vec<u32>,
}

#[derive(Deserialize)]
struct PlacementVector {
    name: String,
    nodes: Vec<NodeVector>,
    shards: u32,
    lanes: u32,
    replication: u32,
    homes: Vec<u32>,
    groups: Vec<GroupVector>,
}

#[derive(Deserialize)]
struct NodeVector {
    id: u32,
    weight: u32,
    zone: String,
}

#[derive(Deserialize)]
struct GroupVector {
    home: u32,
    lane: u32,
    members: Vec<u32>,
    shards: Vec<u32>,
}

fn placement_file() -> PlacementFile {
    serde_json::from_str(include_str!("../../testdata/placement.json")).unwrap()
}

fn ids(raw: &[u32]) -> Vec<NodeId> {
    raw.iter().copied().map(NodeId).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn hashes_and_slices() {
    let file: HashFile = serde_json::from_str(include_str!("../../testdata/murmur3.json")).unwrap();
    assert_eq!(file.vectors.len(), 32);
    for vector in file.vectors {
        let token = Token(hash(&bytes(&vector.key_hex)));
        assert_eq!(token.0, vector.murmur3_x86_32_seed0, "{}", vector.key_hex);
        assert_eq!(token.slice(128), vector.shard_of_128, "{}", vector.key_hex);
        assert_eq!(token.slice(1024), vector.shard_of_1024, "{}", vector.key_hex);
        assert_eq!(token.slice(1), 0, "{}", vector.key_hex);
    }
    assert_eq!(file.hash_tags.len(), 8);
    for vector in file.hash_tags {
        let key = vector.key.as_bytes();
        assert_eq!(routing_key(key), vector.routing_key.as_bytes(), "{}", vector.key);
        assert_eq!(token_of(key), Token(vector.hash), "{}", vector.key);
    }
}

#[test]
fn ring_of_five() {
    let nodes: Vec<RingNode> = (1..=5).map(|id| RingNode { id: NodeId(id), weight: 100 }).collect();
    let ring = Ring::new(&nodes);
    let points: Vec<(u32, u32)> =
        ring.points().iter().map(|point| (point.token.0, point.node.0)).collect();
    let expected = placement_file().ring_of_five;
    assert_eq!(points.len(), 5 * 64);
    assert!(points.starts_with(&expected.points_first));
    assert!(points.ends_with(&expected.points_last));
    assert_eq!(expected.walks.len(), 8);
    for vector in expected.walks {
        let walk: Vec<NodeId> = ring.walk(Token(vector.token)).collect();
        assert_eq!(walk, ids(&vector.walk), "token {}", vector.token);
        assert_eq!(ring.owner(Token(vector.token)), walk.first().copied());
    }
}

#[test]
fn fresh_clusters() {
    let placements = placement_file().placements;
    assert_eq!(placements.len(), 14);
    for vector in placements {
        let nodes: Vec<PlacementNode> = vector
            .nodes
            .into_iter()
            .map(|node| PlacementNode { id: NodeId(node.id), weight: node.weight, zone: node.zone })
            .collect();
        let settings = Settings {
            shards: vector.shards,
            lanes: vector.lanes,
            replication: vector.replication,
        };
        let placement = place(&nodes, &settings).unwrap();
        assert_eq!(placement.homes, ids(&vector.homes), "homes of {}", vector.name);
        let groups: Vec<PlacedGroup> = vector
            .groups
            .into_iter()
            .map(|group| PlacedGroup {
                home: NodeId(group.home),
                lane: group.lane,
                members: ids(&group.members),
                shards: group.shards,
            })
            .collect();
        assert_eq!(placement.groups, groups, "groups of {}", vector.name);
    }
}
