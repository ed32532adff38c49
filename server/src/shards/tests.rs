//! The machine against the memory engine: judgement of operations, revisions, counts, recovery.

use annulus_engine::MemoryEngine;
use annulus_types::{Epoch, ReplicaId};

use super::*;

/// An entry's place in the log.
fn entry(index: u64) -> Applying {
    let id = annulus_raft::EntryId { term: 1, leader: ReplicaId(1), index };
    Applying { group: GroupId(9), id, version: 1, group_time_ms: index * 10, wall_ms: 0 }
}

const SHARD: ShardId = ShardId(3);
const DEFAULT: NamespaceId = NamespaceId(0);

struct Fixture {
    engine: Arc<dyn Engine>,
    shards: Arc<Shards>,
    machine: Arc<ShardMachine>,
    index: u64,
}

impl Fixture {
    fn new() -> Self {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let mut fixture = Self::open(engine);
        let create = Op::Create { first: 0, count: 1024, epoch: Epoch(1) };
        fixture.apply(vec![(SHARD, create)]);
        fixture
    }

    fn open(engine: Arc<dyn Engine>) -> Self {
        let shards = Shards::open(Arc::clone(&engine)).unwrap();
        let machine = ShardMachine::open(GroupId(9), Arc::clone(&shards)).unwrap();
        Self { engine, shards, machine, index: 0 }
    }

    fn apply(&mut self, ops: Vec<(ShardId, Op)>) -> Vec<Outcome> {
        self.index += 1;
        let mut batch = Batch::default();
        let operations =
            ops.into_iter().map(|(shard, op)| Operation { shard, body: op.encode() }).collect();
        let replies = self.machine.apply(&entry(self.index), operations, &mut batch).unwrap();
        self.engine.apply(batch).unwrap();
        self.machine.batch_visible();
        replies.into_iter().map(|reply| Outcome::decode(reply).unwrap()).collect()
    }

    fn read(&self, key: &str) -> Seen {
        let shard = self.shards.find(token_of(key.as_bytes())).unwrap();
        self.shards.read(&shard, DEFAULT, key.as_bytes()).unwrap().unwrap()
    }
}

fn put(key: &str, value: &str) -> Op {
    let value = Bytes::copy_from_slice(value.as_bytes());
    Op::Put {
        namespace: DEFAULT,
        key: Bytes::copy_from_slice(key.as_bytes()),
        crc: crc32fast::hash(&value),
        value,
    }
}

fn delete(key: &str) -> Op {
    let key = Bytes::copy_from_slice(key.as_bytes());
    Op::Delete { namespace: DEFAULT, key, expect: Expect::Anything }
}

fn cas(key: &str, expect: Expect, value: &str) -> Op {
    let Op::Put { namespace, key, crc, value } = put(key, value) else { unreachable!() };
    Op::Cas { namespace, key, expect, crc, value }
}

fn version(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Done { version, .. } => version.0,
        other => panic!("{other:?}"),
    }
}

#[test]
fn later_operations_of_an_entry_see_earlier_ones_and_failures_poison_nobody() {
    let mut fixture = Fixture::new();
    let outcomes = fixture.apply(vec![
        (SHARD, put("a", "1")),
        (SHARD, cas("a", Expect::Absent, "2")),
        (SHARD, cas("a", Expect::Version(Revision(1)), "3")),
        (ShardId(4), put("a", "4")),
        (SHARD, delete("a")),
        (SHARD, delete("a")),
        (SHARD, put("b", "5")),
    ]);
    assert_eq!(version(&outcomes[0]), 1);
    assert_eq!(outcomes[1], Outcome::PreconditionFailed { current: Some(Revision(1)) });
    assert_eq!(version(&outcomes[2]), 2);
    assert_eq!(outcomes[3], Outcome::NotHere);
    assert_eq!((version(&outcomes[4]), version(&outcomes[5])), (0, 0));
    assert_eq!(version(&outcomes[6]), 4, "the second delete changed nothing and took no revision");
    assert_eq!(fixture.read("a").value, None);
    let seen = fixture.read("b");
    assert_eq!(seen.value.unwrap().value.as_ref(), b"5");
    assert_eq!((seen.head.revision, seen.head.keys, seen.head.bytes), (Revision(4), 1, 2));
}

#[test]
fn overwriting_and_deleting_keep_the_counts_exact() {
    let mut fixture = Fixture::new();
    fixture.apply(vec![(SHARD, put("key", "long value"))]);
    fixture.apply(vec![(SHARD, put("key", "v")), (SHARD, put("other", ""))]);
    let head = fixture.read("key").head;
    assert_eq!((head.keys, head.bytes), (2, 9));
    fixture.apply(vec![(SHARD, delete("key")), (SHARD, delete("other"))]);
    let head = fixture.read("key").head;
    assert_eq!((head.keys, head.bytes), (0, 0));
}

#[test]
fn a_shard_refuses_keys_that_it_does_not_own_and_is_created_once() {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
    let mut fixture = Fixture::open(engine);
    let create = |epoch| Op::Create { first: 8, count: 8, epoch: Epoch(epoch) };
    fixture.apply(vec![(SHARD, create(1))]);
    assert_eq!(fixture.apply(vec![(SHARD, create(2))]), [Outcome::NotHere]);
    let micro = u32::from(token_of(b"hello").micro_slice());
    assert!(!(8..16).contains(&micro));
    assert_eq!(fixture.apply(vec![(SHARD, put("hello", "x"))]), [Outcome::NotHere]);
}

#[test]
fn a_restart_finds_shards_revisions_and_never_a_used_prefix() {
    let mut fixture = Fixture::new();
    fixture.apply(vec![(SHARD, put("a", "1"))]);
    let prefix = fixture.read("a").head.prefix;
    let mut again = Fixture::open(Arc::clone(&fixture.engine));
    assert_eq!(again.machine.hosted(), [SHARD]);
    assert_eq!(version(&again.apply(vec![(SHARD, put("a", "2"))])[0]), 2);
    assert!(again.shards.take_prefix().unwrap().0 > prefix.0);
}

#[test]
fn a_rotten_value_is_an_error_not_an_answer() {
    let mut fixture = Fixture::new();
    fixture.apply(vec![(SHARD, put("a", "1"))]);
    let seen = fixture.read("a");
    let physical = key::data(seen.head.prefix, DEFAULT, token_of(b"a"), b"a");
    let mut value = seen.value.unwrap();
    value.value = Bytes::from_static(b"2");
    let mut batch = Batch::default();
    batch.put(physical, value.encode());
    fixture.engine.apply(batch).unwrap();
    let shard = fixture.shards.find(token_of(b"a")).unwrap();
    assert!(fixture.shards.read(&shard, DEFAULT, b"a").is_err());
}
