//! Histories with known verdicts, and random ones judged by brute force.

use std::fmt::Write;

use super::*;

const DONE: Outcome = Outcome::Ok(Value::Done);
const SWAPPED: Outcome = Outcome::Ok(Value::Swapped(true));
const REFUSED: Outcome = Outcome::Ok(Value::Swapped(false));

fn saw(value: u64) -> Outcome {
    Outcome::Ok(Value::Read(Some(value)))
}

const ABSENT: Outcome = Outcome::Ok(Value::Read(None));

fn on(key: &str, call: Call, outcome: Outcome, invoked_us: u64, completed_us: u64) -> Operation {
    Operation {
        process: invoked_us,
        key: key.to_owned(),
        call,
        invoked_us,
        completed_us: (outcome != Outcome::Unknown).then_some(completed_us),
        outcome,
    }
}

fn write(value: u64, outcome: Outcome, invoked_us: u64, completed_us: u64) -> Operation {
    on("k", Call::Write(value), outcome, invoked_us, completed_us)
}

fn read(outcome: Outcome, invoked_us: u64, completed_us: u64) -> Operation {
    on("k", Call::Read, outcome, invoked_us, completed_us)
}

fn cas(from: u64, to: u64, outcome: Outcome, invoked_us: u64, completed_us: u64) -> Operation {
    on("k", Call::Cas { from, to }, outcome, invoked_us, completed_us)
}

fn delete(outcome: Outcome, invoked_us: u64, completed_us: u64) -> Operation {
    on("k", Call::Delete, outcome, invoked_us, completed_us)
}

fn judge(operations: Vec<Operation>) -> Verdict {
    check(&History::new(operations), STEP_LIMIT)
}

#[track_caller]
fn assert_good(operations: Vec<Operation>) {
    if let Err(error) = judge(operations).into_result() {
        panic!("{error}");
    }
}

/// The counterexample has exactly the operations at `expected`.
#[track_caller]
fn assert_bad(operations: Vec<Operation>, expected: &[usize]) -> Counterexample {
    let mut wanted: Vec<Operation> = expected.iter().map(|&at| operations[at].clone()).collect();
    wanted.sort_by_key(|operation| operation.invoked_us);
    match judge(operations) {
        Verdict::Violation(counterexample) => {
            assert_eq!(counterexample.operations, wanted, "{counterexample}");
            *counterexample
        }
        other => panic!("expected a violation, not {other:?}"),
    }
}

#[test]
fn one_after_the_other() {
    assert_good(vec![]);
    assert_good(vec![
        read(ABSENT, 0, 1),
        write(1, DONE, 2, 3),
        read(saw(1), 4, 5),
        write(2, DONE, 6, 7),
        read(saw(2), 8, 9),
        read(saw(2), 10, 11),
    ]);
}

#[test]
fn concurrent_operations_take_any_order_but_one_for_all() {
    let overlapping = || vec![write(1, DONE, 0, 10), write(2, DONE, 0, 10)];
    let with = |reads: [Operation; 2]| {
        let mut all = overlapping();
        all.extend(reads);
        all
    };
    assert_good(with([read(saw(1), 2, 4), read(saw(2), 5, 9)]));
    assert_good(with([read(saw(2), 2, 4), read(saw(1), 5, 9)]));
    assert_good(with([read(saw(2), 11, 12), read(saw(2), 13, 14)]));
    assert_bad(with([read(saw(2), 11, 12), read(saw(1), 13, 14)]), &[0, 2, 3]);
    // Seen before the write answered, then unseen.
    assert_bad(vec![write(1, DONE, 0, 10), read(saw(1), 2, 3), read(ABSENT, 4, 5)], &[1, 2]);
}

#[test]
fn a_stale_read() {
    let history = vec![
        write(1, DONE, 0, 1),
        read(saw(1), 2, 3),
        write(2, DONE, 4, 5),
        read(saw(1), 6, 7),
        read(saw(2), 8, 9),
    ];
    match judge(history.clone()) {
        Verdict::Violation(counterexample) => {
            assert_eq!(counterexample.operations.len(), 3, "{counterexample}");
            assert!(counterexample.operations.contains(&history[3]), "{counterexample}");
        }
        other => panic!("expected a violation, not {other:?}"),
    }
}

