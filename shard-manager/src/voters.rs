//! The voters of the manager's own group (H9): how many, and who next. Pure.
//!
//! Three of the nodes with the manager role vote, five from nine such nodes on; the others stand
//! by. A voter that is up stays, whatever a fresh choice would be: every change of this group is a
//! risk to the one thing that repairs all others. One is replaced when its replica is lost or
//! damaged, when it is drained, has no manager role any more, or is down for `down_after_ms`. Zones
//! count when one is chosen: one voter per zone where that is possible.
//!
//! One step at a time; the next follows from what the group then is. A step that failed waits its time (see
//! `backoff`), and the next candidate is taken meanwhile: one that fails for ever holds up no other. While
//! all that could come in somebody's place wait, he stays.

use std::collections::BTreeSet;

use annulus_proto::v1;

use crate::backoff::Backoff;
use crate::planning::is_dead;
use crate::state::{StateExt, id_of, is_up, seats_on};
use crate::voter_count;

/// The next step of the manager's group, whatever has failed before; `None` when it is as it should be, or
/// cannot be helped.
#[must_use]
pub fn next_step(
    state: &v1::ManagerState,
    damaged: &BTreeSet<u64>,
    now_ms: u64,
) -> Option<v1::Move> {
    next_due(state, damaged, now_ms, &Backoff::default())
}

/// The next step that may be taken now.
#[must_use]
pub(crate) fn next_due(
    state: &v1::ManagerState,
    damaged: &BTreeSet<u64>,
    now_ms: u64,
    backoff: &Backoff,
) -> Option<v1::Move> {
    let is_due = |step: &v1::Move| !backoff.holds(step, now_ms);
    let group = state.group(0)?;
    let fit: Vec<&v1::NodeRecord> = state.nodes.iter().filter(|node| is_fit(node)).collect();
    let fresh: Vec<&v1::NodeRecord> =
        fit.iter().copied().filter(|node| seats_on(group, id_of(node)).next().is_none()).collect();
    let able: Vec<&v1::NodeRecord> =
        fresh.iter().copied().filter(|node| is_due(&step(None, Some(id_of(node)), ""))).collect();
    let voters: Vec<v1::MemberRoute> =
        group.members.iter().copied().filter(|member| !member.learner).collect();
    for from in &voters {
        let node = state.node(from.node);
        let is_bad = damaged.contains(&from.replica) || state.is_lost(from.replica);
        let is_fit_here = node.is_some_and(is_fit);
        let is_wanted_off = node.is_none_or(|node| {
            let role = node.info.as_ref().is_some_and(|info| info.manager);
            node.draining || !role || is_dead(state, node, now_ms)
        });
        if is_bad && is_fit_here {
            let in_place = step(Some(*from), Some(from.node), "the replica is damaged or lost");
            if is_due(&in_place) {
                return Some(in_place);
            }
            continue;
        }
        if !is_bad && !is_wanted_off {
            continue;
        }
        let rest: Vec<u32> =
            voters.iter().filter(|voter| voter.replica != from.replica).map(|v| v.node).collect();
        if let Some(to) = best(state, &able, &rest) {
            let rule = "its node is drained, gone, or no manager any more";
            return Some(step(Some(*from), Some(to), rule));
        }
        // A dead one may come back; who is to go does go, as long as others vote.
        let leaves = node.is_some_and(|node| is_up(node) && is_wanted_off) && fresh.is_empty();
        if leaves && rest.iter().any(|other| state.node(*other).is_some_and(is_up)) {
            let leaving = step(Some(*from), None, "its node is drained, or no manager any more");
            if is_due(&leaving) {
                return Some(leaving);
            }
        }
    }
    if voters.len() < voter_count(fit.len()) {
        let nodes: Vec<u32> = voters.iter().map(|voter| voter.node).collect();
        let to = best(state, &able, &nodes)?;
        let rule = format!("{} of {} voters are there", voters.len(), voter_count(fit.len()));
        return Some(step(None, Some(to), &rule));
    }
    None
}

/// Whether a node may vote.
fn is_fit(node: &v1::NodeRecord) -> bool {
    is_up(node) && !node.draining && node.info.as_ref().is_some_and(|info| info.manager)
}

/// The node whose zone has the fewest of `rest`, lower id first.
fn best(state: &v1::ManagerState, fresh: &[&v1::NodeRecord], rest: &[u32]) -> Option<u32> {
    let others: Vec<&str> = rest.iter().filter_map(|node| state.node(*node)).map(zone_of).collect();
    let crowd = |node: &v1::NodeRecord| {
        let own = zone_of(node);
        (others.iter().filter(|other| **other == own).count(), id_of(node))
    };
    fresh.iter().copied().map(crowd).min().map(|(_, id)| id)
}

fn zone_of(node: &v1::NodeRecord) -> &str {
    node.info.as_ref().map_or("", |info| info.zone.as_str())
}

