//! Named mutations take effect once (W3), whatever happens between the original and its repetition.

use super::counting::{batch, counted, incr};
use super::*;
use crate::operation::{Finding, Guard, Item, OpId};
use crate::weaken::Weaken;

pub(super) fn named(writer: Revision, seq: u64, lowest_unacked: u64, op: &Op) -> Op {
    let token = op.located(Prefix(0))[0].0;
    Op::Named { id: OpId { writer, seq, lowest_unacked }, token, body: op.encode() }
}

pub(super) fn open(fixture: &mut Fixture) -> Revision {
    match fixture.one(Op::OpenWriter { token: Token(0) }) {
        Outcome::Done { version: Revision(0), revision, .. } => revision,
        other => panic!("{other:?}"),
    }
}

fn close(fixture: &mut Fixture, writer: Revision) {
    let outcome = fixture.one(Op::CloseWriter { token: Token(0), writer });
    assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
}

pub(super) fn status(fixture: &mut Fixture, writer: Revision, seq: u64) -> Finding {
    match fixture.one(Op::OpStatus { token: Token(0), writer, seq }) {
        Outcome::Status { finding, .. } => finding,
        other => panic!("{other:?}"),
    }
}

/// Writers that the engine has rows for.
fn stored(fixture: &Fixture) -> Vec<Revision> {
    let mut writers = Vec::new();
    let engine = fixture.engine.as_ref();
    records::each_row(engine, GroupId(9), |record, _| {
        let place = records::place_of(&record).unwrap();
        if place.part == records::WRITER {
            writers.push(records::writer_of(place.rest).unwrap());
        }
        Ok(())
    })
    .unwrap();
    writers
}

#[test]
fn each_opening_takes_one_revision_and_is_named_by_it() {
    let mut fixture = Fixture::new();
    fixture.one(put("a", "1"));
    assert_eq!((open(&mut fixture), open(&mut fixture)), (Revision(2), Revision(3)));
    assert_eq!(stored(&fixture), [Revision(2), Revision(3)]);
    close(&mut fixture, Revision(2));
    close(&mut fixture, Revision(2));
    assert_eq!((stored(&fixture), fixture.revision()), (vec![Revision(3)], 3));
    assert_eq!(open(&mut fixture), Revision(4), "an id never comes back");
    let head = fixture.read("a").head;
    assert_eq!(head.revision, Revision(4), "stored with the writer");
}

#[test]
fn a_repetition_in_the_same_entry_and_in_later_ones_has_the_first_result() {
    let mut fixture = Fixture::new();
    let writer = open(&mut fixture);
    let original = named(writer, 1, 1, &put("a", "1"));
    let outcomes = fixture.apply(vec![
        (SHARD, original.clone()),
        (SHARD, original.clone()),
        (SHARD, put("a", "2")),
        (SHARD, original.clone()),
    ]);
    assert_eq!(version(&outcomes[0]), 2);
    assert_eq!((outcomes[1], outcomes[3]), (outcomes[0], outcomes[0]));
    assert_eq!(fixture.one(original), outcomes[0], "with the time and revision of the original");
    let seen = fixture.read("a");
    assert_eq!(seen.value.unwrap().value.as_ref(), b"2");
    assert_eq!(seen.head.revision, Revision(3), "a replay takes none");
}

#[test]
fn every_kind_of_mutation_takes_effect_once() {
    let mut fixture = Fixture::new();
    let writer = open(&mut fixture);
    let kinds = [
        put("{t}a", "1"),
        cas("{t}a", Expect::Version(Revision(2)), "2"),
        incr("{t}n", 7),
        batch(
            vec![Guard { key: Bytes::from_static(b"{t}a"), expect: Expect::Present }],
            vec![Item::Delete { key: Bytes::from_static(b"{t}n") }],
        ),
        delete("{t}a"),
    ];
    let first: Vec<Outcome> =
        (1..).zip(&kinds).map(|(seq, op)| fixture.one(named(writer, seq, 1, op))).collect();
    assert!(!first.iter().any(|one| matches!(one, Outcome::PreconditionFailed { .. })));
    let (revision, head) = (fixture.revision(), fixture.read("{t}a").head);
    assert_eq!(revision, 6);
    for ((seq, op), first) in (1..).zip(&kinds).zip(first) {
        assert_eq!(fixture.one(named(writer, seq, 1, op)), first, "{op:?}");
    }
    assert_eq!((fixture.revision(), fixture.read("{t}a").head), (revision, head));
}

#[test]
fn a_repetition_does_not_succeed_where_the_original_had_failed() {
    let mut fixture = Fixture::new();
    let writer = open(&mut fixture);
    let original = named(writer, 1, 1, &cas("a", Expect::Version(Revision(2)), "x"));
    let failed = Outcome::PreconditionFailed { current: None };
    assert_eq!(fixture.one(original.clone()), failed);
    assert_eq!(version(&fixture.one(put("a", "1"))), 2, "now its condition would hold");
    assert_eq!(fixture.one(original), failed);
    assert_eq!(status(&mut fixture, writer, 1), Finding::Failed);
}

