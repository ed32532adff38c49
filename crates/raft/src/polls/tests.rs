//! What an answer is good for, when it comes and when it is reached.

use super::*;

fn ms(ms: u64) -> BootTime {
    BootTime(ms * 1000)
}

#[test]
fn an_answer_counts_when_its_index_is_applied_and_not_before() {
    let mut pending = Pending::default();
    pending.told(7, ms(100), 5);
    pending.applied(6);
    assert_eq!(pending.reached, None);
    pending.applied(7);
    assert_eq!(pending.reached, Some(ms(100)));
    pending.told(7, ms(150), 7);
    assert_eq!((pending.reached, pending.waiting.len()), (Some(ms(150)), 0));
}

#[test]
fn the_latest_question_whose_answer_is_reached_counts() {
    let mut pending = Pending::default();
    pending.told(7, ms(100), 5);
    pending.told(8, ms(150), 5);
    pending.told(9, ms(200), 5);
    pending.applied(8);
    assert_eq!(pending.reached, Some(ms(150)));
    // The answer to an earlier question comes late; it says nothing new.
    pending.told(8, ms(120), 8);
    pending.told(9, ms(120), 8);
    assert_eq!(pending.reached, Some(ms(150)));
    pending.applied(20);
    assert_eq!((pending.reached, pending.waiting.len()), (Some(ms(200)), 0));
}

#[test]
fn an_answer_that_says_no_more_and_is_reached_no_sooner_is_not_kept() {
    let mut pending = Pending::default();
    pending.told(9, ms(100), 5);
    pending.told(9, ms(150), 5);
    assert_eq!(pending.waiting, [(9, ms(150))]);
    // Of another leader, which was told of less.
    pending.told(7, ms(200), 5);
    assert_eq!(pending.waiting, [(7, ms(200))]);
    pending.told(8, ms(190), 5);
    assert_eq!(pending.waiting, [(7, ms(200))]);
    // In whatever order they come, both numbers rise.
    pending.told(6, ms(120), 5);
    pending.told(10, ms(210), 5);
    assert_eq!(pending.waiting, [(6, ms(120)), (7, ms(200)), (10, ms(210))]);
    // What is reached makes those worthless that say less.
    pending.told(5, ms(205), 5);
    assert_eq!((pending.reached, pending.waiting), (Some(ms(205)), vec![(10, ms(210))]));
}

/// How much older than its lag a replica believes to be that applies everything so many questions late,
/// at worst, in questions.
fn worst_beyond(lag: u64) -> u64 {
    let mut pending = Pending::default();
    let mut worst = 0;
    // Ten entries between two questions.
    for turn in 1..=lag * 10 {
        let applied = turn.saturating_sub(lag) * 10;
        pending.applied(applied);
        pending.told(turn * 10, ms(turn * 50), applied);
        assert!(pending.waiting.len() <= WAITING);
        assert!(pending.waiting.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1));
        if turn > lag * 2 {
            let reached = pending.reached.expect("the first is reached after one lag");
            assert!(reached <= ms((turn - lag) * 50), "it is not applied yet");
            worst = worst.max((turn - lag) - reached.0 / 50_000);
        }
    }
    worst
}

#[test]
fn a_replica_that_lags_behind_knows_its_age_nearly_as_well_as_its_lag_allows() {
    assert_eq!(worst_beyond(WAITING as u64), 0, "as many as are kept");
    for lag in [20, 60, 200] {
        let worst = worst_beyond(lag);
        assert!(worst <= 1 + lag / 8, "{worst} questions beyond a lag of {lag}");
    }
}

#[test]
fn what_stands_still_keeps_the_first_and_the_last() {
    let mut pending = Pending::default();
    for turn in 1..=1000 {
        pending.told(turn, ms(turn * 50), 0);
    }
    let (first, last) = (pending.waiting.first().copied(), pending.waiting.last().copied());
    assert_eq!((first, last), (Some((1, ms(50))), Some((1000, ms(50_000)))));
}

#[test]
fn what_is_applied_while_an_answer_is_taken_is_seen() {
    // Applied before it is told, and the other way round.
    let freshness = Freshness::default();
    assert_eq!(freshness.reached(), None);
    freshness.applied(7);
    freshness.told(7, ms(100), || 7);
    assert_eq!(freshness.reached(), Some(ms(100)));
    freshness.told(9, ms(150), || 8);
    assert_eq!(freshness.reached(), Some(ms(100)));
    freshness.applied(9);
    assert_eq!(freshness.reached(), Some(ms(150)));
    freshness.told(9, ms(120), || 9);
    assert_eq!(freshness.reached(), Some(ms(150)), "it never goes back");
}
