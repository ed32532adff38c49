//! Histories of a writer, session 1, and a reader, session 2, each with a planted violation or without.

use super::*;

/// Two keys of one shard, and one of another.
const X: &str = "{a}:x";
const Y: &str = "{a}:y";
const FAR: &str = "{b}:z";
const BOUNDED: Mode = Mode::Bounded { limit_ms: 1 };

type One = Entry<Call, Answer>;

/// Operation number `at` of a history: it takes from 10 ms times that for 5 ms.
fn entry(process: u64, call: Call, end: End<Answer>, at: u64) -> One {
    let invoked_us = at * 10_000;
    Entry { process, call, invoked_us, completed_us: Some(invoked_us + 5_000), end }
}

fn write(process: u64, key: &str, sequence: u64, end: End<Answer>) -> impl Fn(u64) -> One {
    let call = Call::Write { key: key.to_owned(), sequence };
    move |at| entry(process, call.clone(), end.clone(), at)
}

fn wrote(process: u64, key: &str, sequence: u64) -> impl Fn(u64) -> One {
    write(process, key, sequence, End::Ok(Answer::Written))
}

fn read(process: u64, key: &str, mode: Mode, saw: u64) -> impl Fn(u64) -> One {
    let call = Call::Read { key: key.to_owned(), mode };
    move |at| entry(process, call.clone(), End::Ok(Answer::Saw(saw)), at)
}

/// Judges these operations, one after the other, behind one absent read of each mode.
fn judge(operations: &[&dyn Fn(u64) -> One]) -> Vec<String> {
    let mut entries: Vec<One> = [Mode::Any, BOUNDED, Mode::Session]
        .into_iter()
        .zip(0..)
        .map(|(mode, at)| read(9, "{c}:k", mode, 0)(at))
        .collect();
    entries.extend(operations.iter().zip(3..).map(|(operation, at)| operation(at)));
    match check(&entries) {
        Ok(_) => Vec::new(),
        Err(Violations(violations)) => violations,
    }
}

#[track_caller]
fn assert_good(operations: &[&dyn Fn(u64) -> One]) {
    assert_eq!(judge(operations), [""; 0]);
}

#[track_caller]
fn assert_bad(operations: &[&dyn Fn(u64) -> One], what: &str) {
    let found = judge(operations);
    assert!(found.len() == 1 && found[0].contains(what), "{what}: {found:#?}");
}

#[test]
fn any_may_be_old_and_go_back_but_is_never_made_up() {
    let (one, two) = (wrote(1, X, 1), wrote(1, X, 2));
    let saw = |value| read(2, X, Mode::Any, value);
    assert_good(&[&one, &two, &saw(2), &saw(1), &saw(0)]);
    assert_bad(&[&one, &saw(2)], "nobody had written that");
    assert_bad(&[&one, &saw(2), &two], "nobody had written that");
    let failed = write(1, X, 2, End::Failed);
    assert_bad(&[&one, &failed, &saw(2)], "not applied");
    let unknown = write(1, X, 2, End::Unknown);
    assert_good(&[&one, &unknown, &saw(2), &saw(1)]);
}

#[test]
fn bounded_misses_nothing_that_is_older_than_the_bound() {
    let (one, two) = (wrote(1, X, 1), wrote(1, X, 2));
    let saw = |value| read(2, X, BOUNDED, value);
    assert_good(&[&one, &two, &saw(2)]);
    assert_bad(&[&one, &two, &saw(1)], "2 was acknowledged longer ago");
    assert_bad(&[&one, &saw(0)], "1 was acknowledged longer ago");
    // The write was acknowledged 5 ms before the read began.
    let wide = read(2, X, Mode::Bounded { limit_ms: 6 }, 1);
    assert_good(&[&one, &two, &wide]);
}

#[test]
fn a_session_reads_its_own_writes() {
    let (one, two) = (wrote(1, X, 1), wrote(1, X, 2));
    let own = |value| read(1, X, Mode::Session, value);
    assert_good(&[&one, &two, &own(2)]);
    assert_bad(&[&one, &two, &own(1)], "the session knew of 2");
    let other = read(2, X, Mode::Session, 1);
    assert_good(&[&one, &two, &other]);
    // What it does not know to be applied it need not see.
    let unknown = write(1, X, 2, End::Unknown);
    assert_good(&[&one, &unknown, &own(1)]);
}

#[test]
fn a_session_never_goes_back() {
    let (one, two) = (wrote(1, X, 1), wrote(1, X, 2));
    let saw = |mode, value| read(2, X, mode, value);
    let (newer, older) = (saw(Mode::Session, 2), saw(Mode::Session, 1));
    assert_good(&[&one, &two, &older, &newer]);
    assert_bad(&[&one, &two, &newer, &older], "the session knew of 2");
    // Whatever was seen counts, in whatever way it was read.
    assert_bad(&[&one, &two, &saw(Mode::Any, 2), &older], "the session knew of 2");
}

#[test]
fn writes_are_seen_in_the_order_of_their_session() {
    let (first, second) = (wrote(1, X, 1), wrote(1, Y, 1));
    let saw_second = read(2, Y, Mode::Session, 1);
    let then = |value| read(2, X, Mode::Session, value);
    assert_good(&[&first, &second, &saw_second, &then(1)]);
    assert_bad(&[&first, &second, &saw_second, &then(0)], "the session knew of 1");
    // Across shards nothing is promised.
    let far = wrote(1, FAR, 1);
    let saw_far = read(2, FAR, Mode::Session, 1);
    assert_good(&[&first, &far, &saw_far, &then(0)]);
}

#[test]
fn writes_follow_the_reads_of_their_session() {
    let cause = wrote(3, X, 1);
    let saw_cause = read(1, X, Mode::Session, 1);
    let effect = wrote(1, Y, 1);
    let saw_effect = read(2, Y, Mode::Session, 1);
    let then = |value| read(2, X, Mode::Session, value);
    assert_good(&[&cause, &saw_cause, &effect, &saw_effect, &then(1)]);
    assert_bad(&[&cause, &saw_cause, &effect, &saw_effect, &then(0)], "the session knew of 1");
    // Without the read in between there is no cause.
    assert_good(&[&cause, &effect, &saw_effect, &then(0)]);
}

#[test]
fn a_history_that_shows_nothing_does_not_pass() {
    let Err(Violations(violations)) = check(&[]) else { panic!("it passed") };
    assert_eq!(violations.len(), 3, "{violations:?}");
    let twice = [wrote(1, X, 1), wrote(1, X, 1)];
    assert_bad(&[&twice[0], &twice[1]], "wrote 1 twice");
}

#[test]
fn a_session_whose_history_is_lost_is_a_violation() {
    let call = Call::Read { key: X.to_owned(), mode: Mode::Session };
    let lost = move |at| entry(2, call.clone(), End::Ok(Answer::HistoryLost), at);
    assert_bad(&[&wrote(1, X, 1), &lost], "its history is lost");
}
