//! Stories of the route cache: three nodes, one group, one shard.

use annulus_types::{Epoch, MemberRoute, NodeInfo, ReplicaId, Revision, ServedBy, ShardRoute};

use super::*;

const GROUP: GroupId = GroupId(9);
const KEY: Token = Token(5);

fn node(id: u32) -> NodeInfo {
    NodeInfo { id: NodeId(id), addr: format!("node{id}:7400"), weight: 100, ..NodeInfo::default() }
}

fn table(version: u64, leader: Option<u32>, term: u64) -> RoutingTable {
    let member = |id: u32| MemberRoute {
        node: NodeId(id),
        replica: ReplicaId(u64::from(id)),
        role: MemberRole::Voter,
    };
    RoutingTable {
        cluster: ClusterId([1; 16]),
        version: TableVersion(version),
        shards: vec![ShardRoute {
            id: ShardId(0),
            slice: 0,
            parent: None,
            epoch: Epoch(1),
            group: GROUP,
        }],
        groups: vec![GroupRoute {
            id: GROUP,
            home: NodeId(2),
            lane: 0,
            members: vec![member(2), member(3), member(1)],
            leader: leader.map(NodeId),
            term,
            membership_index: 1,
        }],
        nodes: vec![node(1), node(2), node(3)],
    }
}

fn cache(leader: Option<u32>) -> RouteCache {
    let mut cache = RouteCache::default();
    assert!(cache.adopt(table(1, leader, 1)));
    cache
}

fn target(id: u32) -> Target {
    let addr = format!("node{id}:7400");
    Target { shard: ShardId(0), group: GROUP, node: NodeId(id), addr }
}

fn receipt(role: Role, mode: Mode, table_version: u64) -> Receipt {
    Receipt {
        mode,
        shard: ShardId(0),
        epoch: Epoch(1),
        node: NodeId(3),
        replica: ReplicaId(3),
        role,
        served_by: ServedBy::Log,
        term: 1,
        revision: Revision(1),
        staleness_bound_us: None,
        shard_time_ms: 0,
        table_version: TableVersion(table_version),
    }
}

/// Whom the cache names after `last`, now being time 0.
fn next(cache: &RouteCache, want: Want, last: Option<u32>) -> u32 {
    next_at(cache, want, last, 0)
}

fn next_at(cache: &RouteCache, want: Want, last: Option<u32>, now_us: u64) -> u32 {
    cache.target(KEY, want, last.map(NodeId), now_us).expect("the table names members").node.0
}

#[test]
fn the_leader_is_asked_first_then_home_then_the_others() {
    assert_eq!(next(&cache(Some(1)), Want::Leader, None), 1);
    let cache = cache(None);
    assert_eq!(next(&cache, Want::Leader, None), 2);
    assert_eq!(next(&cache, Want::Leader, Some(2)), 3);
    assert_eq!(next(&cache, Want::Leader, Some(3)), 1);
    assert_eq!(next(&cache, Want::Leader, Some(1)), 2);
}

#[test]
fn of_the_replicas_the_leader_is_asked_last_unless_it_is_its_turn() {
    let cache = cache(Some(3));
    let order = |turn| {
        let want = Want::Replica { turn };
        let first = next(&cache, want, None);
        let second = next(&cache, want, Some(first));
        [first, second, next(&cache, want, Some(second))]
    };
    assert_eq!((order(0), order(1), order(2)), ([2, 1, 3], [3, 1, 2], [1, 2, 3]));
    let turn = usize::MAX - 2;
    assert_eq!(order(turn)[0], order(turn % 3)[0]);
    // After the last one, the first one again.
    assert_eq!(next(&cache, Want::Replica { turn: 0 }, Some(3)), 2);
}

#[test]
fn an_answer_that_nobody_vouched_for_names_no_leader() {
    for (mode, leader) in
        [(Mode::Any, 1), (Mode::Session, 1), (Mode::Bounded, 1), (Mode::Linearizable, 3)]
    {
        let mut cache = cache(Some(1));
        cache.answered(&target(3), &receipt(Role::Leader, mode, 1), 0);
        assert_eq!(next(&cache, Want::Leader, None), leader, "{mode}");
    }
}

#[test]
fn without_a_table_nobody_is_named() {
    let cache = RouteCache::default();
    assert_eq!(cache.target(KEY, Want::Leader, None, 0), None);
    assert!(cache.refresh_due(0));
    assert_eq!(cache.sources(&["a:1".to_owned()], 0), ["a:1"]);
}

#[test]
fn a_redirect_names_the_next_node() {
    let mut cache = cache(Some(1));
    assert!(cache.redirected(&target(1), Some(NodeId(3)), 0));
    assert_eq!(next(&cache, Want::Leader, Some(1)), 3);
    assert_eq!(next(&cache, Want::Leader, None), 3, "the next call begins there");

    assert!(!cache.redirected(&target(3), None, 0));
    assert_eq!(next(&cache, Want::Leader, Some(3)), 1);
}

