//! When to plan: plans that start by themselves. Pure.
//!
//! A plan is made when something that plans depend on has changed: the nodes and what is thought of
//! them, damaged replicas, settings, the table. It is made when no move is under way, or when all
//! that are not over have waited for longer than [`PATIENCE_MS`], or will change no members any more:
//! no move blocks plans for other groups. The steps of groups that have a move are left out then (see
//! [`planning`](crate::planning)), and what was left out comes to its turn: such a group is planned
//! for when its own moves are over, whatever those of others still wait for. When the *nodes*
//! change while moves of a plan still wait for their turn, these are given up: a repair must not wait
//! behind an hour of rebalancing, and what was planned for other nodes may make no sense. Moves that
//! have begun complete.
//!
//! Join, drain and repair start by themselves. Changes of weights and zones do not: such plans go
//! by the weights and zones that an operator applied ([`Figures::Applied`]). With
//! `rebalance_manual` only repair and drain start. While moves are paused nothing is planned.
//!
//! A move that failed by itself is planned again after half a minute, and later and later when it fails
//! again (see `backoff`); until then its group's steps before it are planned, and no others of the group:
//! a later one may lean on it. One that an operator cancelled is not, until something changes.
//!
//! The memory here belongs to one term and is only a memory of what was looked at: a new leader
//! plans once more than needed, and the same.

use std::collections::BTreeSet;

use annulus_proto::v1;
use annulus_proto::v1::manager_command::Command as Change;
use annulus_proto::v1::{MoveState, NodeState};

use crate::backoff::{Backoff, GIVEN_UP};
use crate::executor::PATIENCE_MS;
use crate::planning::{Figures, is_dead, plan};
use crate::state::{StateExt, is_up};
use crate::voters;

/// Less urgent steps wait for an operator with `rebalance_manual`: repair is 0, drain 1.
const REBALANCE: u32 = 2;

/// What plans depend on.
#[derive(Clone, Debug, PartialEq)]
struct Basis {
    /// Without what does not matter, and without what is below.
    nodes: Vec<v1::NodeRecord>,
    dead: Vec<bool>,
    /// Lost replicas among them.
    damaged: BTreeSet<u64>,
    up: Vec<bool>,
    /// Weights and zones that were applied.
    figures: Vec<(u32, String)>,
    settings: v1::ClusterSettings,
    /// Home, lane and members of every group.
    groups: Vec<(u64, u32, u32, Vec<v1::MemberRoute>)>,
}

impl Basis {
    fn of(state: &v1::ManagerState, damaged: &BTreeSet<u64>, now_ms: u64) -> Self {
        // Neither addresses matter nor weights and zones that were not applied.
        let bare = |node: &v1::NodeRecord| {
            let info = node.info.as_ref();
            let roles = info.map(|info| v1::NodeInfo {
                id: info.id,
                storage: info.storage,
                manager: info.manager,
                ..Default::default()
            });
            let is_removed = node.state() == NodeState::Removed;
            let state = if is_removed { NodeState::Removed } else { NodeState::Up };
            v1::NodeRecord {
                info: roles,
                incarnation: node.incarnation,
                state: state.into(),
                draining: node.draining,
                ..Default::default()
            }
        };
        let lost = state.nodes.iter().flat_map(|node| node.lost.iter().copied());
        let figures = |node: &v1::NodeRecord| (node.planned_weight, node.planned_zone.clone());
        let group =
            |group: &v1::GroupRecord| (group.id, group.home, group.lane, group.members.clone());
        Self {
            nodes: state.nodes.iter().map(bare).collect(),
            dead: state.nodes.iter().map(|node| is_dead(state, node, now_ms)).collect(),
            damaged: damaged.iter().copied().chain(lost).collect(),
            up: state.nodes.iter().map(is_up).collect(),
            figures: state.nodes.iter().map(figures).collect(),
            settings: state.settings(),
            groups: state.all_groups().map(group).collect(),
        }
    }

