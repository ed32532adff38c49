//! How the manager's state changes: one function from a state and a command to the next state.
//!
//! Every replica of group 0 applies the same commands in the same order, so [`apply`] is pure,
//! total and deterministic (W8): no clock but the group's time, no randomness, no order that
//! depends on a hash. A command is a wish; what it meets when it is applied decides. A refused one
//! changes nothing and says why, to the leader that proposed it or to the operator behind it.
//!
//! # Invariants
//!
//! - A replica, a plan or a move gets its id here and nowhere else (H5).
//! - The table's version grows exactly when the table changes: the two tables are compared.
//! - Every change is a [`v1::Decision`] with its reason. Figures (bytes, what a move waits for) are
//!   not decisions.
//! - Whoever proposed twice, or was deposed meanwhile, is refused by what the command expects: the
//!   state of the move, the version of the table, the life of the node.
//! - What is kept of the past is bounded: [`HISTORY_MOST`] decisions, [`ENDED_MOST`] ended moves.
//!
//! `nodes` holds who is admitted and what operators want of nodes, `moves` the way of a move
//! through its states, `groups` what leaders reported.

pub mod groups;
pub mod moves;
pub mod nodes;

use annulus_proto::v1;
use annulus_proto::v1::manager_command::Command;
use annulus_types::{Error, ErrorKind};

use crate::state::{StateExt, check, is_ended};

/// Decisions that are kept.
pub const HISTORY_MOST: usize = 1_000;
/// Ended moves that are kept.
pub const ENDED_MOST: usize = 200;
/// Shortest time after which a node that is down is replaced, milliseconds.
const DOWN_AFTER_LEAST_MS: u64 = 1_000;

/// What a command brought about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The plan or move that it made; 0 if it made none.
    pub id: u64,
    /// What it decided.
    pub decisions: Vec<v1::Decision>,
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The first state is there.
    #[error("the cluster exists already")]
    Exists,
    /// It is not.
    #[error("there is no cluster yet")]
    NotMade,
    /// It makes no sense in any state.
    #[error("the command does not read: {0}")]
    Unreadable(String),
    /// What it was decided on is so no more. Look again.
    #[error("{0}")]
    Stale(String),
    /// An operator asked for what cannot be.
    #[error("{field}: {message}")]
    Wrong {
        /// The field, by its wire name.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

impl Refusal {
    fn wrong(field: &'static str, message: impl Into<String>) -> Self {
        Self::Wrong { field, message: message.into() }
    }
}

impl From<&Refusal> for Error {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Wrong { field, message } => Self::bad_request(field, message.clone()),
            Refusal::Exists | Refusal::NotMade | Refusal::Unreadable(_) | Refusal::Stale(_) => {
                Self::refused(ErrorKind::NotReady { reason: refusal.to_string() })
            }
        }
    }
}

/// The state after `command`, at the group's time `now_ms`.
///
/// # Errors
/// When the command does not fit the state; it has then changed nothing.
pub fn apply(
    state: Option<&v1::ManagerState>,
    command: &v1::ManagerCommand,
    now_ms: u64,
) -> Result<(v1::ManagerState, Outcome), Refusal> {
    let Some(command) = &command.command else {
        return Err(Refusal::Unreadable("it is empty".to_owned()));
    };
    let Some(before) = state else {
        return match command {
            Command::Bootstrap(first) => bootstrap(first, now_ms),
            _ => Err(Refusal::NotMade),
        };
    };
    let mut change = Change::new(before.clone(), now_ms);
    match command {
        Command::Bootstrap(_) => return Err(Refusal::Exists),
        Command::Admit(admit) => nodes::admit(&mut change, admit)?,
        Command::Silent(silent) => nodes::silent(&mut change, *silent)?,
        Command::ChangeNode(wanted) => nodes::change_node(&mut change, wanted)?,
        Command::Settings(wanted) => settings(&mut change, *wanted)?,
        Command::AddMoves(plan) => moves::add(&mut change, plan)?,
        Command::Advance(advance) => moves::advance(&mut change, advance)?,
        Command::Cancel(cancel) => moves::cancel(&mut change, cancel.id)?,
        Command::Observe(observed) => groups::observe(&mut change, observed),
        Command::Transfer(transfer) => groups::transfer(&mut change, *transfer)?,
        Command::BalanceLeaders(_) => groups::balance_leaders(&mut change),
        Command::Note(note) => {
            let about = About { node: note.node, group: note.group, move_id: note.move_id };
            change.decide(about, note.what.clone(), note.why.clone());
        }
    }
    Ok(change.finish(before))
}

