//! The promises of the trait, one by one.

use annulus_engine::{Batch, Engine, EngineError, Row, View};
use bytes::Bytes;

use crate::bench::{Bench, Variant, all, bytes, everything, get, numbered, paged, put};

pub fn a_batch_is_applied_whole_and_its_last_change_wins(variant: Variant) {
    let bench = Bench::new(variant);
    let engine = &*bench.engine;
    put(engine, &[(bytes("gone"), bytes("1")), (bytes("kept"), bytes("1"))]);

    let mut batch = Batch::default();
    batch.put("changed", "1");
    batch.put("changed", "2");
    batch.delete("gone");
    batch.put("put then deleted", "1");
    batch.delete("put then deleted");
    batch.delete("deleted then put");
    batch.put("deleted then put", "1");
    batch.delete("never there");
    engine.apply(batch).expect("apply");
    engine.apply(Batch::default()).expect("an empty batch");

    let expected = [("changed", "2"), ("deleted then put", "1"), ("kept", "1")];
    let expected: Vec<Row> =
        expected.iter().map(|(key, value)| (bytes(key), bytes(value))).collect();
    assert_eq!(all(engine), expected);

    let values = engine.get(&[b"kept", b"gone", b"changed", b"kept"]).expect("get");
    let one = Some(bytes("1"));
    assert_eq!(values, [one.clone(), None, Some(bytes("2")), one]);
    assert!(engine.get(&[]).expect("get of nothing").is_empty());
}

pub fn wrong_lengths_change_nothing(variant: Variant) {
    let bench = Bench::new(variant);
    let engine = &*bench.engine;
    for wrong in [Bytes::new(), Bytes::from(vec![b'k'; 65_536])] {
        let mut batch = Batch::default();
        batch.put("innocent", "1");
        batch.put(wrong, "1");
        let outcome = engine.apply(batch);
        assert!(matches!(outcome, Err(EngineError::Failed { .. })), "{outcome:?}");
        assert!(all(engine).is_empty());
    }
    put(engine, &[(bytes("right"), bytes("1"))]);
    assert_eq!(get(engine, "right"), Some(bytes("1")));
}

pub fn an_empty_value_is_not_an_absent_one(variant: Variant) {
    let bench = Bench::new(variant);
    let engine = &*bench.engine;
    put(engine, &[(bytes("empty"), Bytes::new())]);
    assert_eq!(get(engine, "empty"), Some(Bytes::new()));
    assert_eq!(get(engine, "absent"), None);
    assert_eq!(all(engine), [(bytes("empty"), Bytes::new())]);

    let view = engine.view(everything()).expect("view");
    put(engine, &[(bytes("empty"), bytes("full")), (bytes("late"), bytes("1"))]);
    assert_eq!(view.get(b"empty").expect("get"), Some(Bytes::new()));
    assert_eq!(view.get(b"late").expect("get"), None);
    assert_eq!(view_rows(&*view), [(bytes("empty"), Bytes::new())]);
}

pub fn a_read_ends_where_it_has_enough(variant: Variant) {
    let bench = Bench::new(variant);
    let engine = &*bench.engine;
    let rows = [("a", "1234"), ("b", "1234"), ("c", "1234"), ("first", "123456789")];
    put(engine, &rows.map(|(key, value)| (bytes(key), bytes(value))));
    let read = |bytes_most| {
        let values =
            engine.get_within(&[b"first", b"gone"], &[b"a", b"gone", b"b", b"c"], bytes_most);
        values.expect("get")
    };
    let four = Some(bytes("1234"));
    let mut expected = vec![Some(bytes("123456789")), None, four.clone()];
    assert_eq!(read(0), expected, "at least one, whatever comes before it");
    assert_eq!(read(4), expected);
    expected.extend([None, four.clone()]);
    assert_eq!(read(5), expected);
    assert_eq!(read(8), expected);
    expected.push(four);
    assert_eq!(read(9), expected);
    assert_eq!(read(usize::MAX), expected);
    assert_eq!(engine.get_within(&[], &[b"a"], 9).expect("get"), engine.get(&[b"a"]).expect("get"));
    assert!(engine.get_within(&[], &[], 9).expect("get").is_empty());
}

pub fn only_memory_never_waits(variant: Variant) {
    let bench = Bench::new(variant);
    assert_eq!(bench.engine.may_block(), variant != Variant::Memory);
}

