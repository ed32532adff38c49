//! What `verify` makes of the leaders' comparisons.

use annulus_types::{Epoch, GroupId, GroupRoute, NodeId, ShardId, ShardRoute};
use serde_json::{Value, json};

use super::*;

const UNKNOWN: v1::Verdict = v1::Verdict::Unknown;
const EQUAL: v1::Verdict = v1::Verdict::Equal;
const DIFFERENT: v1::Verdict = v1::Verdict::Different;

/// Two groups with two shards each, by turns.
fn routes() -> RoutingTable {
    let shard = |slice: u32| ShardRoute {
        id: ShardId(u64::from(slice)),
        slice,
        parent: None,
        epoch: Epoch(1),
        group: GroupId(10 + u64::from(slice % 2)),
    };
    let group = |id| GroupRoute {
        id: GroupId(id),
        home: NodeId(1),
        lane: 0,
        members: Vec::new(),
        leader: None,
        term: 1,
        membership_index: 1,
    };
    RoutingTable {
        shards: (0..4).map(shard).collect(),
        groups: vec![group(10), group(11)],
        ..RoutingTable::default()
    }
}

fn bytes(last: u8) -> Bytes {
    let mut bytes = [0; 16];
    bytes[15] = last;
    Bytes::copy_from_slice(&bytes)
}

/// A replica with this digest, and these of shards 0 and 2.
fn replica(node: u32, verdict: v1::Verdict, digest: u8, files: [u8; 2]) -> v1::ReplicaDigest {
    let file = |(id, last)| v1::FileDigest { id, digest: bytes(last) };
    v1::ReplicaDigest {
        replica: u64::from(node) + 10,
        node,
        verdict: verdict.into(),
        digest: bytes(digest),
        files: [0, 2].into_iter().zip(files).map(file).collect(),
        reason: String::new(),
    }
}

fn silent(node: u32) -> v1::ReplicaDigest {
    v1::ReplicaDigest {
        digest: Bytes::new(),
        files: Vec::new(),
        reason: "the link is down".to_owned(),
        ..replica(node, UNKNOWN, 0, [0, 0])
    }
}

fn compared(others: Vec<v1::ReplicaDigest>, shard: Option<u64>) -> GroupView {
    let leader = Some(replica(1, EQUAL, 9, [1, 2]));
    let shards = shard.map_or(vec![0, 2], |id| vec![id]);
    view(10, shards, shard, Ok(v1::VerifyReply { index: 40, leader, others }))
}

#[test]
fn all_groups_are_asked_or_that_of_one_shard() {
    let table = routes();
    let group = |id: u64, shards: &[u64]| (id, shards.to_vec());
    let all = vec![group(0, &[]), group(10, &[0, 2]), group(11, &[1, 3])];
    assert_eq!(chosen(&table, None).unwrap(), all);
    assert_eq!(chosen(&table, Some(3)).unwrap(), vec![group(11, &[3])]);
    let refused = chosen(&table, Some(4)).unwrap_err();
    assert!(refused.to_string().contains("no shard 4"), "{refused}");
}

#[test]
fn equal_replicas_exit_with_0_and_have_the_promised_shape() {
    let views = [compared(vec![replica(2, EQUAL, 9, [1, 2])], None)];
    let answer = answer(Format::Json, &views, None);
    assert_eq!(answer.code, 0);
    let member = |node: u32, role: &str| {
        json!({
            "node": node,
            "replica_id": node + 10,
            "role": role,
            "digest": "00000000000000000000000000000009",
            "verdict": "equal",
            "different_shards": [],
        })
    };
    let expected = json!([{
        "group": 10,
        "shards": [0, 2],
        "verdict": "equal",
        "index": 40,
        "members": [member(1, "leader"), member(2, "follower")],
    }]);
    assert_eq!(serde_json::from_slice::<Value>(&answer.out).unwrap(), expected);
}

#[test]
fn a_difference_is_named_by_its_shards_and_outweighs_what_is_not_known() {
    let differs = compared(vec![replica(2, DIFFERENT, 8, [1, 7]), silent(3)], None);
    assert_eq!(differs.verdict, Verdict::Different);
    assert_eq!(differs.members[1].different_shards, [2]);
    let silent = compared(vec![silent(3)], None);
    assert_eq!(silent.verdict, Verdict::Unknown);
    let views = [differs, silent];
    let printed = answer(Format::Table, &views, None);
    let text = String::from_utf8(printed.out).unwrap();
    assert_eq!(printed.code, 1);
    assert!(text.contains("different: shards 2"), "{text}");
    assert!(text.contains("unknown: the link is down"), "{text}");
    assert!(text.ends_with("groups: 0 equal, 1 different, 1 unknown\n"), "{text}");
    assert_eq!(answer(Format::Table, &views[1..], None).code, 3);
}

#[test]
fn a_shard_is_judged_by_itself() {
    let others = || vec![replica(2, DIFFERENT, 8, [1, 7])];
    let sound = compared(others(), Some(0));
    assert_eq!(sound.verdict, Verdict::Equal);
    assert_eq!(sound.members[1].digest.as_deref(), Some("00000000000000000000000000000001"));
    let rotten = compared(others(), Some(2));
    assert_eq!(
        (rotten.verdict, &rotten.members[1].different_shards[..]),
        (Verdict::Different, &[2][..])
    );
    assert_eq!(compared(others(), Some(5)).verdict, Verdict::Unknown, "the leader lacks it");
}

#[test]
fn rows_that_do_not_read_are_a_difference() {
    let mut unreadable = replica(2, DIFFERENT, 0, [0, 0]);
    (unreadable.digest, unreadable.files) = (Bytes::new(), Vec::new());
    unreadable.reason = "its rows do not read: rot".to_owned();
    for shard in [None, Some(0)] {
        let view = compared(vec![unreadable.clone()], shard);
        assert_eq!(view.verdict, Verdict::Different, "{shard:?}");
        assert_eq!(in_words(&view.members[1]), "different: its rows do not read: rot");
    }
}

#[test]
fn a_group_that_cannot_be_asked_is_shown() {
    let view = view(10, vec![0, 2], None, Err("no majority".to_owned()));
    let printed = answer(Format::Table, &[view], None);
    let text = String::from_utf8(printed.out).unwrap();
    assert_eq!(printed.code, 3);
    assert!(text.contains("unknown: no majority"), "{text}");
}
