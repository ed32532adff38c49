//! Numbers, and batches.

use super::*;
use crate::operation::{Guard, Item};

fn key(key: &str) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

fn within(name: &str, delta: i64, min: Option<i64>, max: Option<i64>) -> Op {
    Op::Incr { namespace: DEFAULT, key: key(name), delta, min, max }
}

pub(super) fn incr(name: &str, delta: i64) -> Op {
    within(name, delta, None, None)
}

pub(super) fn set(name: &str, value: &str) -> Item {
    let Op::Put { key, crc, value, ttl_ms, .. } = put(name, value) else { unreachable!() };
    Item::Put { key, crc, value, ttl_ms }
}

pub(super) fn unset(name: &str) -> Item {
    Item::Delete { key: key(name) }
}

pub(super) fn guard(name: &str, expect: Expect) -> Guard {
    Guard { key: key(name), expect }
}

pub(super) fn batch(guards: Vec<Guard>, items: Vec<Item>) -> Op {
    Op::Batch { namespace: DEFAULT, guards, items }
}

pub(super) fn counted(outcome: Outcome) -> i64 {
    match outcome {
        Outcome::Counted { number, .. } => number,
        other => panic!("{other:?}"),
    }
}

fn text(fixture: &Fixture, name: &str) -> Option<String> {
    let value = fixture.read(name).value?;
    Some(String::from_utf8(value.value.to_vec()).unwrap())
}

#[test]
fn sums_are_exact_and_stored_as_text() {
    let mut fixture = Fixture::new();
    let outcomes = fixture.apply(vec![
        (SHARD, incr("n", 5)),
        (SHARD, incr("n", -12)),
        (SHARD, put("n", "+40")),
        (SHARD, incr("n", 2)),
        (SHARD, incr("n", 0)),
    ]);
    assert_eq!(counted(outcomes[0]), 5);
    assert_eq!(counted(outcomes[1]), -7);
    assert_eq!((counted(outcomes[3]), counted(outcomes[4])), (42, 42));
    let Outcome::Counted { at, .. } = outcomes[4] else { panic!("{outcomes:?}") };
    assert_eq!((at.revision, at.epoch, at.shard_time_ms), (Revision(5), Epoch(1), 20));
    // A read checks the checksum.
    let seen = fixture.read("n");
    let value = seen.value.unwrap();
    assert_eq!((value.value.as_ref(), value.revision), (&b"42"[..], Revision(5)));
    assert_eq!((seen.head.keys, seen.head.bytes), (1, 3));
    let mut again = fixture.restarted();
    assert_eq!(counted(again.one(incr("n", 1))), 43, "from the engine too");
}

#[test]
fn a_sum_that_is_out_of_bounds_changes_nothing() {
    let mut fixture = Fixture::new();
    fixture.one(put("n", "5"));
    for op in [
        within("n", -6, Some(0), None),
        within("n", 6, None, Some(10)),
        incr("n", i64::MAX),
        within("n", 0, Some(6), Some(9)),
    ] {
        let outcome = fixture.one(op);
        assert!(matches!(outcome, Outcome::OutOfBounds { number: 5, .. }), "{outcome:?}");
    }
    assert_eq!((text(&fixture, "n"), fixture.revision()), (Some("5".to_owned()), 1));
    assert_eq!(counted(fixture.one(within("n", 5, Some(10), Some(10)))), 10);
    fixture.one(put("n", &i64::MIN.to_string()));
    let below = fixture.one(incr("n", -1));
    assert!(matches!(below, Outcome::OutOfBounds { number: i64::MIN, .. }), "{below:?}");
    assert_eq!(counted(fixture.one(incr("n", i64::MAX))), -1);
}

#[test]
fn what_is_not_a_number_is_not_counted_on() {
    let mut fixture = Fixture::new();
    for value in ["", " 1", "1.0", "ten", "9223372036854775808", "000000000000000000001"] {
        fixture.one(put("n", value));
        let revision = fixture.revision();
        let outcomes = fixture.apply(vec![(SHARD, incr("n", 1)), (SHARD, incr("m", 1))]);
        assert!(matches!(outcomes[0], Outcome::NotANumber { .. }), "{value:?}: {outcomes:?}");
        assert_eq!(fixture.revision(), revision + 1, "the neighbour alone took one");
        assert_eq!(text(&fixture, "n"), Some(value.to_owned()));
    }
}

