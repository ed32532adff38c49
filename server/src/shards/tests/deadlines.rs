//! Keys end by time (W5): with which entry, in which order, how many, and what they leave. Many schedules of
//! that are in `endings`.

use std::num::NonZeroU64;

use super::counting::{batch, counted, guard, incr, set, unset};
use super::once::{named, open};
use super::*;
use crate::operation::Item;

/// The same operation, with a time to live for what it sets.
pub(super) fn living(op: Op, ttl_ms: u64) -> Op {
    let ttl_ms = NonZeroU64::new(ttl_ms);
    match op {
        Op::Put { namespace, key, crc, value, .. } => {
            Op::Put { namespace, key, crc, value, ttl_ms }
        }
        Op::Cas { namespace, key, expect, crc, value, .. } => {
            Op::Cas { namespace, key, expect, crc, value, ttl_ms }
        }
        other => panic!("{other:?} sets nothing"),
    }
}

pub(super) fn living_item(item: Item, ttl_ms: u64) -> Item {
    match item {
        Item::Put { key, crc, value, .. } => {
            Item::Put { key, crc, value, ttl_ms: NonZeroU64::new(ttl_ms) }
        }
        Item::Delete { .. } => panic!("a delete sets nothing"),
    }
}

/// The next entry has this group time.
fn go_to(fixture: &mut Fixture, time_ms: u64) {
    fixture.later_ms = time_ms - (fixture.index + 1) * 10;
}

/// The rows of the index of [`SHARD`]: when, and which key.
fn index_of(fixture: &Fixture) -> Vec<(u64, String)> {
    index_in(fixture, SHARD)
}

/// The same of any shard.
pub(super) fn index_in(fixture: &Fixture, shard: ShardId) -> Vec<(u64, String)> {
    let prefix = fixture.machine.applied.lock().held[&shard].head.prefix;
    let rows = fixture.engine.rows(key::deadlines_range(prefix), usize::MAX).unwrap();
    let read = rows.into_iter().map(|(row, _)| {
        let (deadline_ms, physical) = key::deadline_of(&row).unwrap();
        let name = key::user_key(&physical).unwrap().to_vec();
        (deadline_ms, String::from_utf8(name).unwrap())
    });
    read.collect()
}

fn exists(fixture: &Fixture, key: &str) -> bool {
    fixture.read(key).value.is_some()
}

fn deadline(fixture: &Fixture, key: &str) -> u64 {
    fixture.read(key).value.unwrap().deadline_ms
}

#[test]
fn a_key_ends_with_the_first_entry_that_is_not_before_its_deadline() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.machine.next_end_ms(), None);
    go_to(&mut fixture, 100);
    fixture.one(living(put("a", "1"), 500));
    assert_eq!((deadline(&fixture, "a"), fixture.machine.next_end_ms()), (601, Some(601)));
    // The request may have come in the last microsecond of the entry's millisecond.
    assert!(deadline(&fixture, "a") * 1_000 - 100_999 >= 500_000, "not shorter than asked");

    go_to(&mut fixture, 600);
    fixture.one(put("b", "2"));
    assert!(exists(&fixture, "a"));
    go_to(&mut fixture, 601);
    assert!(fixture.apply(Vec::new()).is_empty(), "an entry without operations has no replies");
    assert!(!exists(&fixture, "a"));
    let head = fixture.read("b").head;
    assert_eq!((head.revision, head.keys, head.bytes), (Revision(3), 1, 2), "its end took one");
    assert_eq!((index_of(&fixture), fixture.machine.next_end_ms()), (vec![], None));
    let physical = key::data(head.prefix, DEFAULT, token_of(b"a"), b"a");
    assert!(fixture.engine.get(&[&physical]).unwrap()[0].is_none());
}

#[test]
fn keys_end_before_the_operations_of_the_entry_that_ends_them() {
    let mut fixture = Fixture::new();
    fixture.apply(vec![(SHARD, living(put("a", "1"), 500)), (SHARD, living(put("n", "7"), 500))]);
    fixture.later_ms += 500;
    let outcomes = fixture.apply(vec![
        (SHARD, cas("a", Expect::Version(Revision(1)), "late")),
        (SHARD, cas("a", Expect::Absent, "2")),
        (SHARD, incr("n", 1)),
    ]);
    assert_eq!(outcomes[0], Outcome::PreconditionFailed { current: None });
    assert_eq!(version(&outcomes[1]), 5, "two ended, each with a revision");
    assert_eq!(counted(outcomes[2]), 1, "from nothing");
    assert_eq!((index_of(&fixture), fixture.machine.next_end_ms()), (vec![], None));
    assert_eq!((fixture.read("a").head.keys, fixture.revision()), (2, 6));
}

