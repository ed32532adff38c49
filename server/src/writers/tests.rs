//! One test per sentence of W3 that is about the table, and the bytes of its rows.

use annulus_types::Epoch;

use super::*;
use crate::operation::Point;

const WRITER: Revision = Revision(5);

fn id(seq: u64, lowest_unacked: u64) -> OpId {
    OpId { writer: WRITER, seq, lowest_unacked }
}

fn hash(request: &str) -> RequestHash {
    RequestHash::of(request.as_bytes())
}

/// The result of the execution that took `revision`.
fn result(revision: u64) -> Outcome {
    let revision = Revision(revision);
    Outcome::done(revision, Point { revision, epoch: Epoch(1), shard_time_ms: 9 })
}

/// A table with one writer, opened at time 0.
fn table() -> Writers {
    let mut writers = Writers::default();
    assert!(writers.open(WRITER, 0));
    writers
}

/// Executes a mutation that has to be new.
fn execute(writers: &mut Writers, id: OpId, request: &str, revision: u64) {
    assert_eq!(writers.admit(&id, hash(request), 0), Verdict::Fresh, "{id:?}");
    writers.record(&id, hash(request), result(revision));
}

/// The table as a restart or a snapshot brings it back.
fn restored(writers: &Writers) -> Writers {
    let mut again = Writers::default();
    for (id, row) in writers.rows() {
        again.restore(id, row).unwrap();
    }
    again
}

#[test]
fn a_repetition_gets_the_first_result() {
    let mut writers = table();
    execute(&mut writers, id(1, 1), "put", 6);
    execute(&mut writers, id(2, 1), "put", 7);
    for _ in 0..2 {
        assert_eq!(writers.admit(&id(1, 1), hash("put"), 0), Verdict::Replay(result(6)));
    }
    // Its client may know more by now than when it sent the original.
    assert_eq!(writers.admit(&id(2, 2), hash("put"), 0), Verdict::Replay(result(7)));
}

#[test]
fn a_failed_condition_is_a_result_like_any_other() {
    let mut writers = table();
    let failed = Outcome::PreconditionFailed { current: None };
    assert_eq!(writers.admit(&id(1, 1), hash("cas"), 0), Verdict::Fresh);
    writers.record(&id(1, 1), hash("cas"), failed);
    assert_eq!(writers.admit(&id(1, 1), hash("cas"), 0), Verdict::Replay(failed));
}

#[test]
fn one_number_for_two_requests_is_refused() {
    let mut writers = table();
    execute(&mut writers, id(1, 1), "put", 6);
    let refused = Verdict::Refused(Refusal::OpIdReused);
    assert_eq!(writers.admit(&id(1, 1), hash("another"), 0), refused);
    assert_eq!(writers.admit(&id(1, 1), hash("put"), 0), Verdict::Replay(result(6)));
}

#[test]
fn a_number_below_the_highest_lowest_unacked_is_refused_and_never_executed() {
    let mut writers = table();
    execute(&mut writers, id(1, 1), "one", 6);
    execute(&mut writers, id(3, 3), "three", 7);
    let refused = Verdict::Refused(Refusal::OpIdReused);
    // One that was executed, and one that never came: nobody can tell them apart any more.
    assert_eq!(writers.admit(&id(1, 1), hash("one"), 0), refused);
    assert_eq!(writers.admit(&id(2, 1), hash("two"), 0), refused);
    // What an older message says about lower numbers brings nothing back.
    execute(&mut writers, id(4, 1), "four", 8);
    assert_eq!(writers.admit(&id(2, 1), hash("two"), 0), refused);
    assert_eq!(writers.admit(&id(3, 1), hash("three"), 0), Verdict::Replay(result(7)));
}

#[test]
fn numbers_may_come_in_any_order() {
    let mut writers = table();
    for (revision, seq) in (6..).zip([4, 2, 3, 1]) {
        execute(&mut writers, id(seq, 1), "put", revision);
    }
    assert_eq!(writers.admit(&id(3, 1), hash("put"), 0), Verdict::Replay(result(8)));
}

#[test]
fn the_window_ends_one_before_its_width() {
    let mut writers = table();
    let outside = Verdict::Refused(Refusal::OutsideWindow);
    assert_eq!(writers.admit(&id(1 + WRITER_WINDOW, 1), hash("far"), 0), outside);
    execute(&mut writers, id(WRITER_WINDOW, 1), "last", 6);
    // A number that its own sender gives up, and the number that nobody has.
    assert_eq!(writers.admit(&id(7, 8), hash("odd"), 0), outside);
    assert_eq!(writers.admit(&id(0, 0), hash("odd"), 0), Verdict::Refused(Refusal::OpIdReused));
    // Whoever has its answers may go on from any number.
    execute(&mut writers, id(9_000, 9_000), "later", 7);
    assert_eq!(writers.admit(&id(9_000 + WRITER_WINDOW, 1), hash("far"), 0), outside);
    assert_eq!(writers.rows().count(), 1);
    assert_eq!(writers.writers[&WRITER].kept.len(), 1, "what is settled is dropped");
}