#[test]
fn a_redirect_to_a_lost_or_unknown_node_is_no_help() {
    let mut cache = cache(Some(2));
    cache.gone(&target(2), 0);
    assert!(!cache.redirected(&target(3), Some(NodeId(2)), 0));
    assert_eq!(next(&cache, Want::Leader, Some(3)), 1);
    assert!(cache.redirected(&target(3), Some(NodeId(2)), AVOID_US), "it has had its second");
    assert!(!cache.redirected(&target(3), Some(NodeId(77)), 0));
    assert!(!cache.redirected(&target(3), Some(NodeId(3)), 0), "a node that names itself");
}

#[test]
fn nodes_that_are_gone_are_asked_last_and_only_for_a_while() {
    let mut cache = cache(Some(2));
    cache.gone(&target(2), 0);
    assert_eq!(next(&cache, Want::Leader, None), 3);
    assert_eq!(next(&cache, Want::Leader, Some(1)), 3, "the turn skips node 2");
    assert_eq!(next_at(&cache, Want::Leader, Some(1), AVOID_US), 2);

    cache.gone(&target(1), 0);
    cache.gone(&target(3), 0);
    assert_eq!(next(&cache, Want::Leader, Some(2)), 3, "if all are gone all are asked");

    cache.alive(NodeId(1), 0);
    assert_eq!(next(&cache, Want::Leader, Some(2)), 1);
}

#[test]
fn a_late_answer_is_no_reason_to_leave_a_node() {
    let mut cache = cache(Some(2));
    let ms = |ms: u64| ms * 1_000;
    // Short deadlines: silence adds up until something is heard.
    cache.late(&target(2), ms(50), ms(500));
    cache.late(&target(2), ms(50), ms(1_400));
    assert_eq!(next_at(&cache, Want::Leader, None, ms(1_400)), 2, "since 450 ms");
    cache.late(&target(2), ms(50), ms(1_450));
    assert_eq!(next_at(&cache, Want::Leader, None, ms(1_450)), 3);

    cache.alive(NodeId(2), ms(1_500));
    cache.redirected(&target(3), Some(NodeId(2)), ms(1_500));
    cache.late(&target(2), ms(50), ms(1_600));
    assert_eq!(next_at(&cache, Want::Leader, None, ms(1_600)), 2, "it begins anew");

    // A long wait for one answer, during which others came.
    cache.alive(NodeId(2), ms(8_000));
    cache.late(&target(2), ms(5_000), ms(9_000));
    assert_eq!(next_at(&cache, Want::Leader, None, ms(9_000)), 2);
    // And one during which none came.
    cache.late(&target(2), ms(1_500), ms(11_000));
    assert_eq!(next_at(&cache, Want::Leader, None, ms(11_000)), 3);
}

#[test]
fn any_reads_go_round() {
    let mut cache = cache(Some(1));
    let turns = |cache: &RouteCache| {
        (0..4).map(|turn| next(cache, Want::Anyone { turn }, None)).collect::<Vec<_>>()
    };
    assert_eq!(turns(&cache), [2, 3, 1, 2]);
    cache.gone(&target(3), 0);
    assert_eq!(turns(&cache), [2, 1, 1, 2]);
    assert_eq!(next(&cache, Want::Anyone { turn: usize::MAX }, Some(2)), 1);
}

#[test]
fn learners_answer_any_reads_but_are_not_asked_to_lead() {
    let mut offered = table(1, None, 1);
    offered.groups[0].members[0].role = MemberRole::Learner;
    let mut cache = RouteCache::default();
    cache.adopt(offered);
    assert_eq!(next(&cache, Want::Leader, None), 3);
    assert_eq!(next(&cache, Want::Anyone { turn: 0 }, None), 2);
}

#[test]
fn a_named_node_is_the_only_one() {
    let mut cache = cache(Some(1));
    cache.gone(&target(3), 0);
    assert_eq!(next(&cache, Want::Node(NodeId(3)), Some(3)), 3);
    assert_eq!(cache.target(KEY, Want::Node(NodeId(77)), None, 0), None);
}

#[test]
fn answers_teach_who_leads() {
    let mut cache = cache(Some(1));
    cache.answered(&target(3), &receipt(Role::Leader, Mode::Any, 1), 0);
    assert_eq!(next(&cache, Want::Leader, None), 1, "an any answer proves nothing");
    cache.answered(&target(3), &receipt(Role::Leader, Mode::Write, 1), 0);
    assert_eq!(next(&cache, Want::Leader, None), 3);

    assert!(cache.adopt(table(2, Some(2), 2)));
    assert_eq!(next(&cache, Want::Leader, None), 2, "a newer route beats what was learned");
}

