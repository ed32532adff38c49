//! What `explain key` says of a known table.

use annulus_types::routes::MemberRole;
use annulus_types::{
    ClusterId, Epoch, GroupId, MemberRoute, NodeInfo, ReplicaId, ShardId, TableVersion,
};
use serde_json::json;

use super::*;

/// Two shards, both at home on node 1, in groups 10 and 11, on nodes 1 to 3 in the zones a, b, b.
pub fn table() -> RoutingTable {
    let group = |id: u64, lane: u32, nodes: [u32; 3]| GroupRoute {
        id: GroupId(id),
        home: NodeId(nodes[0]),
        lane,
        members: nodes
            .into_iter()
            .map(|node| MemberRoute {
                node: NodeId(node),
                replica: ReplicaId(id * 10 + u64::from(node)),
                role: MemberRole::Voter,
            })
            .collect(),
        leader: Some(NodeId(nodes[0])),
        term: 1,
        membership_index: 1,
    };
    let shard = |slice: u32, group: u64| ShardRoute {
        id: ShardId(u64::from(slice)),
        slice,
        parent: None,
        epoch: Epoch(1),
        group: GroupId(group),
    };
    let node = |id: u32, zone: &str| NodeInfo {
        id: NodeId(id),
        zone: zone.to_owned(),
        weight: 100,
        storage: true,
        manager: true,
        ..NodeInfo::default()
    };
    RoutingTable {
        cluster: ClusterId([1; 16]),
        version: TableVersion(6),
        shards: vec![shard(0, 10), shard(1, 11)],
        groups: vec![group(10, 0, [1, 2, 3]), group(11, 1, [1, 3, 2])],
        nodes: vec![node(1, "a"), node(2, "b"), node(3, "b")],
    }
}

fn nodes(ids: &[u32]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

/// A key and the slice, 0 or 1, that it must lie in.
fn key_of_slice(slice: u32) -> String {
    let mut keys = (0..).map(|number: u32| format!("{{user{number}}}:cart"));
    keys.find(|key| token_of(key.as_bytes()).slice(2) == slice).unwrap()
}

#[test]
fn a_key_has_the_promised_shape() {
    let key = key_of_slice(1);
    let view = key_view(key.as_bytes(), &table(), |token| {
        assert_eq!(token, Token(1 << 31), "homes follow the walk from the slice's first token");
        nodes(&[2, 3, 1])
    })
    .unwrap();
    let mut view = serde_json::to_value(view).unwrap();
    let rules = view.as_object_mut().unwrap().remove("rules").unwrap();
    let routing_key = key.trim_start_matches('{').trim_end_matches("}:cart");
    assert_eq!(
        view,
        json!({
            "key": key,
            "routing_key": routing_key,
            "token": token_of(key.as_bytes()).0,
            "slice": 1,
            "shard": 1,
            "group": 11,
            "home": 1,
            "leader": 1,
            "replicas": [1, 3, 2],
            "ring_walk": [2, 3, 1],
        })
    );
    let rules: Vec<&str> =
        rules.as_array().unwrap().iter().filter_map(|rule| rule.as_str()).collect();
    assert_eq!(
        rules[0],
        format!(
            "token: the part between the braces hashes to {}, which lies in slice 1 of 2 (tokens \
             2147483648 to 4294967295)",
            token_of(key.as_bytes())
        )
    );
    assert_eq!(
        rules[1..],
        [
            "home: node 1 is the first with room on the walk from token 2147483648, the first of \
             slice 1; nodes 2, 3 had their quota of homes",
            "group: 11 is lane 1 of node 1, the emptiest of its lanes when slice 1 was placed",
            "seats: 3 replicas on 3 different nodes, the home first; each further one is, of the \
             nodes whose zones the group uses least, the one with the largest share of free seats \
             left",
            "zones: the replicas use 2 of 2: a, b",
            "leader: node 1, because the home is meant to lead",
        ]
    );
}

#[test]
fn the_home_rule_tells_how_far_the_walk_went() {
    let table = table();
    let (shard, group) = (&table.shards[0], &table.groups[0]);
    for (walk, end) in [
        (
            nodes(&[1, 2, 3]),
            "home: node 1 is the first on the walk from token 0, the first of slice 0",
        ),
        (nodes(&[3, 1, 2]), "; node 3 had its quota of homes"),
        (nodes(&[3, 2, 1]), "; nodes 3, 2 had their quota of homes"),
        (nodes(&[2, 3]), "though it is not on the walk from token 0, the first of slice 0"),
    ] {
        let rule = home_rule(&table, shard, group, &walk);
        assert!(rule.ends_with(end), "{rule}");
    }
}

#[test]
fn zones_and_leaders_are_told_as_they_are() {
    let mut table = table();
    table.nodes[0].zone.clear();
    let group = &mut table.groups[0];
    group.leader = Some(NodeId(2));
    assert_eq!(leader_rule(group), "leader: node 2 for now; the home, node 1, is meant to lead");
    group.leader = None;
    assert!(leader_rule(group).contains("knows none"));
    group.members.truncate(1);
    assert_eq!(seats_rule(group), "seats: one replica, on the home");
    assert_eq!(zones_rule(&table, &table.groups[1]), "zones: the replicas use 2 of 2: (unset), b");
    table.nodes.iter_mut().for_each(|node| node.zone.clear());
    assert!(zones_rule(&table, &table.groups[1]).contains("decide nothing"));
}

#[test]
fn a_key_without_text_is_shown_as_asked_and_as_base64_in_json() {
    let view = key_view(&[255], &table(), |_| nodes(&[1])).unwrap();
    assert!(key_table(&view, &[255], Encoding::Hex).starts_with("key          ff\n"));
    let view = serde_json::to_value(view).unwrap();
    assert_eq!(
        (&view["key_base64"], &view["routing_key_base64"]),
        (&json!("/w=="), &json!("/w=="))
    );
    assert!(view.get("key").is_none());
}

#[test]
fn a_table_without_the_shard_explains_nothing() {
    let kind = |table: &RoutingTable| key_view(b"k", table, |_| Vec::new()).unwrap_err().kind;
    assert!(matches!(kind(&RoutingTable::default()), ErrorKind::NotReady { .. }));
    let mut no_groups = table();
    no_groups.groups.clear();
    assert!(matches!(kind(&no_groups), ErrorKind::NotReady { .. }));
}