#[test]
fn a_rotten_number_stops_the_replica() {
    let mut fixture = Fixture::new();
    fixture.one(put("n", "1"));
    let seen = fixture.read("n");
    let physical = key::data(seen.head.prefix, DEFAULT, token_of(b"n"), b"n");
    let rotten = Value { value: Bytes::from_static(b"2"), ..seen.value.unwrap() };
    let mut changes = Batch::default();
    changes.put(physical, rotten.encode());
    fixture.engine.apply(changes).unwrap();
    let at = fixture.next_entry();
    let operations = vec![Operation { shard: SHARD, body: incr("n", 1).encode() }];
    assert!(fixture.machine.apply(&at, operations, &mut Batch::default()).is_err());
}

#[test]
fn a_batch_takes_one_revision_for_all_of_its_keys() {
    let mut fixture = Fixture::new();
    fixture.apply(vec![(SHARD, put("{t}old", "x")), (SHARD, put("{t}gone", "y"))]);
    let items = vec![set("{t}old", "1"), set("{t}new", "2"), unset("{t}gone"), unset("{t}never")];
    let guards = vec![
        guard("{t}old", Expect::Version(Revision(1))),
        guard("{t}gone", Expect::Present),
        guard("{t}never", Expect::Absent),
    ];
    let outcomes = fixture.apply(vec![
        (SHARD, batch(guards, items)),
        (SHARD, cas("{t}new", Expect::Version(Revision(3)), "3")),
        (SHARD, incr("{t}new", 1)),
    ]);
    assert_eq!((version(&outcomes[0]), version(&outcomes[1])), (3, 4));
    assert_eq!(counted(outcomes[2]), 4, "later operations see what the batch did");
    let seen = fixture.read("{t}old");
    assert_eq!(seen.value.unwrap().revision, Revision(3));
    assert_eq!((seen.head.revision, seen.head.keys, seen.head.bytes), (Revision(5), 2, 14));
    assert_eq!((text(&fixture, "{t}gone"), text(&fixture, "{t}never")), (None, None));
}

#[test]
fn one_guard_that_does_not_hold_refuses_the_whole_batch() {
    let mut fixture = Fixture::new();
    fixture.one(put("{t}a", "1"));
    let items = || vec![set("{t}a", "2"), set("{t}b", "2"), unset("{t}a")];
    for (guards, current) in [
        (vec![guard("{t}a", Expect::Absent)], Some(Revision(1))),
        (vec![guard("{t}a", Expect::Version(Revision(2)))], Some(Revision(1))),
        (vec![guard("{t}a", Expect::Present), guard("{t}b", Expect::Present)], None),
    ] {
        // The same entry's next operation sees that nothing happened.
        let outcomes = fixture.apply(vec![
            (SHARD, batch(guards, items())),
            (SHARD, cas("{t}b", Expect::Present, "x")),
        ]);
        assert_eq!(outcomes[0], Outcome::PreconditionFailed { current });
        assert_eq!(outcomes[1], Outcome::PreconditionFailed { current: None });
    }
    assert_eq!((text(&fixture, "{t}a"), fixture.revision()), (Some("1".to_owned()), 1));
    let seen = fixture.read("{t}b");
    assert_eq!((seen.value, seen.head.keys), (None, 1));
}

#[test]
fn a_batch_that_finds_nothing_to_change_takes_no_revision() {
    let mut fixture = Fixture::new();
    let outcome = fixture.one(batch(Vec::new(), vec![unset("{t}a"), unset("{t}b")]));
    assert_eq!((version(&outcome), fixture.revision()), (0, 0));
}

#[test]
fn a_batch_is_refused_if_one_of_its_keys_or_guards_is_not_owned() {
    let mut fixture = Fixture::open(Arc::new(MemoryEngine::default()));
    let first = token_of(b"{here}").micro_slice();
    fixture.one(Op::Create { first, count: 1, epoch: Epoch(1) });
    let elsewhere = "{there}x";
    assert_ne!(token_of(elsewhere.as_bytes()).micro_slice(), first);
    let here = || set("{here}x", "1");
    for op in [
        batch(Vec::new(), vec![here(), set(elsewhere, "1")]),
        batch(vec![guard(elsewhere, Expect::Absent)], vec![here()]),
        batch(Vec::new(), Vec::new()),
    ] {
        assert_eq!(fixture.one(op), Outcome::NotHere);
    }
    assert_eq!(version(&fixture.one(batch(Vec::new(), vec![here()]))), 1);
}
