//! When what failed may be planned again. Pure.
//!
//! What a plan asks for follows from the rules, so a move that failed is planned again as it was: the
//! same group, the same node. A node that refuses for ever would be tried for ever. So the delay grows
//! with every failure in a row of the same group and node, [`AGAIN_MS`] first and [`AGAIN_MOST_MS`] at
//! most; a move of theirs that comes about ends the row.
//!
//! All of it is read from the moves that are stored, so a new leader of group 0 waits as long as the old
//! one. Ended moves that are forgotten were never there. What an operator cancelled, or the manager gave
//! up for another plan, is no failure. Steps that an operator applies wait for nothing.

use std::collections::{BTreeMap, BTreeSet};

use annulus_proto::v1;
use annulus_proto::v1::MoveState;

use crate::state::{is_ended, main_node};

/// The delay after a first failure, milliseconds of the group's time.
pub(crate) const AGAIN_MS: u64 = 30_000;
/// The longest delay, milliseconds of the group's time.
pub(crate) const AGAIN_MOST_MS: u64 = 600_000;
/// The reason of moves that were given up before they began, for a newer plan.
pub(crate) const GIVEN_UP: &str = "the nodes changed since it was planned";

/// Until when steps wait, the group's time, by their group and the node that they are most about. Empty:
/// nothing waits.
#[derive(Debug, Default)]
pub(crate) struct Backoff(BTreeMap<(u64, u32), u64>);

impl Backoff {
    /// What the stored moves say.
    pub(crate) fn of(state: &v1::ManagerState) -> Self {
        let told = state.history.iter().filter(|decision| decision.why == GIVEN_UP);
        let given_up: BTreeSet<u64> = told.map(|decision| decision.move_id).collect();
        let mut ended: Vec<&v1::Move> =
            state.moves.iter().filter(|step| is_ended(step.state())).collect();
        ended.sort_by_key(|step| (step.ended_ms, step.id));
        // Failures in a row, and when the last was.
        let mut rows: BTreeMap<(u64, u32), (u32, u64)> = BTreeMap::new();
        for step in ended {
            if step.state() == MoveState::Done {
                rows.remove(&key_of(step));
            } else if !step.cancel && !given_up.contains(&step.id) {
                let (count, last_ms) = rows.entry(key_of(step)).or_default();
                // A move and those that go with it fail at once.
                *count += u32::from(*last_ms != step.ended_ms);
                *last_ms = step.ended_ms;
            }
        }
        let until = |(count, last_ms): (u32, u64)| last_ms + delay_ms(count);
        Self(rows.into_iter().map(|(key, row)| (key, until(row))).collect())
    }

    /// Whether a step waits, because one like it failed.
    pub(crate) fn holds(&self, step: &v1::Move, now_ms: u64) -> bool {
        self.0.get(&key_of(step)).is_some_and(|until_ms| now_ms < *until_ms)
    }

    /// Takes away the steps that wait, and with each what its group has after it: that may lean on it. Any
    /// first part of a group's steps is as safe as all of them.
    pub(crate) fn hold_back(&self, steps: &mut Vec<v1::Move>, now_ms: u64) {
        let mut held = BTreeSet::new();
        steps.retain(|step| {
            if self.holds(step, now_ms) {
                held.insert(step.group);
            }
            !held.contains(&step.group)
        });
    }

    /// Whether some step has stopped waiting after `since_ms`.
    pub(crate) fn has_ended_since(&self, since_ms: u64, now_ms: u64) -> bool {
        self.0.values().any(|until_ms| (since_ms + 1..=now_ms).contains(until_ms))
    }
}

/// The delay after so many failures in a row.
fn delay_ms(failures: u32) -> u64 {
    let doubled = 1u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX);
    AGAIN_MS.saturating_mul(doubled).min(AGAIN_MOST_MS)
}