#[test]
fn a_lost_write() {
    assert_bad(vec![write(1, DONE, 0, 1), read(ABSENT, 2, 3)], &[0, 1]);
    assert_bad(vec![write(1, DONE, 0, 1), write(2, DONE, 2, 3), read(saw(1), 4, 5)], &[0, 1, 2]);
}

#[test]
fn a_value_from_nowhere() {
    assert_bad(vec![write(1, DONE, 0, 1), read(saw(9), 2, 3), read(saw(1), 4, 5)], &[1]);
    let future = assert_bad(vec![read(saw(5), 0, 1), write(5, DONE, 2, 3)], &[0]);
    assert_eq!(future.related, [write(5, DONE, 2, 3)], "the writer is shown");
}

#[test]
fn a_failed_write_has_no_effect() {
    let failed = write(2, Outcome::Failed, 2, 3);
    assert_good(vec![write(1, DONE, 0, 1), failed.clone(), read(saw(1), 4, 5)]);
    let shown = assert_bad(vec![write(1, DONE, 0, 1), failed.clone(), read(saw(2), 4, 5)], &[2]);
    assert_eq!(shown.related, [failed]);
    assert_good(vec![write(1, DONE, 0, 1), delete(Outcome::Failed, 2, 3), read(saw(1), 4, 5)]);
    assert_bad(
        vec![write(1, DONE, 0, 1), cas(1, 2, Outcome::Failed, 2, 3), read(saw(2), 4, 5)],
        &[2],
    );
}

#[test]
fn an_unknown_write_appears_late_or_never() {
    let unknown = || vec![write(1, DONE, 0, 1), write(2, Outcome::Unknown, 2, 3)];
    let with = |reads: &[Operation]| {
        let mut all = unknown();
        all.extend_from_slice(reads);
        all
    };
    assert_good(with(&[read(saw(1), 10, 11), read(saw(1), 100, 101)]));
    assert_good(with(&[read(saw(1), 10, 11), read(saw(2), 20, 21)]));
    assert_good(with(&[read(saw(2), 10, 11), read(saw(2), 20, 21)]));
    let flip = with(&[read(saw(1), 10, 11), read(saw(2), 20, 21), read(saw(1), 30, 31)]);
    assert_bad(flip, &[2, 3, 4]);
    // Not before it was sent.
    assert_bad(vec![read(saw(2), 0, 1), write(2, Outcome::Unknown, 2, 3)], &[0]);
    // It may also come in late and hide a write that was acknowledged.
    assert_good(with(&[write(3, DONE, 10, 11), read(saw(3), 12, 13), read(saw(2), 14, 15)]));
}

#[test]
fn unknown_deletes_and_swaps_may_take_effect() {
    for ending in [saw(1), ABSENT] {
        assert_good(vec![write(1, DONE, 0, 1), delete(Outcome::Unknown, 2, 3), read(ending, 4, 5)]);
    }
    for ending in [saw(1), saw(2)] {
        assert_good(vec![
            write(1, DONE, 0, 1),
            cas(1, 2, Outcome::Unknown, 2, 3),
            read(ending, 4, 5),
        ]);
    }
    let chain = |last| {
        vec![
            write(1, DONE, 0, 1),
            cas(1, 2, Outcome::Unknown, 2, 3),
            cas(2, 3, Outcome::Unknown, 2, 3),
            read(saw(last), 4, 5),
        ]
    };
    assert_good(chain(3));
    assert_bad(chain(4), &[3]);
}

#[test]
fn reads_without_answer_say_nothing() {
    assert_good(vec![
        write(1, DONE, 0, 1),
        read(Outcome::Failed, 2, 3),
        read(Outcome::Unknown, 2, 3),
        read(saw(1), 4, 5),
    ]);
}