fn step(from: Option<v1::MemberRoute>, to: Option<u32>, rule: &str) -> v1::Move {
    v1::Move {
        kind: v1::MoveKind::Reseat.into(),
        group: 0,
        from,
        to: to.map(|node| v1::MemberRoute { node, replica: 0, learner: false }),
        rule: rule.to_owned(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::from_plan;
    use crate::testing::plan_of;

    fn none() -> BTreeSet<u64> {
        BTreeSet::new()
    }

    /// The node that leaves, and the one that comes; 0 for nobody.
    fn nodes(step: &v1::Move) -> (u32, u32) {
        let node = |seat: Option<v1::MemberRoute>| seat.map_or(0, |seat| seat.node);
        (node(step.from), node(step.to))
    }

    fn zoned(zones: &[&str]) -> v1::ManagerState {
        let mut state = from_plan(&plan_of(u32::try_from(zones.len()).unwrap())).unwrap();
        for (node, zone) in state.nodes.iter_mut().zip(zones) {
            node.info.as_mut().unwrap().zone = (*zone).to_owned();
        }
        state
    }

    #[test]
    fn a_group_that_is_as_it_should_be_is_left_alone() {
        for count in [1, 2, 3, 8] {
            let state = from_plan(&plan_of(count)).unwrap();
            assert_eq!(next_step(&state, &none(), 0), None, "{count} nodes");
        }
    }

    #[test]
    fn a_down_voter_is_replaced_after_its_time_by_one_of_its_zone() {
        // Founders are 1, 2 and 3; node 5 is the only other one in the zone of node 2.
        let mut state = zoned(&["a", "b", "c", "a", "b"]);
        state.nodes[1].set_state(v1::NodeState::Down);
        state.nodes[1].down_since_ms = 1_000;
        assert_eq!(next_step(&state, &none(), 300_999), None);
        let step = next_step(&state, &none(), 301_000).unwrap();
        assert_eq!(nodes(&step), (2, 5));
    }

    #[test]
    fn a_voter_is_drained_to_a_stand_by_and_without_one_out() {
        let mut state = from_plan(&plan_of(4)).unwrap();
        state.nodes[0].draining = true;
        assert_eq!(nodes(&next_step(&state, &none(), 0).unwrap()), (1, 4));
        let mut small = from_plan(&plan_of(3)).unwrap();
        small.nodes[0].draining = true;
        assert_eq!(nodes(&next_step(&small, &none(), 0).unwrap()), (1, 0));
        // A dead one without a successor stays: it may come back, and nothing is gained.
        let mut dead = from_plan(&plan_of(3)).unwrap();
        dead.nodes[0].set_state(v1::NodeState::Down);
        assert_eq!(next_step(&dead, &none(), 10_000_000), None);
    }

    #[test]
    fn a_damaged_replica_is_replaced_where_it_is() {
        let state = from_plan(&plan_of(5)).unwrap();
        let damaged = BTreeSet::from([state.group(0).unwrap().members[1].replica]);
        assert_eq!(nodes(&next_step(&state, &damaged, 0).unwrap()), (2, 2));
    }

    /// A step like this has failed.
    fn failed(state: &mut v1::ManagerState, step: &v1::Move, ended_ms: u64) {
        let mut failed = v1::Move { id: ended_ms, ended_ms, ..step.clone() };
        failed.set_state(v1::MoveState::Cancelled);
        state.moves.push(failed);
    }

    #[test]
    fn a_step_that_fails_for_ever_holds_up_no_other() {
        let mut state = from_plan(&plan_of(5)).unwrap();
        let members = state.group(0).unwrap().members.clone();
        let damaged = BTreeSet::from([members[0].replica, members[1].replica]);
        let due = |state: &v1::ManagerState, now_ms| {
            next_due(state, &damaged, now_ms, &Backoff::of(state)).map(|step| nodes(&step))
        };
        assert_eq!(due(&state, 1_000), Some((1, 1)));
        let first = next_step(&state, &damaged, 1_000).unwrap();
        failed(&mut state, &first, 1_000);
        assert_eq!(due(&state, 1_001), Some((2, 2)));
        assert_eq!(due(&state, 31_000), Some((1, 1)));
        // What is wanted does not change by that.
        assert_eq!(next_step(&state, &damaged, 1_001), Some(first));
    }

    #[test]
    fn a_stand_by_that_fails_is_passed_over_and_a_voter_stays_while_all_wait() {
        let mut state = from_plan(&plan_of(5)).unwrap();
        state.nodes[0].draining = true;
        let due = |state: &v1::ManagerState, now_ms| {
            next_due(state, &none(), now_ms, &Backoff::of(state))
        };
        for (at_ms, node) in [(1_000, 4), (2_000, 5)] {
            let step = due(&state, at_ms).unwrap();
            assert_eq!(nodes(&step), (1, node));
            failed(&mut state, &step, at_ms);
        }
        // It is not drained away without a successor while there are any.
        assert_eq!(due(&state, 3_000), None);
        assert_eq!(nodes(&due(&state, 31_000).unwrap()), (1, 4));
    }

    #[test]
    fn nine_managers_have_five_voters_and_eight_keep_them() {
        let mut state = from_plan(&plan_of(8)).unwrap();
        let mut ninth = state.nodes[7].clone();
        ninth.info.as_mut().unwrap().id = 9;
        state.nodes.push(ninth);
        let mut added = Vec::new();
        while let Some(step) = next_step(&state, &none(), 0) {
            let (from, to) = nodes(&step);
            assert_eq!(from, 0);
            added.push(to);
            let member = v1::MemberRoute { node: to, replica: 100 + u64::from(to), learner: false };
            state.manager.as_mut().unwrap().members.push(member);
        }
        assert_eq!(added, [4, 5]);
        state.nodes[8].set_state(v1::NodeState::Down);
        assert_eq!(next_step(&state, &none(), 10_000_000), None);
    }
}
