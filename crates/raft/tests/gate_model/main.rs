//! Rule R1 (who may answer a linearizable read) explored exhaustively in a small model.
//!
//! # What is modelled
//!
//! Three voters and their clocks, one of which may miss every fourth tick; a lease of four ticks and
//! a gate of three. A register holds the number of the last acknowledged write.
//!
//! - *Frames* (R1 a): a leader stamps a heartbeat frame as it leaves; the frame may be lost, or
//!   accepted late, and so may its reply. A follower that accepts any frame of a leader neither
//!   votes nor campaigns for one lease of its own clock. Only the reply to that very frame confirms.
//! - *Gate* (R1 b): open for 0.75 of a lease of the leader's own clock after the newest `t0` that a
//!   quorum confirmed, once an entry of the leader's own term is applied.
//! - *Latch* (R1 c): shut before another's vote is saved, and before a transfer begins.
//! - *Elections*: by openraft's rules: vote order by term and replica id, log at least as long, no
//!   promise in force. The vote of a transfer is excepted from the promise, and may arrive late.
//! - *Restart* (N3): promises are forgotten, votes and logs are not; a quarantine of one lease
//!   follows, a transfer's vote excepted.
//!
//! In every reachable state, every gate that is open must answer the newest acknowledged value. Each
//! part of the rule is then switched off in turn, and the search must find a stale read.
//!
//! # What is simplified
//!
//! The model may do *more* than the product, so that what holds here holds there:
//!
//! - An entry is written, held by one follower and acknowledged in a single step, also while the
//!   leader's gate is shut (W9 forbids that). Logs are therefore prefixes of one order; entries that
//!   are never committed do not occur. Only heartbeat frames confirm.
//! - There is no pre-vote. A leader may vote for another at any time. One vote makes a majority, and
//!   the winner leads at once: if its reply takes longer, that is a leader that does nothing yet.
//! - Promise and quarantine are one remaining time, and a transfer's vote ends both.
//! - A replica restarts only while a promise binds it; at any other time a restart could only take
//!   away what it may do.
//!
//! Not modelled: changes of membership and other numbers of voters than three (R1 b), strict reads
//! (R1 d), the followers' answers (R2), the silence of a leader without a quorum (R1 a).
//!
//! # Bounds
//!
//! Two terms, each with as many leaders as replica ids allow; one heartbeat frame of each leader on
//! its way (a new one replaces it, which is also how frames are lost); one transfer at a time; any
//! number of writes, restarts and ticks. Within these the search is complete: 322,658 states.
//!
//! The gate's code is private to the crate, so this is a model of the rule and not of the code; the
//! unit tests of the gate hold the code to the rule, sentence by sentence.
//!
//! A failure prints the shortest known sequence of steps that leads to it.

mod model;

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model};

use crate::model::{GATE, LEASE, NEWEST, Rule, Weaken};

/// Explores until a stale read is found, or all states have been seen.
fn explore(rule: Rule) -> impl Checker<Rule> {
    let named = format!("{rule:?}");
    let until = HasDiscoveries::AnyOf(BTreeSet::from([NEWEST]));
    let checker = rule.checker().finish_when(until).spawn_bfs().join();
    let (states, steps) = (checker.unique_state_count(), checker.state_count());
    println!("{named}: {states} states, {steps} steps, depth {}", checker.max_depth());
    checker
}

/// Fails unless the rule lets a stale read happen.
fn assert_stale_read(rule: Rule) {
    let found = explore(rule).assert_any_discovery(NEWEST);
    println!("stale after {:?}", found.into_actions());
}

fn assert_needed(part: Weaken) {
    assert_stale_read(Rule { gate: GATE, weaken: Some(part), slow: vec![Some(0)] });
}

#[test]
fn a_gate_read_is_never_stale() {
    let slow = vec![Some(0), Some(1), Some(2)];
    let checker = explore(Rule { gate: GATE, weaken: None, slow });
    checker.assert_properties();
    // Far fewer would mean that some step has become impossible.
    assert!(checker.unique_state_count() > 300_000);
}

#[test]
fn a_confirm_counts_from_when_its_frame_left() {
    assert_needed(Weaken::CreditReplyTime);
}

#[test]
fn a_vote_for_another_latches() {
    assert_needed(Weaken::NoLatchOnVote);
}

#[test]
fn a_transfer_latches() {
    assert_needed(Weaken::NoLatchOnTransfer);
}

#[test]
fn a_restarted_replica_is_quarantined() {
    assert_needed(Weaken::NoQuarantine);
}

/// Without it the late vote of a transfer elects a leader that the open gate knows nothing of.
#[test]
fn a_gate_waits_for_an_entry_of_its_own_term() {
    assert_needed(Weaken::NoOwnEntry);
}

#[test]
fn a_gate_as_long_as_the_lease_breaks_on_a_slow_clock() {
    assert_stale_read(Rule { gate: LEASE, weaken: None, slow: vec![Some(0)] });
}

/// The margin pays for the clocks and for nothing else: the model's time is exact to the tick.
#[test]
fn with_equal_clocks_the_lease_is_the_limit() {
    explore(Rule { gate: LEASE, weaken: None, slow: vec![None] }).assert_properties();
    assert_stale_read(Rule { gate: LEASE + 1, weaken: None, slow: vec![None] });
}
