//! The machine against the memory engine: judgement of operations, revisions, counts, recovery,
//! snapshots. `counting` has numbers and batches, `deadlines` keys that end by time and `endings` many
//! schedules of them, `once` named mutations and `laws` many schedules of them, `reads` several keys at one
//! point.

mod counting;
mod deadlines;
mod endings;
mod laws;
mod once;
mod reads;

use annulus_engine::MemoryEngine;
use annulus_types::{Epoch, ReplicaId, Revision};

use super::*;
use crate::operation::{Expect, Op, Outcome};

const SHARD: ShardId = ShardId(3);
const DEFAULT: NamespaceId = NamespaceId(0);

struct Fixture {
    engine: Arc<dyn Engine>,
    shards: Arc<Shards>,
    machine: Arc<ShardMachine>,
    index: u64,
    /// Group time runs so much ahead of ten milliseconds per entry.
    later_ms: u64,
}

impl Fixture {
    fn new() -> Self {
        Self::weakened(Weakened::default())
    }

    fn weakened(weakened: Weakened) -> Self {
        let mut fixture = Self::over(Arc::new(MemoryEngine::default()), weakened);
        let create = Op::Create { first: 0, count: 1024, epoch: Epoch(1) };
        fixture.apply(vec![(SHARD, create)]);
        fixture
    }

    fn open(engine: Arc<dyn Engine>) -> Self {
        Self::over(engine, Weakened::default())
    }

    fn over(engine: Arc<dyn Engine>, weakened: Weakened) -> Self {
        let shards = Shards::open_weakened(Arc::clone(&engine), weakened).unwrap();
        let machine = ShardMachine::open(GroupId(9), Arc::clone(&shards)).unwrap();
        Self { engine, shards, machine, index: 0, later_ms: 0 }
    }

    /// The process after a restart.
    fn restarted(&self) -> Self {
        let again = Self::over(Arc::clone(&self.engine), self.shards.weakened);
        Self { index: self.index, later_ms: self.later_ms, ..again }
    }

    /// The place of the next entry in the log.
    fn next_entry(&mut self) -> Applying {
        self.index += 1;
        let id = annulus_raft::EntryId { term: 1, leader: ReplicaId(1), index: self.index };
        let group_time_ms = self.time_ms();
        Applying { group: GroupId(9), id, version: 1, group_time_ms, wall_ms: 0 }
    }

    /// The group's time at the last entry, milliseconds.
    fn time_ms(&self) -> u64 {
        self.index * 10 + self.later_ms
    }

    fn apply(&mut self, ops: Vec<(ShardId, Op)>) -> Vec<Outcome> {
        let at = self.next_entry();
        let mut batch = Batch::default();
        let operations =
            ops.into_iter().map(|(shard, op)| Operation { shard, body: op.encode() }).collect();
        let replies = self.machine.apply(&at, operations, &mut batch).unwrap();
        self.engine.apply(batch).unwrap();
        self.machine.batch_visible();
        replies.into_iter().map(|reply| Outcome::decode(reply).unwrap()).collect()
    }

    /// One operation on [`SHARD`], in an entry of its own.
    fn one(&mut self, op: Op) -> Outcome {
        self.apply(vec![(SHARD, op)]).remove(0)
    }

    fn revision(&self) -> u64 {
        self.machine.applied.lock().held[&SHARD].head.revision.0
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
        ttl_ms: None,
    }
}

fn delete(key: &str) -> Op {
    let key = Bytes::copy_from_slice(key.as_bytes());
    Op::Delete { namespace: DEFAULT, key, expect: Expect::Anything }
}

