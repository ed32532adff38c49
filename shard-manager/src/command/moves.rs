//! Moves: taken over from a plan, carried through their states, cancelled.
//!
//! ```text
//! reseat     PLANNED -> CREATE -> SEED -> CATCH_UP -> VERIFY -> LEAD -> SWAP -> RETIRE -> DONE
//!            PLANNED -> LEAD -> SWAP -> RETIRE -> DONE                  nobody comes
//!            CREATE ... SWAP -> UNDO -> CANCELLED                       the newcomer has no vote
//!            CREATE, SEED -> CANCELLED                                  nobody leads the group
//!            SWAP -> CANCELLED                                          the group does not do it
//!            UNDO -> SWAP                                               it votes after all
//! transfer   PLANNED -> LEAD -> DONE
//! rehome     PLANNED -> LEAD -> DONE
//! ```
//!
//! Every state says what may have been begun, never what was reached: a move is in SWAP before the
//! first command that changes the membership leaves, so whoever leads next knows what may be under
//! way. The ways out of SWAP are the executor's alone: back for a newcomer that has no vote and
//! does not get one, and out where nobody comes, or who came votes and the other does not leave.
//! Operators cannot ask for them. Neither can they for the short way out of CREATE and SEED, which
//! leaves the new replica to be cleared up when its group has a leader again.
//!
//! A reseat that was to bring a member in and is cancelled takes with it what its plan has for the group
//! after it and has not begun: a seat may be given up there because another one was to be filled.
//!
//! Every state that is not final has an exit, and no move holds up moves or plans of other groups.
//!
//! A move raises its group's generation when it begins, when it begins to be undone, and when it ends
//! in SWAP (H6): what was sent before and is still on its way is refused.

use annulus_proto::v1;
use annulus_proto::v1::{MoveKind, MoveState};
use annulus_types::ids::allocated_id;

use super::{About, Change, Refusal};
use crate::state::{StateExt, is_ended, main_node, order_members, seat_of};

/// Unfinished moves that are kept. The steps of a plan beyond them are left out: any first part of
/// a plan is safe, and the next plan has the rest.
const UNFINISHED_MOST: usize = 4_096;

pub(super) fn add(change: &mut Change, plan: &v1::AddMoves) -> Result<(), Refusal> {
    if plan.table_version != change.state.table_version {
        let message = format!("the table changed since plan {} was made", plan.plan);
        return Err(Refusal::Stale(message));
    }
    let room = UNFINISHED_MOST.saturating_sub(change.state.unfinished().count());
    let steps = plan.moves.get(..room).unwrap_or(&plan.moves);
    for step in steps {
        check_step(&change.state, step)?;
    }
    if plan.applied {
        for node in &mut change.state.nodes {
            if let Some(info) = &node.info {
                node.planned_weight = info.weight;
                node.planned_zone.clone_from(&info.zone);
            }
        }
    }
    let count = steps.len();
    for step in steps {
        push(change, v1::Move { plan: plan.plan, ..step.clone() })?;
    }
    change.outcome.id = plan.plan;
    if count > 0 || plan.applied {
        let what = format!("plan {} with {count} steps", plan.plan);
        change.decide(About::default(), what, plan.why.clone());
    }
    Ok(())
}

/// Gives a step its number and its place in the queue.
pub(super) fn push(change: &mut Change, step: v1::Move) -> Result<u64, Refusal> {
    let id = u64::from(change.count()?);
    let step = v1::Move {
        id,
        state: MoveState::Planned.into(),
        to: step.to.map(|to| v1::MemberRoute { replica: 0, learner: false, ..to }),
        bytes_done: 0,
        planned_ms: change.now_ms.max(1),
        ended_ms: 0,
        waiting: String::new(),
        cancel: false,
        ..step
    };
    let about = About { node: main_node(&step), group: Some(step.group), move_id: id };
    change.decide(about, format!("move {id} is planned: {}", describe(&step)), step.rule.clone());
    change.state.moves.push(step);
    Ok(id)
}

/// What a step needs in any case. Whether it still makes sense is seen when it begins.
fn check_step(state: &v1::ManagerState, step: &v1::Move) -> Result<(), Refusal> {
    let stale = |message: String| Err(Refusal::Stale(message));
    let Some(group) = state.group(step.group) else {
        return stale(format!("there is no group {}", step.group));
    };
    if let Some(from) = step.from
        && seat_of(group, from.replica).is_none_or(|seat| seat.node != from.node)
    {
        return stale(format!("group {} has no seat {} to give up", group.id, from.replica));
    }
    if let Some(to) = step.to {
        let known = state.node(to.node).filter(|node| node.state() != v1::NodeState::Removed);
        if known.is_none() {
            return stale(format!("there is no node {}", to.node));
        }
    }
    let reseat = step.kind() == MoveKind::Reseat;
    if step.to.is_none() && (step.from.is_none() || !reseat) {
        return stale(format!("a step of group {} that does nothing", group.id));
    }
    Ok(())
}

/// What a move does, in a few words.
fn describe(step: &v1::Move) -> String {
    let group = step.group;
    let node = |seat: Option<v1::MemberRoute>| seat.map_or(0, |seat| seat.node);
    let (from, to) = (node(step.from), node(step.to));
    match step.kind() {
        MoveKind::Reseat if step.from.is_none() => format!("group {group} gets node {to}"),
        MoveKind::Reseat if step.to.is_none() => format!("group {group} gives node {from} up"),
        MoveKind::Reseat if from == to => format!("group {group} gets a new replica on node {to}"),
        MoveKind::Reseat => format!("group {group} gets node {to} for node {from}"),
        MoveKind::Transfer => format!("node {to} shall lead group {group}"),
        MoveKind::Rehome => format!("node {to} becomes the home of group {group}"),
    }
}