pub fn the_longest_keys_and_values_come_back(variant: Variant) {
    let bench = Bench::new(variant);
    let engine = &*bench.engine;
    // A key of 4 KiB behind the header of data keys, a value of 1 MiB.
    let rows: Vec<Row> = (1..=3_u8)
        .map(|n| (Bytes::from(vec![n; 4096 + 15]), Bytes::from(vec![n ^ 0x55; 1024 * 1024])))
        .collect();
    put(engine, &rows);
    assert!(all(engine) == rows, "the rows differ");
    for (key, value) in &rows {
        let values = engine.get(&[key]).expect("get");
        assert!(values == [Some(value.clone())], "the value differs");
    }
    let view = engine.view(everything()).expect("view");
    put(engine, &[(rows[1].0.clone(), bytes("short"))]);
    assert!(view_rows(&*view) == rows, "the view differs");
}

pub fn rows_come_in_order_and_in_pages(variant: Variant) {
    let bench = Bench::new(variant);
    let engine = &*bench.engine;
    let rows = numbered("row/", 97);
    // Written in an order that is not theirs.
    for n in 0..rows.len() {
        put(engine, &rows[n * 31 % rows.len()..][..1]);
    }
    let read = |range, limit| engine.rows(range, limit).expect("rows");
    for limit in [1, 2, 10, 96, 97, 98, usize::MAX] {
        assert_eq!(paged(everything(), limit, read), rows, "limit {limit}");
    }
    // The start is part of a range, the end is not.
    let part = rows[3].0.clone()..rows[8].0.clone();
    assert_eq!(read(part.clone(), 100), rows[3..8]);
    assert_eq!(read(part.clone(), 2), rows[3..5]);
    assert!(read(part.clone(), 0).is_empty());
    assert!(read(part.start.clone()..part.start.clone(), 100).is_empty());
    assert!(read(part.end..part.start, 100).is_empty());
    assert!(read(bytes("z")..bytes("zz"), 100).is_empty());
}

/// Reads a view in pages, and each row of it alone.
fn view_rows(view: &dyn View) -> Vec<Row> {
    let rows = paged(everything(), 7, |range, limit| view.rows(range, limit).expect("rows"));
    for (key, value) in &rows {
        assert_eq!(view.get(key).expect("get").as_ref(), Some(value));
    }
    rows
}

pub fn a_view_does_not_change(variant: Variant) {
    let bench = Bench::new(variant);
    let engine = &*bench.engine;
    let before = numbered("row/", 50);
    put(engine, &before);
    let first = engine.view(everything()).expect("view");
    assert_eq!(view_rows(&*first), before);

    let mut batch = Batch::default();
    batch.put(before[0].0.clone(), "changed");
    batch.delete(before[1].0.clone());
    batch.put("added", "1");
    engine.apply(batch).expect("apply");
    assert_eq!(view_rows(&*first), before);
    let between = all(engine);
    let second = engine.view(everything()).expect("view");

    // Changed twice: the first former value is the one that counts.
    put(engine, &[(before[0].0.clone(), bytes("changed again")), (bytes("added"), bytes("2"))]);
    engine.delete_range(before[10].0.clone()..before[40].0.clone()).expect("delete");
    put(engine, &before[20..21]);
    assert_eq!(view_rows(&*first), before);
    assert_eq!(view_rows(&*second), between);
    assert_eq!(first.get(b"added").expect("get"), None);
    assert_eq!(second.get(b"added").expect("get"), Some(bytes("1")));
    assert_eq!(second.get(&before[1].0).expect("get"), None);

    // One ends, the other stays.
    drop(first);
    put(engine, &[(before[45].0.clone(), bytes("late"))]);
    assert_eq!(view_rows(&*second), between);
    // One row deleted, one added, thirty deleted as a range, one of these put back.
    assert_eq!(all(engine).len(), before.len() - 29);
}

pub fn views_are_cut_to_their_range(variant: Variant) {
    let bench = Bench::new(variant);
    let engine = &*bench.engine;
    let rows = numbered("row/", 20);
    put(engine, &rows);
    let view = engine.view(rows[5].0.clone()..rows[15].0.clone()).expect("view");
    let inverted = engine.view(rows[15].0.clone()..rows[5].0.clone()).expect("view");
    engine.delete_range(everything()).expect("delete");
    assert_eq!(view_rows(&*view), rows[5..15]);
    let part = view.rows(rows[0].0.clone()..rows[7].0.clone(), 100).expect("rows");
    assert_eq!(part, rows[5..7]);
    for outside in [&rows[0], &rows[16]] {
        let range = outside.0.clone()..Bytes::from([&outside.0[..], &[0]].concat());
        assert!(view.rows(range, 100).expect("rows").is_empty());
    }
    assert!(view_rows(&*inverted).is_empty());
}