#[test]
fn a_newer_version_in_an_answer_asks_for_a_refresh_from_that_node() {
    let mut cache = cache(Some(1));
    assert!(!cache.refresh_due(0));
    cache.answered(&target(3), &receipt(Role::Leader, Mode::Write, 2), 0);
    assert!(cache.refresh_due(0));
    let endpoints = ["node2:7400".to_owned(), "elsewhere:1".to_owned()];
    assert_eq!(
        cache.sources(&endpoints, 0),
        ["node3:7400", "node2:7400", "elsewhere:1", "node1:7400"]
    );

    cache.asking(0);
    assert!(!cache.refresh_due(REFRESH_PAUSE_US - 1), "not on every call");
    assert!(cache.refresh_due(REFRESH_PAUSE_US));

    cache.gone(&target(2), 0);
    cache.gone(&target(3), 0);
    assert_eq!(
        cache.sources(&endpoints, 0),
        ["elsewhere:1", "node1:7400", "node2:7400", "node3:7400"]
    );

    assert!(cache.adopt(table(2, Some(1), 1)));
    assert!(!cache.refresh_due(REFRESH_PAUSE_US));
}

#[test]
fn a_stale_route_without_a_better_one_asks_for_a_refresh() {
    let mut cache = cache(Some(1));
    assert!(!cache.rerouted(None));
    assert!(cache.refresh_due(0));
    assert!(cache.rerouted(Some(&table(2, Some(2), 2))));
    assert!(!cache.refresh_due(0));
    assert!(!cache.rerouted(Some(&table(2, Some(2), 2))), "nothing new");
    assert!(cache.refresh_due(0));
}

#[test]
fn an_older_table_still_brings_newer_routes() {
    let mut cache = RouteCache::default();
    assert!(cache.adopt(table(5, Some(1), 1)));

    let mut late = table(4, Some(3), 2);
    late.shards[0].epoch = Epoch(7);
    late.nodes.clear();
    assert!(cache.adopt(late));
    let held = cache.table().expect("just adopted");
    assert_eq!(held.version, TableVersion(5));
    assert_eq!(held.shards[0].epoch, Epoch(7));
    assert_eq!((held.groups[0].leader, held.groups[0].term), (Some(NodeId(3)), 2));
    assert_eq!(held.nodes.len(), 3, "the address book is the newer table's");

    assert!(!cache.adopt(table(4, Some(1), 1)), "older in everything");
    assert!(cache.adopt(table(6, None, 2)), "a newer version");
    let held = cache.table().expect("adopted before");
    assert_eq!(held.groups[0].leader, Some(NodeId(3)), "the same term has the same leader");
}

#[test]
fn a_table_of_another_cluster_is_refused() {
    let mut cache = cache(Some(1));
    let mut foreign = table(9, Some(2), 9);
    foreign.cluster = ClusterId([2; 16]);
    assert!(!cache.adopt(foreign));
    assert_eq!(cache.version(), TableVersion(1));
    assert_eq!(cache.cluster(), Some(ClusterId([1; 16])));
}

#[test]
fn the_ring_walk_names_every_storage_node_once() {
    let mut table = table(1, None, 1);
    for node in &mut table.nodes {
        node.storage = node.id != NodeId(2);
    }
    table.nodes[0].weight = u32::MAX;
    let mut walk = ring_walk(&table, KEY);
    walk.sort_unstable();
    assert_eq!(walk, [NodeId(1), NodeId(3)]);
}

#[test]
fn a_node_is_gone_when_a_second_connection_to_it_breaks_too() {
    let mut cache = cache(Some(2));
    let leader = |cache: &RouteCache, now_us| next_at(cache, Want::Leader, None, now_us);
    cache.broken(&target(2), 0);
    // Other calls on the same connection.
    cache.broken(&target(2), SAME_BREAK_US);
    assert_eq!(leader(&cache, SAME_BREAK_US), 2, "it may live");
    assert!(cache.refresh_due(REFRESH_PAUSE_US), "perhaps at another address");
    cache.alive(NodeId(2), 30_000);
    cache.broken(&target(2), 60_000);
    assert_eq!(leader(&cache, 60_000), 2, "it has answered in between");
    cache.broken(&target(2), 90_000);
    assert_ne!(leader(&cache, 90_000), 2);
}

#[test]
fn a_node_that_is_gone_asks_for_a_refresh_and_is_tried_at_its_new_address() {
    let mut cache = cache(Some(2));
    cache.asking(0);
    assert!(!cache.refresh_due(REFRESH_PAUSE_US));
    cache.gone(&target(2), 0);
    assert!(cache.refresh_due(REFRESH_PAUSE_US));
    assert_ne!(next_at(&cache, Want::Leader, None, 1), 2);
    let mut moved = table(1, Some(2), 2);
    moved.nodes[1].addr = "node2:7500".to_owned();
    assert!(cache.adopt(moved));
    assert!(!cache.refresh_due(REFRESH_PAUSE_US));
    let found = cache.target(KEY, Want::Leader, None, 1).unwrap();
    assert_eq!((found.node, found.addr.as_str()), (NodeId(2), "node2:7500"));
}