#[test]
fn the_table_survives_a_restart_and_travels_with_a_snapshot() {
    let mut source = Fixture::new();
    let writer = open(&mut source);
    let original = named(writer, 1, 1, &incr("n", 5));
    let first = source.one(original.clone());
    assert_eq!(status(&mut source, writer, 2), Finding::NotApplied);

    let mut target = Fixture::new();
    let former = open(&mut target);
    open(&mut target);
    target.one(named(former, 1, 1, &incr("n", 100)));
    target.index = 50;
    install(&target, files_of(&source));
    assert_eq!(stored(&target), [writer], "the former writers are gone");
    assert_eq!(files_of(&target), files_of(&source));

    let restarted = source.restarted();
    for mut node in [restarted, target.restarted(), target] {
        assert_eq!(node.one(original.clone()), first);
        let refused = named(writer, 2, 1, &incr("n", 5));
        assert_eq!(node.one(refused), Outcome::OpIdReused, "the mark is there as well");
        assert_eq!(node.read("n").value.unwrap().value.as_ref(), b"5");
        assert_eq!(node.revision(), 2);
    }
}

#[test]
fn a_snapshot_with_a_row_that_is_no_writer_is_refused() {
    let mut source = Fixture::new();
    open(&mut source);
    let (_, rows) = files_of(&source).remove(0);
    let (name, value) = rows[1].clone();
    assert_eq!(name.as_ref(), b"\x02\x01\0\0\0\0\0\0\0\x01");
    let target = Fixture::new();
    let mut import = Arc::clone(&target.machine).import();
    for bad in [(name.slice(..9), value.clone()), (name.clone(), value.slice(1..))] {
        assert!(import.rows(3, vec![bad], &mut Batch::default()).is_err());
    }
    let twice = vec![(name.clone(), value.clone()), (name, value)];
    assert!(import.rows(3, twice, &mut Batch::default()).is_err());
}

#[test]
fn one_name_for_two_mutations_is_refused_and_so_is_what_is_settled() {
    let mut fixture = Fixture::new();
    let writer = open(&mut fixture);
    fixture.one(named(writer, 1, 1, &put("a", "1")));
    let other = fixture.one(named(writer, 1, 1, &put("a", "2")));
    assert_eq!(other, Outcome::OpIdReused);
    let elsewhere = fixture.one(named(writer, 1, 1, &put("b", "1")));
    assert_eq!(elsewhere, Outcome::OpIdReused);
    fixture.one(named(writer, 3, 3, &put("c", "1")));
    let settled = fixture.one(named(writer, 2, 1, &put("d", "1")));
    assert_eq!(settled, Outcome::OpIdReused);
    let far = fixture.one(named(writer, 3 + 1_024, 1, &put("d", "1")));
    assert_eq!(far, Outcome::OutsideWindow);
    assert_eq!((fixture.read("a").head.keys, fixture.revision()), (2, 3));
}

#[test]
fn what_an_ended_writer_has_sent_is_never_applied() {
    let mut fixture = Fixture::new();
    let never = fixture.one(named(Revision(1), 1, 1, &put("a", "1")));
    assert_eq!(never, Outcome::WriterExpired);
    let writer = open(&mut fixture);
    close(&mut fixture, writer);
    let late = fixture.one(named(writer, 1, 1, &put("a", "1")));
    assert_eq!(late, Outcome::WriterExpired);
    assert_eq!(status(&mut fixture, writer, 1), Finding::Ended);
    assert_eq!(fixture.read("a").value, None);
}

#[test]
fn a_status_is_final() {
    let mut fixture = Fixture::new();
    let writer = open(&mut fixture);
    let late = named(writer, 1, 1, &put("a", "1"));
    // The question overtakes the original, in one entry.
    let asked = Op::OpStatus { token: Token(0), writer, seq: 1 };
    let outcomes = fixture.apply(vec![(SHARD, asked), (SHARD, late.clone())]);
    assert!(matches!(outcomes[0], Outcome::Status { finding: Finding::NotApplied, .. }));
    assert_eq!(outcomes[1], Outcome::OpIdReused);
    assert_eq!(fixture.restarted().one(late), Outcome::OpIdReused);

    fixture.one(named(writer, 2, 1, &incr("n", 3)));
    let revision = Revision(2);
    let applied = Finding::Applied { version: revision, revision, number: Some(3) };
    assert_eq!(status(&mut fixture, writer, 2), applied);
    fixture.one(named(writer, 3, 3, &delete("n")));
    assert_eq!(status(&mut fixture, writer, 2), Finding::NotKept);
    let (version, revision) = (Revision(0), Revision(3));
    let removed = Finding::Applied { version, revision, number: None };
    assert_eq!(status(&mut fixture, writer, 3), removed);
    assert_eq!(fixture.revision(), 3, "asking takes no revision");
    // A writer that may yet be opened is not spoken of.
    let early = Op::OpStatus { token: Token(0), writer: Revision(4), seq: 1 };
    assert_eq!(fixture.one(early), Outcome::OutsideWindow);
}