/// Whether a move may go from its state to `next`.
fn may_go(step: &v1::Move, next: MoveState) -> bool {
    use MoveState::{
        Cancelled, CatchUp, Create, Done, Lead, Planned, Retire, Seed, Swap, Undo, Verify,
    };
    let reseat = step.kind() == MoveKind::Reseat;
    let comes = reseat && step.to.is_some();
    match (step.state(), next) {
        (now, next) if now == next => !is_ended(now),
        (Planned, Cancelled) => true,
        (Planned, Create) | (Create, Seed) | (Seed, CatchUp) | (CatchUp, Verify) => comes,
        (Verify, Lead) | (Undo, Swap | Cancelled) => comes,
        (Create | Seed | CatchUp | Verify | Lead | Swap, Undo) => comes,
        // No change of the membership was asked for yet.
        (Create | Seed, Cancelled) => comes,
        (Swap, Cancelled) => reseat,
        (Planned, Lead) | (Lead, Cancelled) => !comes,
        (Lead, Swap) | (Swap, Retire) | (Retire, Done) => reseat,
        (Lead, Done) => !reseat,
        _ => false,
    }
}

pub(super) fn advance(change: &mut Change, advance: &v1::AdvanceMove) -> Result<(), Refusal> {
    let (expected, next) = (advance.expected(), advance.next());
    let found = change.state.moves.iter().position(|step| step.id == advance.id);
    let Some(at) = found else {
        return Err(Refusal::Stale(format!("there is no move {}", advance.id)));
    };
    let step = &change.state.moves[at];
    if step.state() != expected || !may_go(step, next) {
        let now = step.state().as_str_name();
        return Err(Refusal::Stale(format!("move {} is in {now}", advance.id)));
    }
    let step = &mut change.state.moves[at];
    step.waiting.clone_from(&advance.waiting);
    step.bytes_done = step.bytes_done.max(advance.bytes_done);
    if expected != next {
        enter(change, at, next, &advance.why)?;
    }
    Ok(())
}

/// Puts the move at `at` into another state, with all that goes with it.
fn enter(change: &mut Change, at: usize, next: MoveState, why: &str) -> Result<(), Refusal> {
    put_into(change, at, next, why)?;
    let step = change.state.moves[at].clone();
    let was_to_come = step.kind() == MoveKind::Reseat && step.to.is_some();
    if next != MoveState::Cancelled || !was_to_come || step.plan == 0 {
        return Ok(());
    }
    let why = format!("it builds on move {} of the same plan, which was cancelled", step.id);
    for later in 0..change.state.moves.len() {
        let other = &mut change.state.moves[later];
        let builds_on_it = (other.plan, other.group) == (step.plan, step.group)
            && other.id > step.id
            && other.state() == MoveState::Planned;
        if builds_on_it {
            other.cancel = step.cancel;
            put_into(change, later, MoveState::Cancelled, &why)?;
        }
    }
    Ok(())
}

/// The same for this move alone.
fn put_into(change: &mut Change, at: usize, next: MoveState, why: &str) -> Result<(), Refusal> {
    let step = change.state.moves[at].clone();
    let replica = if next == MoveState::Create {
        allocated_id(change.state.incarnation, change.count()?)
    } else {
        step.to.map_or(0, |to| to.replica)
    };
    let begins = step.state() == MoveState::Planned && !is_ended(next);
    let stops = step.state() == MoveState::Swap && next == MoveState::Cancelled;
    let now_ms = change.now_ms.max(1);
    if let Some(group) = change.group_mut(step.group) {
        if begins || stops || next == MoveState::Undo {
            group.generation += 1;
        }
        if next == MoveState::Done && step.kind() == MoveKind::Rehome {
            group.home = main_node(&step);
            group.lane = step.lane;
            group.pinned = 0;
            order_members(&mut group.members, group.home);
        }
    }
    let entered = &mut change.state.moves[at];
    entered.set_state(next);
    entered.waiting.clear();
    if let Some(to) = &mut entered.to {
        to.replica = replica;
    }
    if is_ended(next) {
        entered.ended_ms = now_ms;
    }
    let about = About { node: main_node(&step), group: Some(step.group), move_id: step.id };
    let state = next.as_str_name().trim_start_matches("MOVE_STATE_");
    change.decide(about, format!("move {}: {state}", step.id), why);
    Ok(())
}

pub(super) fn cancel(change: &mut Change, id: u64) -> Result<(), Refusal> {
    use MoveState::{Cancelled, Done, Lead, Planned, Retire, Swap, Undo};
    let found = change.state.moves.iter().position(|step| step.id == id);
    let Some(at) = found else {
        return Err(Refusal::wrong("id", format!("there is no move {id}")));
    };
    let step = &change.state.moves[at];
    let next = match step.state() {
        Done | Cancelled => {
            return Err(Refusal::wrong("id", format!("move {id} has ended")));
        }
        Swap => {
            let message = format!(
                "move {id} has begun to change the membership; it completes, or ends by itself when \
                 its group does not do it for a minute"
            );
            return Err(Refusal::wrong("id", message));
        }
        Retire => {
            let message = format!("move {id} has changed the membership; it completes");
            return Err(Refusal::wrong("id", message));
        }
        Undo => {
            // Not about the move: its last decision tells since when it is in its state.
            let about = About { node: main_node(step), group: Some(step.group), move_id: 0 };
            change.state.moves[at].cancel = true;
            change.decide(
                about,
                format!("move {id} is being undone already"),
                "an operator said so",
            );
            return Ok(());
        }
        Planned => Cancelled,
        Lead if may_go(step, Cancelled) => Cancelled,
        _ => Undo,
    };
    change.state.moves[at].cancel = true;
    enter(change, at, next, "an operator said so")
}