pub fn a_range_is_deleted_and_its_neighbours_stay(variant: Variant) {
    let bench = Bench::new(variant);
    let engine = &*bench.engine;
    // More than one batch of deletes of any engine.
    let doomed = numbered("b/", 2_500);
    put(engine, &doomed);
    let (before, after) = (numbered("a/", 3), numbered("c/", 3));
    put(engine, &before);
    put(engine, &after);

    engine.delete_range(bytes("c/")..bytes("b/")).expect("delete of an inverted range");
    assert_eq!(all(engine).len(), before.len() + doomed.len() + after.len());
    for _ in 0..2 {
        engine.delete_range(bytes("b/")..bytes("c/")).expect("delete");
        assert_eq!(all(engine), [&before[..], &after[..]].concat());
    }
    put(engine, &doomed[..1]);
    assert_eq!(get(engine, "b/00000"), Some(bytes("value 0")));
}

pub fn stats_count_bytes(variant: Variant) {
    let bench = Bench::new(variant);
    let value = Bytes::from(vec![7_u8; 100 * 1024]);
    put(&*bench.engine, &[(bytes("key"), value.clone())]);
    bench.engine.make_durable().expect("make durable");
    let stats = bench.engine.stats();
    assert!(stats.bytes >= value.len() as u64, "{stats:?}");
}

/// Batch `n` sets `last` to `n`, adds one row of its own and removes an earlier one.
fn apply_numbered(engine: &dyn Engine, n: u32) {
    let mut batch = Batch::default();
    batch.put("last", n.to_string());
    batch.put(format!("row/{n:05}"), n.to_string());
    if n >= 10 {
        batch.delete(format!("row/{:05}", n - 10));
    }
    engine.apply(batch).expect("apply");
}

pub fn what_a_reopened_engine_holds_is_a_prefix(variant: Variant) {
    let mut bench = Bench::new(variant);
    for round in 0..3_u32 {
        for n in round * 40..round * 40 + 20 {
            apply_numbered(&*bench.engine, n);
        }
        bench.engine.make_durable().expect("make durable");
        let durable = round * 40 + 19;
        for n in round * 40 + 20..round * 40 + 40 {
            apply_numbered(&*bench.engine, n);
        }
        bench = bench.reopened();
        let last = get(&*bench.engine, "last").expect("a last batch");
        let last: u32 = std::str::from_utf8(&last).expect("text").parse().expect("a number");
        assert!(last >= durable, "{last} is below the durable {durable}");

        let mut expected = vec![(bytes("last"), bytes(&last.to_string()))];
        expected.extend(
            (last - 9..=last).map(|n| (bytes(&format!("row/{n:05}")), bytes(&n.to_string()))),
        );
        assert_eq!(all(&*bench.engine), expected);
        // The next round continues after the batches that are there.
        for n in last + 1..round * 40 + 40 {
            apply_numbered(&*bench.engine, n);
        }
    }
}

pub fn an_ended_view_leaves_nothing_behind(variant: Variant) {
    let mut bench = Bench::new(variant);
    let rows = numbered("row/", 30);
    put(&*bench.engine, &rows);
    for _ in 0..2 {
        let view = bench.engine.view(everything()).expect("view");
        bench.engine.delete_range(everything()).expect("delete");
        put(&*bench.engine, &[(bytes("other"), bytes("1"))]);
        assert_eq!(view_rows(&*view), rows);
        drop(view);
        assert_eq!(all(&*bench.engine), [(bytes("other"), bytes("1"))]);

        // A view of the next run has the same number as one of this run.
        bench = bench.reopened();
        let view = bench.engine.view(everything()).expect("view");
        assert_eq!(view_rows(&*view), [(bytes("other"), bytes("1"))]);
        put(&*bench.engine, &rows);
        bench.engine.delete_range(bytes("other")..bytes("p")).expect("delete");
        assert_eq!(view_rows(&*view), [(bytes("other"), bytes("1"))]);
        assert_eq!(all(&*bench.engine), rows);
    }
}