#[test]
fn what_sets_a_key_says_anew_whether_it_ends_and_counting_does_not() {
    let mut fixture = Fixture::new();
    let ends = |fixture: &Fixture| {
        let index = index_of(fixture);
        if let Some((earliest_ms, _)) = index.first() {
            let next_ms = fixture.machine.next_end_ms();
            assert!(next_ms.is_some_and(|next_ms| next_ms <= *earliest_ms), "{next_ms:?}");
        }
        index.into_iter().map(|(deadline_ms, _)| deadline_ms).collect::<Vec<u64>>()
    };
    fixture.one(living(put("a", "1"), 500));
    assert_eq!(ends(&fixture), [521]);
    fixture.one(living(put("a", "1"), 100));
    assert_eq!(ends(&fixture), [131], "shorter");
    fixture.one(living(put("a", "1"), 900));
    assert_eq!(ends(&fixture), [941], "longer");
    assert_eq!(counted(fixture.one(incr("a", 4))), 5);
    assert_eq!((ends(&fixture), deadline(&fixture, "a")), (vec![941], 941), "kept");
    fixture.one(put("a", "1"));
    assert_eq!((ends(&fixture), deadline(&fixture, "a")), (vec![], 0), "for ever");
    let swap = living(cas("a", Expect::Version(Revision(5)), "2"), 30);
    fixture.one(swap);
    assert_eq!(ends(&fixture), [101]);
    fixture.one(cas("a", Expect::Version(Revision(9)), "3"));
    assert_eq!(ends(&fixture), [101], "a failed condition changes nothing");
    fixture.one(cas("a", Expect::Version(Revision(6)), "3"));
    assert!(ends(&fixture).is_empty());
    let items = vec![living_item(set("a", "4"), 1_000), living_item(set("b", "5"), 2_000)];
    fixture.one(batch(Vec::new(), items));
    assert_eq!(ends(&fixture), [1_101, 2_101]);
    fixture.one(batch(Vec::new(), vec![unset("a"), set("c", "6")]));
    assert_eq!(ends(&fixture), [2_101]);
    // Several changes of one key in one entry.
    fixture.apply(vec![
        (SHARD, delete("b")),
        (SHARD, living(put("b", "7"), 40)),
        (SHARD, living(put("b", "8"), 70)),
    ]);
    assert_eq!(ends(&fixture), [191]);
    fixture.apply(vec![(SHARD, living(put("c", "9"), 5)), (SHARD, delete("c"))]);
    assert_eq!(ends(&fixture), [191], "what came and went in one entry leaves nothing");
    fixture.apply(Vec::new());
    assert_eq!((ends(&fixture), fixture.machine.next_end_ms()), (vec![191], Some(191)));
}

#[test]
fn the_next_deadline_is_looked_for_when_its_time_has_come_or_nothing_else_is_done() {
    let mut fixture = Fixture::new();
    fixture.apply(vec![(SHARD, living(put("a", "1"), 500)), (SHARD, living(put("b", "2"), 900))]);
    fixture.one(delete("a"));
    fixture.one(put("c", "3"));
    assert_eq!(fixture.machine.next_end_ms(), Some(521), "other entries do not wait for that");
    go_to(&mut fixture, 521);
    fixture.one(put("c", "4"));
    assert_eq!(fixture.machine.next_end_ms(), Some(921));
    assert_eq!(fixture.revision(), 5, "and nothing has ended");
    fixture.one(delete("b"));
    assert_eq!(fixture.machine.next_end_ms(), Some(921));
    assert_eq!(fixture.restarted().machine.next_end_ms(), None, "a restart looks");
    fixture.apply(Vec::new());
    assert_eq!(fixture.machine.next_end_ms(), None, "a group in which nothing ends falls silent");
}

#[test]
fn an_entry_ends_a_thousand_in_the_order_of_their_deadlines_and_the_next_ones_the_rest() {
    let mut fixture = Fixture::new();
    // The later a key is written, the earlier it ends.
    let name = |number: u64| format!("key {number}");
    let writes = (0..1_200).map(|number| (SHARD, living(put(&name(number), "v"), 5_000 - number)));
    fixture.apply(writes.collect());
    fixture.later_ms += 10_000;
    fixture.apply(Vec::new());
    assert_eq!(fixture.revision(), 2_200, "a thousand ended, each with a revision");
    let left: Vec<String> = index_of(&fixture).into_iter().map(|(_, name)| name).collect();
    let expected: Vec<String> = (0..200).rev().map(name).collect();
    assert_eq!(left, expected, "the last ones in the order of time");
    // Reads judge no time: what no entry has ended is there.
    let late = fixture.read("key 0").value.unwrap();
    assert_eq!((late.value.as_ref(), late.deadline_ms), (&b"v"[..], 5_021));
    assert!(exists(&fixture, "key 199") && !exists(&fixture, "key 200"));
    let due = fixture.machine.next_end_ms().unwrap();
    assert!(due <= fixture.index * 10 + fixture.later_ms, "the next entry is asked for at once");

    fixture.apply(vec![(SHARD, put("other", "1"))]);
    assert_eq!((fixture.revision(), fixture.read("other").head.keys), (2_401, 1));
    assert_eq!((index_of(&fixture), fixture.machine.next_end_ms()), (vec![], None));
}