#[test]
fn compare_and_swap() {
    assert_good(vec![
        write(1, DONE, 0, 1),
        cas(1, 2, SWAPPED, 2, 3),
        cas(1, 3, REFUSED, 4, 5),
        read(saw(2), 6, 7),
    ]);
    assert_bad(vec![write(1, DONE, 0, 1), cas(2, 3, SWAPPED, 2, 3)], &[1]);
    assert_bad(vec![write(1, DONE, 0, 1), cas(1, 3, REFUSED, 2, 3)], &[0, 1]);
    assert_good(vec![cas(1, 3, REFUSED, 2, 3), read(ABSENT, 4, 5)]);
    // Two cannot win from one value: the lost update.
    assert_bad(
        vec![write(1, DONE, 0, 1), cas(1, 2, SWAPPED, 2, 9), cas(1, 3, SWAPPED, 2, 9)],
        &[1, 2],
    );
}

#[test]
fn a_refused_swap_may_be_explained_by_an_unknown_write() {
    let refused = cas(1, 2, REFUSED, 10, 11);
    let first = write(1, DONE, 0, 1);
    assert_good(vec![first.clone(), write(9, Outcome::Unknown, 2, 3), refused.clone()]);
    let restored = read(saw(1), 12, 13);
    assert_bad(vec![first, write(9, Outcome::Unknown, 2, 3), refused, restored], &[0, 2, 3]);
}

#[test]
fn deletes() {
    assert_good(vec![write(1, DONE, 0, 1), delete(DONE, 2, 3), read(ABSENT, 4, 5)]);
    assert_bad(vec![write(1, DONE, 0, 1), delete(DONE, 2, 3), read(saw(1), 4, 5)], &[0, 1, 2]);
}

#[test]
fn operations_that_touch_in_time_are_concurrent() {
    assert_good(vec![write(1, DONE, 0, 5), read(ABSENT, 5, 6)]);
    assert_bad(vec![write(1, DONE, 0, 5), read(ABSENT, 6, 7)], &[0, 1]);
}

#[test]
fn keys_are_judged_alone() {
    let elsewhere = |call, outcome, at| on("other", call, outcome, at, at + 1);
    assert_good(vec![
        write(1, DONE, 0, 1),
        elsewhere(Call::Read, ABSENT, 2),
        elsewhere(Call::Write(2), DONE, 4),
        read(saw(1), 6, 7),
    ]);
    let counterexample =
        assert_bad(vec![write(1, DONE, 0, 1), elsewhere(Call::Read, saw(1), 2)], &[1]);
    assert_eq!((counterexample.key.as_str(), counterexample.total), ("other", 1));
}

#[test]
fn an_answer_that_does_not_belong_to_its_call_is_never_right() {
    assert_bad(vec![write(1, DONE, 0, 1), read(DONE, 2, 3)], &[1]);
}

#[test]
fn the_step_limit_gives_no_verdict() {
    let good = vec![write(1, DONE, 0, 1), write(2, DONE, 2, 3), read(saw(2), 4, 5)];
    let bad = vec![write(1, DONE, 0, 1), write(2, DONE, 2, 3), read(saw(1), 4, 5)];
    for history in [good, bad] {
        let verdict = check(&History::new(history), 0);
        assert!(
            matches!(&verdict, Verdict::Indeterminate { keys } if *keys == ["k"]),
            "{verdict:?}"
        );
        assert!(verdict.into_result().is_err());
    }
}

#[test]
fn a_counterexample_reads_well() {
    let counterexample = assert_bad(
        vec![
            write(1, DONE, 0, 1),
            write(7, Outcome::Failed, 2, 3),
            read(saw(7), 4, 5),
            read(saw(1), 6, 7),
        ],
        &[2],
    );
    let mut expected = String::new();
    writeln!(expected, "key \"k\": no order explains these 1 of 4 operations").unwrap();
    writeln!(expected, "  {:>12} - {:>12} us  process 4    read: 7", 4, 5).unwrap();
    writeln!(expected, "the values seen there also occur in").unwrap();
    write!(expected, "  {:>12} - {:>12} us  process 2    write 7: failed, not applied", 2, 3)
        .unwrap();
    assert_eq!(counterexample.to_string(), expected);
}