#[test]
fn a_writer_keeps_one_window_of_results_at_most() {
    let mut writers = table();
    for seq in 1..=5 * WRITER_WINDOW {
        let lowest = seq.saturating_sub(WRITER_WINDOW - 1).max(1);
        execute(&mut writers, id(seq, lowest), "put", seq);
        assert!(writers.writers[&WRITER].kept.len() as u64 <= WRITER_WINDOW);
    }
    let each = 26 + result(1).encoded_len() as u64;
    assert_eq!(writers.result_bytes, WRITER_WINDOW * each);
}

#[test]
fn an_unknown_writer_is_refused_and_never_executed() {
    let mut writers = Writers::default();
    let refused = Verdict::Refused(Refusal::WriterExpired);
    assert_eq!(writers.admit(&id(1, 1), hash("put"), 0), refused);
    assert!(writers.open(WRITER, 0));
    execute(&mut writers, id(1, 1), "put", 6);
    assert!(writers.close(WRITER));
    assert!(!writers.close(WRITER), "a repeated close finds nothing to do");
    assert_eq!(writers.admit(&id(1, 1), hash("put"), 0), refused);
    assert_eq!(writers.result_bytes, 0);
}

#[test]
fn ten_minutes_without_use_end_a_writer_and_nothing_less_does() {
    let mut writers = table();
    assert_eq!(writers.next_end_ms(), Some(600_000));
    assert!(writers.expire(599_999, 9).is_empty());
    // A use, also by a repetition or by what is refused.
    execute(&mut writers, id(1, 1), "put", 6);
    for (used, seq) in [(300_000, 1), (600_000, 0)] {
        let _ = writers.admit(&id(seq, 0), hash("put"), used);
        assert_eq!(writers.next_end_ms(), Some(used + 600_000));
    }
    // To ask about it is none.
    assert_eq!(writers.status(WRITER, 1), Standing::Applied(result(6)));
    assert!(writers.expire(1_199_999, 9).is_empty());
    assert_eq!(writers.expire(1_200_000, 9), [WRITER]);
    assert_eq!((writers.next_end_ms(), writers.result_bytes), (None, 0));
}

#[test]
fn writers_end_in_the_order_of_their_deadlines_and_so_many_at_once() {
    let mut writers = Writers::default();
    for (opened, number) in [(30, 1), (10, 2), (20, 3), (10, 4)] {
        assert!(writers.open(Revision(number), opened));
    }
    let now = 600_020;
    assert_eq!(writers.expire(now, 2), [Revision(2), Revision(4)]);
    assert_eq!(writers.expire(now, 2), [Revision(3)]);
    assert_eq!(writers.next_end_ms(), Some(600_030));
}

#[test]
fn a_full_table_refuses_new_writers_and_serves_the_old_ones() {
    let mut writers = table();
    for number in 0..SHARD_WRITERS as u64 - 1 {
        assert!(writers.open(Revision(10 + number), 0));
    }
    assert!(!writers.open(Revision(1 << 40), 0));
    execute(&mut writers, id(1, 1), "put", 9_000);
    assert!(!writers.open(Revision(1 << 40), 0), "nobody was ended to make room");
    assert!(writers.close(Revision(10)));
    assert!(writers.open(Revision(1 << 40), 0));
}

#[test]
fn full_is_also_a_table_with_too_many_bytes_of_results() {
    let mut writers = table();
    assert_eq!(writers.limits, Limits { writers: 8_192, result_bytes: 64 << 20 });
    writers.limits.result_bytes = 200;
    let mut seq = 0;
    while writers.open(Revision(100 + seq), 0) {
        seq += 1;
        execute(&mut writers, id(seq, 1), "put", 9_000 + seq);
    }
    assert!(writers.result_bytes >= 200 && writers.result_bytes < 300);
    execute(&mut writers, id(seq + 1, seq + 1), "put", 9_999);
    assert!(writers.open(Revision(1 << 40), 0), "what is settled makes room");
}