fn bootstrap(
    first: &v1::ManagerState,
    now_ms: u64,
) -> Result<(v1::ManagerState, Outcome), Refusal> {
    check(first).map_err(|error| Refusal::Unreadable(error.to_string()))?;
    let mut change = Change::new(first.clone(), now_ms);
    let (groups, shards) = (first.groups.len(), first.shards.len());
    let what = format!("the cluster begins with {shards} shards in {groups} groups");
    let why = if first.era <= 1 { "it is born" } else { "it has a new manager" };
    change.decide(About::default(), what, why);
    Ok(change.finish(first))
}

fn settings(change: &mut Change, wanted: v1::SettingsChange) -> Result<(), Refusal> {
    let mut settings = change.state.settings();
    let mut changed = Vec::new();
    if let Some(down_after_ms) = wanted.down_after_ms {
        if down_after_ms < DOWN_AFTER_LEAST_MS {
            let message = format!("at least {DOWN_AFTER_LEAST_MS}, got {down_after_ms}");
            return Err(Refusal::wrong("down_after_ms", message));
        }
        if down_after_ms != settings.down_after_ms {
            changed.push(format!("a node is replaced when it is down for {down_after_ms} ms"));
        }
        settings.down_after_ms = down_after_ms;
    }
    if let Some(manual) = wanted.rebalance_manual {
        if manual != settings.rebalance_manual {
            let how = if manual { "waits for an operator" } else { "starts by itself" };
            changed.push(format!("a rebalance {how}"));
        }
        settings.rebalance_manual = manual;
    }
    if let Some(paused) = wanted.paused {
        if paused != settings.paused {
            let how = if paused { "are paused" } else { "go on" };
            changed.push(format!("moves {how}"));
        }
        settings.paused = paused;
    }
    change.state.settings = Some(settings);
    for what in changed {
        change.decide(About::default(), what, "an operator said so");
    }
    Ok(())
}

/// What a decision is about.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct About {
    pub node: u32,
    pub group: Option<u64>,
    pub move_id: u64,
}

impl About {
    fn node(node: u32) -> Self {
        Self { node, ..Self::default() }
    }

    fn group(group: u64) -> Self {
        Self { group: Some(group), ..Self::default() }
    }
}

/// A state on its way to the next one.
pub(crate) struct Change {
    pub state: v1::ManagerState,
    pub now_ms: u64,
    outcome: Outcome,
}

impl Change {
    fn new(state: v1::ManagerState, now_ms: u64) -> Self {
        Self { state, now_ms, outcome: Outcome::default() }
    }

    fn decide(&mut self, about: About, what: String, why: impl Into<String>) {
        self.outcome.decisions.push(v1::Decision {
            at_ms: self.now_ms,
            what,
            why: why.into(),
            node: about.node,
            group: about.group,
            move_id: about.move_id,
        });
    }

    /// The next number that nobody had (H5).
    fn count(&mut self) -> Result<u32, Refusal> {
        let Some(next) = self.state.counter.checked_add(1) else {
            return Err(Refusal::Stale("this life of the manager has no ids left".to_owned()));
        };
        self.state.counter = next;
        Ok(next)
    }

    fn node_mut(&mut self, id: u32) -> Option<&mut v1::NodeRecord> {
        self.state.nodes.iter_mut().find(|node| crate::state::id_of(node) == id)
    }

    fn group_mut(&mut self, id: u64) -> Option<&mut v1::GroupRecord> {
        let v1::ManagerState { groups, manager, .. } = &mut self.state;
        groups.iter_mut().chain(manager.as_mut()).find(|group| group.id == id)
    }

    /// Cleans up after the change, and counts the table if it is another one than `before`, or comes
    /// with other admitted lives: nodes take both only with a higher version.
    fn finish(mut self, before: &v1::ManagerState) -> (v1::ManagerState, Outcome) {
        forget_lost(&mut self.state);
        let ended = self.state.moves.iter().filter(|step| is_ended(step.state())).count();
        let mut surplus = ended.saturating_sub(ENDED_MOST);
        self.state.moves.retain(|step| {
            let goes = surplus > 0 && is_ended(step.state());
            surplus -= usize::from(goes);
            !goes
        });
        let history = &mut self.state.history;
        history.extend(self.outcome.decisions.iter().cloned());
        history.drain(..history.len().saturating_sub(HISTORY_MOST));
        let is_other = self.state.table() != before.table();
        if is_other || self.state.admitted() != before.admitted() {
            self.state.table_version += 1;
        }
        (self.state, self.outcome)
    }
}

/// A lost replica matters as long as a group counts it, or a move is about to bring it in.
fn forget_lost(state: &mut v1::ManagerState) {
    if state.nodes.iter().all(|node| node.lost.is_empty()) {
        return;
    }
    let mut named: Vec<u64> = state
        .all_groups()
        .flat_map(|group| group.members.iter().map(|member| member.replica))
        .collect();
    named.extend(state.unfinished().filter_map(|step| step.to).map(|seat| seat.replica));
    for node in &mut state.nodes {
        node.lost.retain(|replica| named.contains(replica));
    }
}

#[cfg(test)]
mod tests;