/// Tries every order, straight from the definition.
fn has_order(operations: &[Operation]) -> bool {
    fn place(operations: &[Operation], placed: u32, state: Option<u64>) -> bool {
        let is_open = |at: usize| placed & (1 << at) == 0;
        let must = |one: &Operation| matches!(one.outcome, Outcome::Ok(_));
        if (0..operations.len()).all(|at| !is_open(at) || !must(&operations[at])) {
            return true;
        }
        (0..operations.len()).filter(|&at| is_open(at)).any(|at| {
            let one = &operations[at];
            let is_late = (0..operations.len()).any(|other| {
                let other_one = &operations[other];
                is_open(other)
                    && must(other_one)
                    && other_one.completed_us.is_some_and(|end| end < one.invoked_us)
            });
            if is_late {
                return false;
            }
            let after = match (one.call, one.outcome) {
                (_, Outcome::Failed) | (Call::Read, Outcome::Unknown) => return false,
                (Call::Write(value), _) => Some(value),
                (Call::Delete, _) => None,
                (Call::Read, outcome) => {
                    if outcome != Outcome::Ok(Value::Read(state)) {
                        return false;
                    }
                    state
                }
                (Call::Cas { from, to }, outcome) => {
                    let matches = state == Some(from);
                    if outcome != Outcome::Unknown
                        && outcome != Outcome::Ok(Value::Swapped(matches))
                    {
                        return false;
                    }
                    if matches { Some(to) } else { state }
                }
            };
            place(operations, placed | (1 << at), after)
        })
    }
    place(operations, 0, None)
}

fn random_operation(rng: &mut fastrand::Rng, values: u64) -> Operation {
    let invoked_us = rng.u64(..12);
    let completed_us = invoked_us + rng.u64(..6);
    let (call, answer) = match rng.u8(..8) {
        0..=2 => (Call::Write(rng.u64(..values)), DONE),
        3..=5 => {
            let value = rng.u64(..=values);
            (Call::Read, Outcome::Ok(Value::Read((value < values).then_some(value))))
        }
        6 => {
            let call = Call::Cas { from: rng.u64(..values), to: rng.u64(..values) };
            (call, Outcome::Ok(Value::Swapped(rng.bool())))
        }
        _ => (Call::Delete, DONE),
    };
    let outcome = match rng.u8(..16) {
        0..=2 => Outcome::Unknown,
        3 => Outcome::Failed,
        _ => answer,
    };
    on("k", call, outcome, invoked_us, completed_us)
}

#[test]
fn random_small_histories_get_the_verdict_of_brute_force() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..6_000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let values = rng.u64(2..6);
        let count = rng.usize(1..8);
        let history: Vec<Operation> =
            (0..count).map(|_| random_operation(&mut rng, values)).collect();
        match judge(history.clone()) {
            Verdict::Linearizable => {
                assert!(has_order(&history), "seed {seed}: no order for {history:#?}");
                good += 1;
            }
            Verdict::Violation(counterexample) => {
                assert!(!has_order(&history), "seed {seed}: an order for {history:#?}");
                assert!(!has_order(&counterexample.operations), "seed {seed}: {counterexample}");
                bad += 1;
            }
            Verdict::Indeterminate { .. } => panic!("seed {seed}: undecided"),
        }
    }
    assert!(good > 1_000 && bad > 1_000, "both verdicts must be tried: {good} good, {bad} bad");
}

/// What a client of the simulated store is doing.
#[derive(Clone, Copy)]
enum Client {
    Idle,
    /// Its operation was sent and has no effect yet.
    Sent(usize),
    /// Its operation took effect; the answer is on its way.
    Answered(usize, Outcome),
}