#[test]
fn writers_end_by_group_time_before_the_entry_that_reaches_their_deadline() {
    let mut fixture = Fixture::new();
    let (idle, busy) = (open(&mut fixture), open(&mut fixture));
    fixture.later_ms += 599_000;
    fixture.one(named(busy, 1, 1, &put("a", "1")));
    fixture.later_ms += 1_000;
    let outcomes = fixture.apply(vec![
        (SHARD, named(idle, 1, 1, &put("b", "1"))),
        (SHARD, named(busy, 1, 1, &put("a", "1"))),
    ]);
    assert_eq!(outcomes[0], Outcome::WriterExpired);
    assert_eq!(version(&outcomes[1]), 3);
    assert_eq!((stored(&fixture), fixture.revision()), (vec![busy], 3), "an end takes none");
    assert_eq!(stored(&fixture.restarted()), [busy]);
    // An entry about something else will do.
    fixture.later_ms += 600_000;
    fixture.one(put("c", "1"));
    assert!(stored(&fixture).is_empty());
}

#[test]
fn an_entry_ends_a_thousand_writers_at_most() {
    let mut fixture = Fixture::open(Arc::new(MemoryEngine::default()));
    let create = |first| Op::Create { first, count: 512, epoch: Epoch(1) };
    fixture.apply(vec![(SHARD, create(0)), (ShardId(4), create(512))]);
    let opening = |shard, token| (shard, Op::OpenWriter { token: Token(token) });
    fixture.apply((0..600).map(|_| opening(ShardId(4), u32::MAX)).collect());
    fixture.apply((0..600).map(|_| opening(SHARD, 0)).collect());
    assert_eq!(stored(&fixture).len(), 1_200);
    fixture.later_ms += 600_000;
    // The last writer in the order is due as well. Until its turn comes it is used as before.
    let outcome = fixture.one(named(Revision(600), 1, 1, &incr("a", 1)));
    assert_eq!(counted(outcome), 1);
    let left = stored(&fixture);
    assert_eq!(left.len(), 200, "the shard that waited longest came first");
    assert_eq!((left[0], left[199]), (Revision(401), Revision(600)));
    fixture.one(put("a", "1"));
    assert_eq!(stored(&fixture), [Revision(600)]);
}

#[test]
fn a_full_table_refuses_a_new_writer_and_keeps_old_ones_working() {
    let mut fixture = Fixture::new();
    let writer = open(&mut fixture);
    let openings = (1..8_192).map(|_| (SHARD, Op::OpenWriter { token: Token(0) }));
    fixture.apply(openings.collect());
    assert_eq!(fixture.revision(), 8_192);
    assert_eq!(fixture.one(Op::OpenWriter { token: Token(0) }), Outcome::WritersFull);
    assert_eq!(fixture.revision(), 8_192, "a refusal takes no revision");
    assert_eq!(counted(fixture.one(named(writer, 1, 1, &incr("n", 1)))), 1);
    close(&mut fixture, Revision(8_192));
    assert_eq!(open(&mut fixture), Revision(8_194));
}

#[test]
fn a_shard_answers_for_its_own_tokens_only() {
    let mut fixture = Fixture::open(Arc::new(MemoryEngine::default()));
    fixture.one(Op::Create { first: 0, count: 512, epoch: Epoch(1) });
    let (mine, other) = (Token(0), Token(u32::MAX));
    assert_eq!(fixture.one(Op::OpenWriter { token: other }), Outcome::NotHere);
    let writer = open(&mut fixture);
    for op in [
        Op::CloseWriter { token: other, writer },
        Op::OpStatus { token: other, writer, seq: 1 },
        named(writer, 1, 1, &put("n", "1")),
        // The name belongs to another key than the mutation.
        Op::Named {
            id: OpId { writer, seq: 1, lowest_unacked: 1 },
            token: mine,
            body: put("a", "1").encode(),
        },
        // What is no mutation has no name.
        Op::Named {
            id: OpId { writer, seq: 1, lowest_unacked: 1 },
            token: mine,
            body: Op::OpenWriter { token: mine }.encode(),
        },
    ] {
        assert_eq!(fixture.one(op.clone()), Outcome::NotHere, "{op:?}");
    }
    // None of them has used the number.
    assert_eq!(version(&fixture.one(named(writer, 1, 1, &put("a", "1")))), 2);
}

/// The twin without the rule: what the tests above show is due to the table.
#[test]
fn without_the_rule_a_repetition_takes_effect_again() {
    let counted_twice = |weakened: bool| {
        let mut fixture = Fixture::new();
        let writer = open(&mut fixture);
        if weakened {
            let mut applied = fixture.machine.applied.lock();
            let held = applied.held.get_mut(&SHARD).unwrap();
            held.writers.weaken(Weaken::EveryMutationIsFresh);
        }
        let original = named(writer, 1, 1, &incr("n", 1));
        fixture.one(original.clone());
        fixture.one(original);
        fixture.read("n").value.unwrap().value
    };
    assert_eq!(counted_twice(false), "1");
    assert_eq!(counted_twice(true), "2");
}