fn key_of(step: &v1::Move) -> (u64, u32) {
    (step.group, main_node(step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::from_plan;
    use crate::testing::plan_of;

    fn ended(id: u64, to: u32, state: MoveState, ended_ms: u64) -> v1::Move {
        let to = Some(v1::MemberRoute { node: to, replica: 0, learner: false });
        v1::Move { id, group: 7, to, state: state.into(), ended_ms, ..Default::default() }
    }

    fn state_of(moves: Vec<v1::Move>) -> v1::ManagerState {
        v1::ManagerState { moves, ..from_plan(&plan_of(3)).unwrap() }
    }

    #[test]
    fn the_delay_doubles_with_every_failure_in_a_row_up_to_ten_minutes() {
        use MoveState::{Cancelled, Done};
        let mut moves = Vec::new();
        let mut delays = Vec::new();
        let step = ended(0, 4, MoveState::Planned, 0);
        for id in 1..=7 {
            let at_ms = id * 1_000_000;
            moves.push(ended(id, 4, Cancelled, at_ms));
            let backoff = Backoff::of(&state_of(moves.clone()));
            let delay_s = (0..).find(|s| !backoff.holds(&step, at_ms + s * 1_000)).unwrap();
            delays.push(delay_s);
            let until_ms = at_ms + delay_s * 1_000;
            assert!(!backoff.has_ended_since(at_ms, until_ms - 1));
            assert!(backoff.has_ended_since(at_ms, until_ms));
            assert!(!backoff.has_ended_since(until_ms, until_ms + 1));
            // Of another node nothing is known.
            assert!(!backoff.holds(&ended(0, 5, MoveState::Planned, 0), at_ms));
        }
        assert_eq!(delays, [30, 60, 120, 240, 480, 600, 600]);
        moves.push(ended(8, 4, Done, 8_000_000));
        assert!(!Backoff::of(&state_of(moves.clone())).holds(&step, 8_000_000));
        moves.push(ended(9, 4, Cancelled, 9_000_000));
        let backoff = Backoff::of(&state_of(moves));
        assert!(backoff.holds(&step, 9_029_999) && !backoff.holds(&step, 9_030_000));
    }

    #[test]
    fn a_step_that_waits_holds_back_what_its_group_has_after_it() {
        let seat = |node| Some(v1::MemberRoute { node, replica: 0, learner: false });
        let step = |group, from: u32, to: u32| {
            let (from, to) = (seat(from).filter(|_| from > 0), seat(to).filter(|_| to > 0));
            v1::Move { group, from, to, ..Default::default() }
        };
        let steps = [step(7, 1, 3), step(7, 0, 4), step(7, 2, 0), step(8, 0, 4), step(8, 2, 0)];
        let backoff = Backoff::of(&state_of(vec![ended(1, 4, MoveState::Cancelled, 1_000)]));
        let mut planned = steps.to_vec();
        backoff.hold_back(&mut planned, 30_999);
        assert_eq!(planned, [steps[0].clone(), steps[3].clone(), steps[4].clone()]);
        let mut planned = steps.to_vec();
        backoff.hold_back(&mut planned, 31_000);
        assert_eq!(planned, steps);
    }

    #[test]
    fn what_fails_at_once_fails_once_and_what_was_wanted_is_no_failure() {
        use MoveState::Cancelled;
        let step = ended(0, 4, MoveState::Planned, 0);
        let together = vec![ended(1, 4, Cancelled, 1_000), ended(2, 4, Cancelled, 1_000)];
        let backoff = Backoff::of(&state_of(together));
        assert!(backoff.holds(&step, 30_999) && !backoff.holds(&step, 31_000));

        let by_operator = v1::Move { cancel: true, ..ended(1, 4, Cancelled, 1_000) };
        let mut state = state_of(vec![by_operator, ended(2, 4, Cancelled, 2_000)]);
        let why = GIVEN_UP.to_owned();
        state.history.push(v1::Decision { move_id: 2, why, ..Default::default() });
        assert!(!Backoff::of(&state).holds(&step, 2_000));
    }
}
