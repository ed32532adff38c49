//! How replies of the cluster become what the commands show.

use serde_json::{json, to_value};

use super::*;

/// Three nodes, two groups of one shard each, the manager on nodes 1 and 2. Node 1 leads group 10
/// and the manager, node 2 leads group 11; node 3 follows with 4 entries to go.
pub fn reply() -> v1::StatusReply {
    let info = |id: u32| v1::NodeInfo {
        id,
        addr: format!("n{id}:7400"),
        peer_addr: format!("n{id}:7401"),
        http_addr: format!("n{id}:7402"),
        zone: if id == 3 { String::new() } else { format!("z{id}") },
        weight: 50 * id,
        storage: true,
        manager: id != 3,
    };
    let group = |id: u64, home: u32, nodes: [u32; 3]| v1::GroupRoute {
        id,
        home,
        lane: 0,
        members: nodes.into_iter().map(|node| member(id, node)).collect(),
        // Stale on purpose: who leads is for the nodes to say.
        leader: Some(3),
        term: 1,
        membership_index: 1,
    };
    let shard = |slice: u32, group: u64| v1::ShardRoute {
        id: u64::from(slice),
        slice,
        parent: None,
        epoch: 1,
        group,
    };
    let node = |id: u32| {
        let mut replicas = vec![replica(10, id, id == 1), replica(11, id, id == 2)];
        if id != 3 {
            replicas.push(replica(0, id, id == 1));
        }
        let shards = (0..2).map(|shard| v1::ShardStatus {
            shard,
            group: 10 + shard,
            revision: 100 * (shard + 1) + u64::from(id == 2),
            epoch: 1,
            keys: 7,
            bytes: 70,
        });
        v1::NodeStatus {
            info: Some(info(id)),
            replicas,
            shards: shards.collect(),
            engine_bytes: 1000 * u64::from(id),
            disk_free_bytes: 5000,
            wal_bytes: 1,
        }
    };
    v1::StatusReply {
        table: Some(v1::RoutingTable {
            cluster_id: vec![0xab; 16].into(),
            version: 4,
            shards: vec![shard(0, 10), shard(1, 11)],
            groups: vec![group(10, 1, [1, 2, 3]), group(11, 2, [2, 3, 1])],
            nodes: vec![info(1), info(2), info(3)],
        }),
        nodes: vec![node(1), node(2), node(3)],
        manager: vec![member(0, 1), member(0, 2)],
        ..Default::default()
    }
}

fn member(group: u64, node: u32) -> v1::MemberRoute {
    v1::MemberRoute { node, replica: group * 10 + u64::from(node), learner: false }
}

fn replica(group: u64, node: u32, leads: bool) -> v1::ReplicaStatus {
    let role = if leads { v1::Role::Leader } else { v1::Role::Follower };
    v1::ReplicaStatus {
        group,
        replica: group * 10 + u64::from(node),
        role: role.into(),
        term: 5,
        leader: None,
        last_index: 60,
        applied_index: if node == 3 { 50 } else { 54 },
        gate_open: leads,
        halted: String::new(),
    }
}

/// The reply without what node `id` said.
fn without(id: u32) -> v1::StatusReply {
    let mut reply = reply();
    reply.nodes.retain(|node| node.info.as_ref().is_none_or(|info| info.id != id));
    reply
}

#[test]
fn status_has_the_promised_shape() {
    let reply = reply();
    let status = Cluster::new(&reply).unwrap().status();
    let node = |id: u32, zone: &str, weight: f64, homes: u32| {
        json!({
            "id": id,
            "addr": format!("n{id}:7400"),
            "peer_addr": format!("n{id}:7401"),
            "http_addr": format!("n{id}:7402"),
            "zone": zone,
            "weight": weight,
            "state": "up",
            "shards": 2,
            "homes": homes,
            "leaders": homes,
            "bytes": 1000 * id,
            "disk_free_bytes": 5000,
        })
    };
    assert_eq!(
        to_value(&status).unwrap(),
        json!({
            "cluster_id": "ab".repeat(16),
            "table_version": 4,
            "paused": null,
            "manager": {"leader": 1, "members": [1, 2]},
            "nodes": [node(1, "z1", 0.5, 1), node(2, "z2", 1.0, 1), node(3, "", 1.5, 0)],
            "groups": {"total": 2, "healthy": 2, "no_leader": 0},
            "shards": {
                "total": 2,
                "healthy": 2,
                "under_replicated": 0,
                "no_leader": 0,
                "moving": 0,
            },
        })
    );
}

#[test]
fn groups_have_the_promised_shape() {
    let reply = reply();
    let groups = Cluster::new(&reply).unwrap().groups();
    assert_eq!(
        to_value(&groups[1]).unwrap(),
        json!({
            "id": 11,
            "home": 2,
            "lane": 0,
            "leader": 2,
            "term": 5,
            "members": [
                {"node": 2, "replica_id": 112, "role": "leader", "lag": 0},
                {"node": 3, "replica_id": 113, "role": "follower", "lag": 4},
                {"node": 1, "replica_id": 111, "role": "follower", "lag": 0},
            ],
            "shards": [1],
        })
    );
    assert_eq!(groups.len(), 2);
}