fn cas(key: &str, expect: Expect, value: &str) -> Op {
    let Op::Put { namespace, key, crc, value, ttl_ms } = put(key, value) else { unreachable!() };
    Op::Cas { namespace, key, expect, crc, value, ttl_ms }
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

/// The rows of every file of a snapshot.
type Files = Vec<(u64, Vec<Row>)>;

fn files_of(fixture: &Fixture) -> Files {
    let machine = &fixture.machine;
    let copied = machine.files().into_iter().map(|FileSpec { id, ranges }| {
        let rows = ranges.into_iter().flat_map(|range| fixture.engine.rows(range, 999).unwrap());
        (id, rows.map(|row| machine.export(id, row).unwrap()).collect())
    });
    copied.collect()
}

/// Writes the files' rows, one by one, and returns what is left to be switched.
fn fill(fixture: &Fixture, files: Files) -> Box<dyn Import> {
    let mut import = Arc::clone(&fixture.machine).import();
    for (file, rows) in files {
        for row in rows {
            let mut batch = Batch::default();
            import.rows(file, vec![row], &mut batch).unwrap();
            fixture.engine.apply(batch).unwrap();
        }
    }
    import
}

fn install(fixture: &Fixture, files: Files) {
    let mut import = fill(fixture, files);
    let mut batch = Batch::default();
    import.switch(&mut batch).unwrap();
    fixture.engine.apply(batch).unwrap();
    import.switched();
}

/// Two shards with keys in both, some of them written twice, some deleted.
fn two_shards() -> Fixture {
    let mut fixture = Fixture::open(Arc::new(MemoryEngine::default()));
    let create = |first| Op::Create { first, count: 512, epoch: Epoch(1) };
    fixture.apply(vec![(SHARD, create(0)), (ShardId(4), create(512))]);
    for number in 0..20 {
        let key = format!("key {number}");
        let shard = fixture.shards.find(token_of(key.as_bytes())).unwrap().id;
        fixture.apply(vec![(shard, put(&key, "first")), (shard, put(&key, "second"))]);
        if number % 5 == 0 {
            fixture.apply(vec![(shard, delete(&key))]);
        }
    }
    fixture
}

#[test]
fn a_snapshot_brings_the_same_shards_under_prefixes_of_their_own() {
    let source = two_shards();
    let mut target = Fixture::new();
    target.apply(vec![(SHARD, put("only here", "1"))]);
    let former = target.read("only here").head.prefix;
    install(&target, files_of(&source));

    for node in [&target, &Fixture::open(Arc::clone(&target.engine))] {
        assert_eq!(node.machine.hosted(), [SHARD, ShardId(4)]);
        for shard in source.shards.all() {
            let token = Token(u32::from(shard.first) << 22);
            let there = node.shards.find(token).unwrap();
            let head = source.shards.head(&shard).unwrap().unwrap();
            let found = node.shards.head(&there).unwrap().unwrap();
            assert_eq!(Head { prefix: head.prefix, ..found }, head, "counts, revision, times");
            assert!(head.keys > 0 && found.prefix > former);
        }
        for number in 0..20 {
            let key = format!("key {number}");
            let value = node.read(&key).value;
            assert_eq!(value.is_some(), number % 5 != 0, "{key}");
            assert_eq!(value, source.read(&key).value);
        }
        assert_eq!(node.read("only here").value, None);
        assert_eq!(files_of(node), files_of(&source), "equal states make equal files");
    }
    let shard = target.shards.find(token_of(b"key 1")).unwrap().id;
    let version = source.read("key 1").value.unwrap().revision;
    let outcome = target.apply(vec![(shard, cas("key 1", Expect::Version(version), "third"))]);
    assert!(matches!(outcome[0], Outcome::Done { .. }), "{outcome:?}");
}

#[test]
fn what_a_reader_holds_stays_until_it_lets_go() {
    let mut target = Fixture::new();
    target.apply(vec![(SHARD, put("a", "1"))]);
    let held = target.shards.find(token_of(b"a")).unwrap();
    let data = key::data_range(held.prefix);
    install(&target, files_of(&Fixture::new()));

    assert_eq!(target.read("a").value, None);
    let seen = target.shards.read(&held, DEFAULT, b"a").unwrap();
    assert_eq!(seen, None, "it was switched: that is not the same as absent");
    assert_eq!(target.shards.sweep().unwrap(), 0);
    let rows = target.engine.rows(data.clone(), 9).unwrap();
    assert_eq!(key::user_key(&rows[0].0), Some(&b"a"[..]), "the former data are all there");
    drop(held);
    assert_eq!(target.shards.sweep().unwrap(), 1);
    assert!(target.engine.rows(data, 9).unwrap().is_empty());
    assert_eq!(target.shards.sweep().unwrap(), 0);
}

#[test]
fn an_installation_that_is_cut_short_changes_nothing_and_leaves_nothing() {
    let mut target = Fixture::new();
    target.apply(vec![(SHARD, put("a", "1"))]);
    let rows_of_all = |fixture: &Fixture| {
        let all = key::data_range(Prefix(0)).start..key::data_range(Prefix(u64::MAX)).end;
        fixture.engine.rows(all, 99).unwrap().len()
    };
    let import = fill(&target, files_of(&two_shards()));
    assert_eq!(rows_of_all(&target), 17);

    // After a crash nobody remembers the new prefixes.
    let again = Fixture::open(Arc::clone(&target.engine));
    assert_eq!(again.read("a").value.unwrap().value.as_ref(), b"1");
    assert_eq!((again.shards.sweep().unwrap(), rows_of_all(&again)), (2, 1));
    assert!(again.shards.take_prefix().unwrap().0 > again.read("a").head.prefix.0 + 2);

    // Without a crash they are remembered.
    drop(import);
    let import = fill(&target, files_of(&two_shards()));
    drop(import);
    assert_eq!((target.shards.sweep().unwrap(), rows_of_all(&target)), (4, 1));
    assert_eq!(target.read("a").value.unwrap().value.as_ref(), b"1");
}

#[test]
fn rows_name_no_prefix_and_what_they_must_say_is_checked() {
    let source = two_shards();
    let (_, rows) = files_of(&source).remove(0);
    let (name, head) = rows[0].clone();
    assert_eq!(name.as_ref(), [2, 0]);
    assert_eq!(Head::decode(head).unwrap().prefix, Prefix(0));

    let target = Fixture::new();
    let mut import = Arc::clone(&target.machine).import();
    let mut batch = Batch::default();
    import.rows(3, rows[1..].to_vec(), &mut batch).unwrap();
    assert!(import.switch(&mut batch).is_err(), "a shard without its head");
    let later = vec![(Bytes::from_static(b"\x02\x07"), Bytes::new())];
    assert!(import.rows(3, later, &mut batch).is_err(), "a part that nobody knows");
    let foreign = key::record(GroupId(8), SHARD, 0, &[]);
    assert!(target.machine.export(3, (foreign, Bytes::new())).is_err());
}
