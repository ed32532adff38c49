//! Keys end by time (W5): with which entry, in which order, how many, and what they leave. Many schedules of
//! that are in `endings`.

use std::num::NonZeroU64;

use super::counting::{batch, counted, incr, set, unset};
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

/// The rows of the index: when, and which key.
pub(super) fn index_of(fixture: &Fixture) -> Vec<(u64, String)> {
    let prefix = fixture.machine.applied.lock().held[&SHARD].head.prefix;
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
    assert_eq!((deadline(&fixture, "a"), fixture.machine.next_end_ms()), (600, Some(600)));

    go_to(&mut fixture, 599);
    fixture.one(put("b", "2"));
    assert!(exists(&fixture, "a"), "not shorter than asked");
    go_to(&mut fixture, 600);
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
        let earliest = index.first().map(|(deadline_ms, _)| *deadline_ms);
        assert_eq!(fixture.machine.next_end_ms(), earliest);
        index.into_iter().map(|(deadline_ms, _)| deadline_ms).collect::<Vec<u64>>()
    };
    fixture.one(living(put("a", "1"), 500));
    assert_eq!(ends(&fixture), [520]);
    fixture.one(living(put("a", "1"), 100));
    assert_eq!(ends(&fixture), [130], "shorter");
    fixture.one(living(put("a", "1"), 900));
    assert_eq!(ends(&fixture), [940], "longer");
    assert_eq!(counted(fixture.one(incr("a", 4))), 5);
    assert_eq!((ends(&fixture), deadline(&fixture, "a")), (vec![940], 940), "kept");
    fixture.one(put("a", "1"));
    assert_eq!((ends(&fixture), deadline(&fixture, "a")), (vec![], 0), "for ever");
    let swap = living(cas("a", Expect::Version(Revision(5)), "2"), 30);
    fixture.one(swap);
    assert_eq!(ends(&fixture), [100]);
    fixture.one(cas("a", Expect::Version(Revision(9)), "3"));
    assert_eq!(ends(&fixture), [100], "a failed condition changes nothing");
    fixture.one(cas("a", Expect::Version(Revision(6)), "3"));
    assert!(ends(&fixture).is_empty());
    let items = vec![living_item(set("a", "4"), 1_000), living_item(set("b", "5"), 2_000)];
    fixture.one(batch(Vec::new(), items));
    assert_eq!(ends(&fixture), [1_100, 2_100]);
    fixture.one(batch(Vec::new(), vec![unset("a"), set("c", "6")]));
    assert_eq!(ends(&fixture), [2_100]);
    // Several changes of one key in one entry.
    fixture.apply(vec![
        (SHARD, delete("b")),
        (SHARD, living(put("b", "7"), 40)),
        (SHARD, living(put("b", "8"), 70)),
    ]);
    assert_eq!(ends(&fixture), [190]);
    fixture.apply(vec![(SHARD, living(put("c", "9"), 5)), (SHARD, delete("c"))]);
    assert_eq!(ends(&fixture), [190], "what came and went in one entry leaves nothing");
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
    assert_eq!((late.value.as_ref(), late.deadline_ms), (&b"v"[..], 5_020));
    assert!(exists(&fixture, "key 199") && !exists(&fixture, "key 200"));
    let due = fixture.machine.next_end_ms().unwrap();
    assert!(due <= fixture.index * 10 + fixture.later_ms, "the next entry is asked for at once");

    fixture.apply(vec![(SHARD, put("other", "1"))]);
    assert_eq!((fixture.revision(), fixture.read("other").head.keys), (2_401, 1));
    assert_eq!((index_of(&fixture), fixture.machine.next_end_ms()), (vec![], None));
}

#[test]
fn keys_and_writers_end_in_one_order() {
    let mut fixture = Fixture::new();
    go_to(&mut fixture, 1_000);
    // Used until now, it ends at 601,000.
    let writer = open(&mut fixture);
    go_to(&mut fixture, 2_000);
    let before = (0..999).map(|number| living(put(&format!("before {number}"), "v"), 598_999));
    let after = (0..2).map(|number| living(put(&format!("after {number}"), "v"), 600_000));
    fixture.apply(before.chain(after).map(|op| (SHARD, op)).collect());
    assert_eq!(fixture.machine.next_end_ms(), Some(600_999));
    go_to(&mut fixture, 700_000);
    let late = fixture.one(named(writer, 1, 1, &put("a", "1")));
    assert_eq!(late, Outcome::WriterExpired, "the thousandth to end");
    let left: Vec<u64> = index_of(&fixture).into_iter().map(|(at, _)| at).collect();
    assert_eq!(left, [602_000, 602_000]);
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
    assert_eq!((deadline(&fixture, "a"), fixture.machine.next_end_ms()), (5_600, Some(600)));
    // In a group whose time is ahead of that of the former one.
    shift(&fixture, -2_000);
    assert_eq!(fixture.machine.next_end_ms(), Some(7_600));
    go_to(&mut fixture, 7_599);
    fixture.apply(Vec::new());
    assert!(exists(&fixture, "a"));
    go_to(&mut fixture, 7_600);
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
        assert_eq!(node.machine.next_end_ms(), Some(320));
        assert_eq!(index_of(&node), [(320, "b".to_owned()), (520, "a".to_owned())]);
        go_to(&mut node, 320);
        let at = node.next_entry();
        let mut changes = Batch::default();
        node.machine.apply(&at, Vec::new(), &mut changes).unwrap();
        ends.push((changes.changes.len(), node.machine.next_end_ms()));
    }
    assert_eq!(ends, vec![(3, Some(520)); 4], "the key, its row and the head");
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
    let row = key::deadline(&key::data(prefix, DEFAULT, token_of(b"a"), b"a"), 520);
    let mut rot = Batch::default();
    rot.put(row, "no ending");
    fixture.engine.apply(rot).unwrap();
    fixture.later_ms += 500;
    let at = fixture.next_entry();
    assert!(fixture.machine.apply(&at, Vec::new(), &mut Batch::default()).is_err());
}