#[test]
fn shards_have_the_promised_shape() {
    let reply = reply();
    let shards = Cluster::new(&reply).unwrap().shards(None).unwrap();
    assert_eq!(
        to_value(&shards[1]).unwrap(),
        json!({
            "id": 1,
            "slice": 1,
            "start": 2_147_483_648u32,
            "end": 4_294_967_295u32,
            "epoch": 1,
            "group": 11,
            "leader": 2,
            "revision": 201,
            "bytes": 70,
            "keys": 7,
            "replicas": [
                {"node": 2, "replica_id": 112, "role": "leader", "lag": 0},
                {"node": 3, "replica_id": 113, "role": "follower", "lag": 4},
                {"node": 1, "replica_id": 111, "role": "follower", "lag": 0},
            ],
        })
    );
    // Node 2 is ahead with shard 0 as well, but does not lead it.
    assert_eq!((shards.len(), shards[0].revision), (2, 100));
}

#[test]
fn a_silent_node_is_down_and_what_it_led_has_no_leader() {
    let reply = without(2);
    let cluster = Cluster::new(&reply).unwrap();
    let status = cluster.status();
    let node = &status.nodes[1];
    assert_eq!((node.id, node.state, node.shards, node.leaders), (2, "down", 2, 0));
    assert_eq!((node.bytes, node.addr.as_str()), (0, "n2:7400"));
    assert_eq!(status.groups, GroupTally { total: 2, healthy: 0, no_leader: 1 });
    let expected =
        ShardTally { total: 2, healthy: 0, under_replicated: 2, no_leader: 1, moving: 0 };
    assert_eq!(status.shards, expected);

    let shard = &cluster.shards(None).unwrap()[1];
    assert_eq!((shard.leader, shard.revision), (None, 200));
    let lags: Vec<Option<u64>> = shard.replicas.iter().map(|replica| replica.lag).collect();
    assert_eq!(lags, [None, Some(4), Some(0)]);
    assert!(shard.replicas.iter().all(|replica| replica.role == "follower"));
}

#[test]
fn only_an_open_gate_makes_a_leader_and_the_higher_term_wins() {
    let mut reply = reply();
    reply.nodes[0].replicas[0].gate_open = false;
    assert_eq!(Cluster::new(&reply).unwrap().groups()[0].leader, None);

    reply.nodes[0].replicas[0].gate_open = true;
    let rival = &mut reply.nodes[2].replicas[0];
    rival.set_role(v1::Role::Leader);
    (rival.gate_open, rival.term) = (true, 6);
    let groups = Cluster::new(&reply).unwrap().groups();
    assert_eq!((groups[0].leader, groups[0].term), (Some(3), 6));
    let leaders = groups[0].members.iter().filter(|member| member.role == "leader").count();
    assert_eq!(leaders, 1);
}

#[test]
fn halted_and_foreign_replicas_fill_no_seat() {
    let healthy = |reply: &v1::StatusReply| Cluster::new(reply).unwrap().status().groups.healthy;
    let mut halted = reply();
    halted.nodes[2].replicas[0].halted = "damage".to_owned();
    assert_eq!(healthy(&halted), 1);
    let mut foreign = reply();
    foreign.nodes[2].replicas[0].replica = 999;
    assert_eq!(healthy(&foreign), 1);
}

#[test]
fn a_learner_is_a_member_on_the_move() {
    let mut reply = reply();
    let table = reply.table.as_mut().unwrap();
    let learner = v1::MemberRoute { node: 3, replica: 777, learner: true };
    table.groups[0].members[2] = learner;
    let cluster = Cluster::new(&reply).unwrap();
    let status = cluster.status();
    assert_eq!((status.shards.moving, status.shards.healthy), (1, 2));
    let last = &cluster.groups()[0].members[2];
    assert_eq!((last.role, last.lag), ("learner", None));
}

#[test]
fn shards_of_a_node_are_those_with_a_replica_there() {
    let mut reply = reply();
    let table = reply.table.as_mut().unwrap();
    table.groups[0].members.pop();
    let cluster = Cluster::new(&reply).unwrap();
    let ids = |node| {
        let views = cluster.shards(Some(node)).unwrap();
        views.iter().map(|view| view.id).collect::<Vec<_>>()
    };
    assert_eq!((ids(1), ids(3)), (vec![0, 1], vec![1]));
    assert!(cluster.shards(Some(9)).is_err());
}

#[test]
fn a_node_without_a_table_has_no_cluster_to_show() {
    let kind = Cluster::new(&v1::StatusReply::default()).map(|_| ()).map_err(|error| error.kind);
    assert!(matches!(kind, Err(ErrorKind::NotReady { .. })), "{kind:?}");
}

#[test]
fn the_manager_says_what_it_thinks_of_the_nodes() {
    let node = |node, state: v1::NodeState, draining| v1::NodeOverview {
        node,
        state: state.into(),
        draining,
        seats: 0,
        silent_ms: None,
    };
    let mut reply = without(3);
    reply.manager_leader = Some(2);
    reply.overview = Some(v1::OverviewReply {
        paused: true,
        nodes: vec![
            node(1, v1::NodeState::Up, true),
            node(2, v1::NodeState::Down, false),
            node(3, v1::NodeState::Up, true),
            node(4, v1::NodeState::Removed, false),
        ],
        moves: vec![v1::Move {
            group: 11,
            state: v1::MoveState::Seed.into(),
            ..Default::default()
        }],
        ..Default::default()
    });
    let cluster = Cluster::new(&reply).unwrap();
    let status = cluster.status();
    let states: Vec<(u32, &str)> = status.nodes.iter().map(|node| (node.id, node.state)).collect();
    assert_eq!(states, [(1, "draining"), (2, "down"), (3, "down"), (4, "removed")]);
    assert_eq!((status.paused, status.manager.leader), (Some(true), Some(2)));
    assert_eq!(status.shards.moving, 1);
    assert!(cluster.groups()[0].members[0].draining);
}