    /// Whether plans for these nodes are not plans for `later` ones. That damage is mended is what
    /// plans are for.
    fn differs_from(&self, later: &Self) -> bool {
        let is_worse = !later.damaged.is_subset(&self.damaged);
        self.nodes != later.nodes || self.dead != later.dead || is_worse
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    basis: Option<Basis>,
    is_due: bool,
    planned_ms: u64,
    /// Groups that had unfinished moves when the last plan was made, and have had some ever since.
    left_out: BTreeSet<u64>,
}

impl Schedule {
    /// What is to be proposed now. `damaged`: replicas that say they are. `now_ms`: the group's
    /// time.
    #[must_use]
    pub fn next(
        &mut self,
        state: &v1::ManagerState,
        damaged: &BTreeSet<u64>,
        now_ms: u64,
    ) -> Vec<v1::ManagerCommand> {
        let basis = Basis::of(state, damaged, now_ms);
        let before = self.basis.replace(basis.clone());
        if before.as_ref() != Some(&basis) {
            self.is_due = true;
        }
        let moving: BTreeSet<u64> = state.unfinished().map(|step| step.group).collect();
        if !self.left_out.is_subset(&moving) {
            self.left_out.retain(|group| moving.contains(group));
            self.is_due = true;
        }
        if before.is_some_and(|before| before.differs_from(&basis)) {
            let given_up = give_up(state);
            if !given_up.is_empty() {
                return given_up;
            }
        }
        if state.settings().paused {
            return Vec::new();
        }
        let backoff = Backoff::of(state);
        if !self.is_due && !backoff.has_ended_since(self.planned_ms, now_ms) {
            return Vec::new();
        }
        if !state.unfinished().all(|step| has_waited(state, step, now_ms)) {
            return Vec::new();
        }
        self.is_due = false;
        self.planned_ms = now_ms;
        let planned = plan(state, damaged, now_ms, Figures::Applied);
        for unmet in &planned.unmet {
            tracing::info!(%unmet, "a plan cannot reach everything");
        }
        let voters = voters::next_due(state, damaged, now_ms, &backoff);
        let mut steps: Vec<v1::Move> =
            voters.into_iter().filter(|step| !moving.contains(&step.group)).collect();
        steps.extend(planned.steps);
        self.left_out = moving;
        backoff.hold_back(&mut steps, now_ms);
        if state.settings().rebalance_manual {
            steps.retain(|step| step.priority < REBALANCE);
        }
        if steps.is_empty() {
            return Vec::new();
        }
        let change = Change::AddMoves(v1::AddMoves {
            plan: planned.plan,
            table_version: state.table_version,
            moves: steps,
            why: "the cluster is not as its rules want it".to_owned(),
            applied: false,
        });
        vec![v1::ManagerCommand { command: Some(change) }]
    }

    /// What was proposed did not come to pass.
    pub fn again(&mut self) {
        self.is_due = true;
    }
}

/// Whether a move is in the way of plans no longer: what is left of it changes no members that a plan
/// goes by, or it has been waiting since it came to its state, for its turn or for something that it
/// tells, and that is long ago.
fn has_waited(state: &v1::ManagerState, step: &v1::Move, now_ms: u64) -> bool {
    let waits = match step.state() {
        MoveState::Undo | MoveState::Retire => return true,
        MoveState::Planned => true,
        _ => !step.waiting.is_empty(),
    };
    waits && now_ms.saturating_sub(state.entered_ms(step)) >= PATIENCE_MS
}

/// Gives the moves of plans up that have not begun; the last first, since a member that does not come takes
/// with it what follows.
fn give_up(state: &v1::ManagerState) -> Vec<v1::ManagerCommand> {
    let waiting = |step: &&v1::Move| step.state() == MoveState::Planned && step.plan != 0;
    let mut waiting: Vec<&v1::Move> = state.unfinished().filter(waiting).collect();
    waiting.reverse();
    waiting
        .into_iter()
        .map(|step| {
            let change = Change::Advance(v1::AdvanceMove {
                id: step.id,
                expected: step.state,
                next: MoveState::Cancelled.into(),
                why: GIVEN_UP.to_owned(),
                ..Default::default()
            });
            v1::ManagerCommand { command: Some(change) }
        })
        .collect()
}

#[cfg(test)]
mod tests;