/// A history of a store that is linearizable by construction: each operation takes effect at one
/// event between call and answer; `lost_per_mille` of the answers are lost, and half of these
/// operations take effect at some later event or never.
fn simulate(
    rng: &mut fastrand::Rng,
    keys: u64,
    count: usize,
    lost_per_mille: u32,
) -> Vec<Operation> {
    let mut state: BTreeMap<String, u64> = BTreeMap::new();
    let mut operations: Vec<Operation> = Vec::new();
    let mut clients = [Client::Idle; 10];
    let mut wandering: Vec<usize> = Vec::new();
    let mut now_us = 0;
    let mut apply = |operation: &Operation| {
        let current = state.get(&operation.key).copied();
        match operation.call {
            Call::Write(value) => {
                state.insert(operation.key.clone(), value);
                DONE
            }
            Call::Delete => {
                state.remove(&operation.key);
                DONE
            }
            Call::Read => Outcome::Ok(Value::Read(current)),
            Call::Cas { from, to } => {
                let matches = current == Some(from);
                if matches {
                    state.insert(operation.key.clone(), to);
                }
                Outcome::Ok(Value::Swapped(matches))
            }
        }
    };
    while operations.len() < count || clients.iter().any(|one| !matches!(one, Client::Idle)) {
        now_us += 1;
        if !wandering.is_empty() && rng.u8(..20) == 0 {
            let late = wandering.swap_remove(rng.usize(..wandering.len()));
            apply(&operations[late]);
        }
        let client = &mut clients[rng.usize(..10)];
        *client = match *client {
            Client::Idle if operations.len() == count => Client::Idle,
            Client::Idle => {
                let fresh = operations.len() as u64;
                let call = match rng.u8(..20) {
                    0..=8 => Call::Write(fresh),
                    9..=16 => Call::Read,
                    17 | 18 => Call::Cas { from: fresh - rng.u64(..=fresh.min(40)), to: fresh },
                    _ => Call::Delete,
                };
                let key = format!("key {}", rng.u64(..keys));
                operations.push(on(&key, call, Outcome::Unknown, now_us, 0));
                Client::Sent(operations.len() - 1)
            }
            Client::Sent(at) if rng.u32(..1_000) < lost_per_mille => {
                if rng.bool() {
                    wandering.push(at);
                }
                Client::Idle
            }
            Client::Sent(at) => Client::Answered(at, apply(&operations[at])),
            Client::Answered(at, outcome) => {
                operations[at].outcome = outcome;
                operations[at].completed_us = Some(now_us);
                Client::Idle
            }
        };
    }
    operations
}

/// Turns one read in the middle into a read of the value that an acknowledged write left there
/// long before.
fn make_stale(operations: &mut [Operation]) {
    let middle = operations.len() / 2;
    let is_read = |one: &Operation| matches!(one.outcome, Outcome::Ok(Value::Read(Some(_))));
    let stale = (middle..operations.len()).find(|&at| is_read(&operations[at])).unwrap();
    let Operation { key, invoked_us, .. } = operations[stale].clone();
    let overwritten = operations[..stale]
        .iter()
        .rev()
        .filter(|one| one.key == key && matches!(one.call, Call::Write(_)))
        .filter(|one| one.completed_us.is_some_and(|end| end < invoked_us))
        .nth(30)
        .unwrap();
    let Call::Write(value) = overwritten.call else { unreachable!("filtered above") };
    operations[stale].outcome = saw(value);
}

#[test]
fn long_histories_are_decided() {
    for (keys, count, lost_per_mille) in [(100_u64, 100_000, 2_u32), (1, 10_000, 2), (1, 4_000, 50)]
    {
        let mut rng = fastrand::Rng::with_seed(keys + u64::from(lost_per_mille));
        let mut operations = simulate(&mut rng, keys, count, lost_per_mille);
        assert_good(operations.clone());
        make_stale(&mut operations);
        match judge(operations) {
            Verdict::Violation(counterexample) => {
                assert!(counterexample.operations.len() <= 4, "{counterexample}");
            }
            other => panic!("{keys} keys, {count} operations: {other:?}"),
        }
    }
}