#[test]
fn not_applied_is_said_of_what_can_never_be_applied() {
    let mut writers = table();
    execute(&mut writers, id(2, 2), "two", 6);
    for _ in 0..2 {
        assert_eq!(writers.status(WRITER, 1), Standing::SettledNotKept);
        assert_eq!(writers.status(WRITER, 2), Standing::Applied(result(6)));
        assert_eq!(writers.status(WRITER, 3), Standing::NotApplied);
        assert_eq!(writers.status(WRITER, 1 << 40), Standing::NotApplied, "however far away");
        assert_eq!(writers.status(Revision(6), 1), Standing::Unknown);
    }
    // The original arrives after all, also as one that settles everything before it.
    let refused = Verdict::Refused(Refusal::OpIdReused);
    assert_eq!(writers.admit(&id(3, 2), hash("three"), 0), refused);
    assert_eq!(writers.admit(&id(1 << 40, 1 << 40), hash("far"), 0), refused);
    execute(&mut writers, id(4, 2), "four", 7);
    // Its result is not kept either once its client has settled it.
    execute(&mut writers, id(5, 4), "five", 8);
    assert_eq!(writers.status(WRITER, 3), Standing::SettledNotKept);
    writers.close(WRITER);
    assert_eq!(writers.status(WRITER, 4), Standing::Unknown);
}

#[test]
fn questions_have_a_limit_and_the_one_too_many_gets_no_answer() {
    let mut writers = table();
    for seq in 0..WRITER_WINDOW {
        assert_eq!(writers.status(WRITER, 10 * seq + 10), Standing::NotApplied);
    }
    assert_eq!(writers.status(WRITER, 7), Standing::NoRoom);
    execute(&mut writers, id(7, 7), "put", 6);
    execute(&mut writers, id(11, 11), "put", 7);
    assert_eq!(writers.status(WRITER, 12), Standing::NotApplied, "one mark was settled");
    assert_eq!(writers.result_bytes, 9 * WRITER_WINDOW + 26 + 33);
}

#[test]
fn rows_are_pinned_and_bring_the_table_back() {
    let mut writers = table();
    let request = hash("put");
    assert_eq!(writers.admit(&id(3, 2), request, 7), Verdict::Fresh);
    writers.record(&id(3, 2), request, Outcome::PreconditionFailed { current: None });
    assert_eq!(writers.status(WRITER, 4), Standing::NotApplied);
    let mut row = b"\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x02\0\0\0\x02".to_vec();
    row.extend_from_slice(b"\0\0\0\0\0\0\0\x03\x01");
    row.extend_from_slice(&request.0.to_be_bytes());
    row.extend_from_slice(b"\x0a\x01\0\0\0\0\0\0\0\0\0");
    row.extend_from_slice(b"\0\0\0\0\0\0\0\x04\0");
    assert_eq!(writers.rows().collect::<Vec<_>>(), [(WRITER, Bytes::from(row.clone()))]);
    assert_eq!(writers.result_bytes as usize, row.len() - ROW_HEAD);

    let mut again = restored(&writers);
    writers.take_changed();
    assert_eq!(again, writers, "everything but what is to be stored");
    assert!(again.restore(WRITER, Bytes::from(row.clone())).is_err(), "it is there");
    for length in 0..row.len() {
        let cut = Bytes::copy_from_slice(&row[..length]);
        assert!(Writers::default().restore(WRITER, cut).is_err(), "{length} bytes");
    }
    row.push(0);
    assert!(Writers::default().restore(WRITER, Bytes::from(row)).is_err());
}

#[test]
fn only_rows_that_changed_are_stored() {
    let mut writers = table();
    assert!(writers.open(Revision(6), 0));
    assert_eq!(writers.take_changed().len(), 2);
    assert!(writers.take_changed().is_empty());
    execute(&mut writers, id(1, 1), "put", 7);
    let changed = writers.take_changed();
    assert_eq!(changed, [(WRITER, writers.rows().next().map(|(_, row)| row))]);
    // A repetition at the same time changes nothing, a later one its time of use.
    assert_eq!(writers.admit(&id(1, 1), hash("put"), 0), Verdict::Replay(result(7)));
    assert!(writers.take_changed().is_empty());
    assert_eq!(writers.admit(&id(1, 1), hash("put"), 1), Verdict::Replay(result(7)));
    assert_eq!(writers.take_changed().len(), 1);
    writers.close(Revision(6));
    assert_eq!(writers.take_changed(), [(Revision(6), None)]);
}

#[test]
fn the_hash_is_the_public_one() {
    assert_eq!(RequestHash::of(b"").0, 0);
    let hello = 0x5b1e_906a_48ae_1d19_cbd8_a7b3_41bd_9b02;
    assert_eq!(RequestHash::of(b"hello").0, hello);
    assert_ne!(hash("put"), hash("puT"));
}

#[test]
fn without_the_rule_a_repetition_is_executed_again() {
    let mut writers = table();
    execute(&mut writers, id(1, 1), "put", 6);
    writers.weaken(Weaken::EveryMutationIsFresh);
    assert_eq!(writers.admit(&id(1, 1), hash("put"), 0), Verdict::Fresh);
}