/// The puts of an entry of three thousand keys of its own.
fn many(entry: u64, ttl_ms: u64) -> Vec<(ShardId, Op)> {
    let op = |number: u64| living(put(&format!("{entry} {number}"), "v"), ttl_ms);
    (0..3_000).map(|number| (SHARD, op(number))).collect()
}

#[test]
fn under_load_more_ends_than_begins_as_long_as_anything_is_left_over() {
    let mut fixture = Fixture::new();
    for entry in 0..20 {
        fixture.apply(many(entry, 1));
        assert_eq!(index_of(&fixture).len(), 3_000, "those of the last entry alone");
    }
    for entry in 20..23 {
        fixture.apply(many(entry, 10_000));
    }
    assert_eq!(index_of(&fixture).len(), 9_000);
    fixture.later_ms += 20_000;
    for (entry, left) in [(23, 6_000), (24, 3_000), (25, 3_000)] {
        fixture.apply(many(entry, 1));
        assert_eq!(index_of(&fixture).len(), left);
    }
}

#[test]
fn what_an_entry_may_end_depends_on_its_bytes_alone() {
    let mut fixture = Fixture::new();
    fixture.apply(many(1, 100));
    fixture.apply(many(2, 100));
    fixture.later_ms += 1_000;
    // All of them are refused: nobody has the writer, and nobody hosts the shard.
    let refused = |number: u64| {
        let put = put(&format!("other {number}"), "v");
        [(SHARD, named(Revision(1), 1, 1, &put)), (ShardId(4), put)]
    };
    let outcomes = fixture.apply((0..300).flat_map(refused).collect());
    assert!(!outcomes.iter().any(|outcome| matches!(outcome, Outcome::Done { .. })));
    assert_eq!(index_of(&fixture).len(), 4_800, "twice the six hundred keys that it names");
    let guards = (0..500).map(|number| guard(&format!("{{t}}{number}"), Expect::Absent)).collect();
    let items = (0..200).map(|number| unset(&format!("{{t}}{number}"))).collect();
    fixture.one(batch(guards, items));
    assert_eq!(index_of(&fixture).len(), 3_400, "guards and items");
    let openings = (0..600).map(|_| (SHARD, Op::OpenWriter { token: Token(0) }));
    fixture.apply(openings.collect());
    assert_eq!(index_of(&fixture).len(), 2_200, "writers");
}

#[test]
fn keys_and_writers_end_in_one_order() {
    let mut fixture = Fixture::new();
    go_to(&mut fixture, 1_000);
    // Used until now, it ends at 601,000.
    let writer = open(&mut fixture);
    go_to(&mut fixture, 2_000);
    let before = (0..999).map(|number| living(put(&format!("before {number}"), "v"), 598_998));
    let after = (0..2).map(|number| living(put(&format!("after {number}"), "v"), 600_000));
    fixture.apply(before.chain(after).map(|op| (SHARD, op)).collect());
    assert_eq!(fixture.machine.next_end_ms(), Some(600_999));
    go_to(&mut fixture, 700_000);
    let late = fixture.one(named(writer, 1, 1, &put("a", "1")));
    assert_eq!(late, Outcome::WriterExpired, "the thousandth to end");
    let left: Vec<u64> = index_of(&fixture).into_iter().map(|(at, _)| at).collect();
    assert_eq!(left, [602_001, 602_001]);
    fixture.apply(Vec::new());
    assert_eq!((fixture.read("a").head.keys, fixture.machine.next_end_ms()), (0, None));
}

#[test]
fn a_writer_alone_asks_for_time_entries_until_it_has_ended() {
    let mut fixture = Fixture::new();
    go_to(&mut fixture, 1_000);
    open(&mut fixture);
    assert_eq!(fixture.machine.next_end_ms(), Some(601_000));
    go_to(&mut fixture, 601_000);
    fixture.apply(Vec::new());
    assert_eq!(fixture.machine.next_end_ms(), None);
}

#[test]
fn deadlines_are_shard_times() {
    let mut fixture = Fixture::new();
    let shift = |fixture: &Fixture, offset_ms| {
        let mut applied = fixture.machine.applied.lock();
        applied.held.get_mut(&SHARD).unwrap().head.time_offset_ms = offset_ms;
    };
    shift(&fixture, 5_000);
    go_to(&mut fixture, 100);
    fixture.one(living(put("a", "1"), 500));
    assert_eq!((deadline(&fixture, "a"), fixture.machine.next_end_ms()), (5_601, Some(601)));
    // In a group whose time is ahead of that of the former one.
    shift(&fixture, -2_000);
    assert_eq!(fixture.machine.next_end_ms(), Some(7_601));
    go_to(&mut fixture, 7_600);
    fixture.apply(Vec::new());
    assert!(exists(&fixture, "a"));
    go_to(&mut fixture, 7_601);
    fixture.apply(Vec::new());
    assert!(!exists(&fixture, "a"));
}

#[test]
fn a_repetition_does_not_bring_back_a_key_that_has_ended() {
    let mut fixture = Fixture::new();
    let writer = open(&mut fixture);
    let original = named(writer, 1, 1, &living(put("a", "1"), 500));
    let first = fixture.one(original.clone());
    fixture.later_ms += 500;
    assert_eq!(fixture.one(original), first);
    assert!(!exists(&fixture, "a"));
    assert_eq!(fixture.revision(), 3);
}

#[test]
fn a_repetition_does_not_prolong_a_key() {
    let mut fixture = Fixture::new();
    let writer = open(&mut fixture);
    let original = named(writer, 1, 1, &living(put("a", "1"), 500));
    let first = fixture.one(original.clone());
    let stored = fixture.read("a");
    assert_eq!(deadline(&fixture, "a"), 531);
    fixture.later_ms += 400;
    assert_eq!(fixture.apply(vec![(SHARD, original.clone()), (SHARD, original)]), [first, first]);
    assert_eq!((fixture.read("a"), index_of(&fixture)), (stored, vec![(531, "a".to_owned())]));
    go_to(&mut fixture, 531);
    fixture.apply(Vec::new());
    assert!(!exists(&fixture, "a"));
}

#[test]
fn deadlines_survive_a_restart_and_travel_with_a_snapshot() {
    let mut source = Fixture::new();
    source.apply(vec![
        (SHARD, living(put("a", "1"), 500)),
        (SHARD, living(put("b", "2"), 300)),
        (SHARD, put("c", "3")),
    ]);
    let mut target = Fixture::new();
    target.one(living(put("only here", "1"), 1));
    install(&target, files_of(&source));
    target.index = source.index;
    assert_eq!(files_of(&target), files_of(&source), "the index is part of them");

    let mut ends = Vec::new();
    let restarted = [source.restarted(), target.restarted()];
    for mut node in restarted.into_iter().chain([source, target]) {
        assert_eq!(node.machine.next_end_ms(), Some(321));
        assert_eq!(index_of(&node), [(321, "b".to_owned()), (521, "a".to_owned())]);
        go_to(&mut node, 321);
        let at = node.next_entry();
        let mut changes = Batch::default();
        node.machine.apply(&at, Vec::new(), &mut changes).unwrap();
        ends.push((changes.changes.len(), node.machine.next_end_ms()));
    }
    assert_eq!(ends, vec![(3, Some(521)); 4], "the key, its row and the head");
}

#[test]
fn the_data_of_a_shard_that_is_gone_take_their_deadlines_with_them() {
    let mut fixture = Fixture::new();
    fixture.one(living(put("a", "1"), 500));
    let former = key::data_range(fixture.read("a").head.prefix);
    install(&fixture, files_of(&Fixture::new()));
    assert_eq!(fixture.machine.next_end_ms(), None);
    assert_eq!(fixture.engine.rows(former.clone(), 9).unwrap().len(), 2);
    fixture.shards.sweep().unwrap();
    assert!(fixture.engine.rows(former, 9).unwrap().is_empty());
}

#[test]
fn a_row_that_is_no_deadline_stops_the_replica() {
    let mut fixture = Fixture::new();
    fixture.one(living(put("a", "1"), 500));
    let prefix = fixture.read("a").head.prefix;
    let row =
        key::deadline(&key::data(prefix, DEFAULT, token_of(b"a"), b"a"), deadline(&fixture, "a"));
    let mut rot = Batch::default();
    rot.put(row, "no ending");
    fixture.engine.apply(rot).unwrap();
    fixture.later_ms += 500;
    let at = fixture.next_entry();
    assert!(fixture.machine.apply(&at, Vec::new(), &mut Batch::default()).is_err());
}
