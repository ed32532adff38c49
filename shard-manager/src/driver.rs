//! What the leader of group 0 does without being asked: a thin task around pure parts.
//!
//! Each round looks at the stored state and at what was seen in this term, and does what is
//! missing: makes the planned cluster, finds silent nodes, carries moves on
//! ([`crate::executor`]), makes plans ([`crate::schedule`]), and tells every
//! node the table until it says that it holds it. So a new leader needs no memory of the old one.
//!
//! Everything that leaves names the era and term of the manager (H6) and the life of the folder
//! that it is meant for (N1); nodes refuse what is older or meant for another life. Proposals are
//! made one after another and waited for, so that the next round looks at a state that has them.
//! What else a round found for a group is left to the next round when a proposal about the group is
//! refused; other groups go on. A proposal that fails otherwise ends the round.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::manager_command::Command;
use annulus_raft::{Group, Host, Reign};
use annulus_runtime::Env;
use annulus_types::{Error, ErrorKind};

use crate::courier::Speaker;
use crate::executor::{self, Action, Now};
use crate::machine::ManagerMachine;
use crate::manager::Manager;
use crate::schedule::Schedule;
use crate::sight::{SILENT_MS, Sight};
use crate::state::{StateExt, id_of, is_up};

/// Between two rounds.
const ROUND: Duration = Duration::from_millis(100);
/// A new leader that is not able to vouch for its state within this tries again.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(1);

/// See the module.
pub struct Driver {
    manager: Arc<Manager>,
    /// What the manager begins with, if this node was told: of a birth or of an adoption.
    first: Option<v1::ManagerState>,
}

/// What a round found to do.
struct Found {
    proposals: Vec<v1::ManagerCommand>,
    actions: Vec<Action>,
    /// The tables that nodes said they hold, and when they did.
    told: BTreeMap<u32, (u64, u64)>,
    now: Now,
}

impl Driver {
    /// A driver for this node's replica of group 0. `first` must be of the manager whose replica it is.
    #[must_use]
    pub fn new(
        env: Env,
        host: Arc<Host>,
        group: Arc<Group>,
        machine: Arc<ManagerMachine>,
        first: Option<v1::ManagerState>,
    ) -> Self {
        Self { manager: Arc::new(Manager::new(env, host, group, machine)), first }
    }

    /// The handle for this node's services.
    #[must_use]
    pub fn manager(&self) -> Arc<Manager> {
        Arc::clone(&self.manager)
    }

    /// Runs until the node stops.
    pub async fn run(self) {
        let mut ticker = tokio::time::interval(ROUND);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut schedule = Schedule::default();
        let mut led_in = 0;
        while !self.manager.env.tasks.is_stopping() {
            ticker.tick().await;
            let Ok(term) = self.manager.leading() else { continue };
            if term != led_in {
                // Only what every earlier leader stored may be acted on.
                if self.manager.group.read_grant(false, CATCH_UP_LIMIT).await.is_err() {
                    continue;
                }
                led_in = term;
                schedule = Schedule::default();
                self.manager.forget_pushes();
            }
            match self.manager.machine.state() {
                None => self.make().await,
                Some(state) => self.round(&state, term, &mut schedule).await,
            }
        }
    }

    async fn make(&self) {
        let Some(first) = &self.first else { return };
        match self.manager.propose(Command::Bootstrap(first.clone())).await {
            Ok(_) => tracing::info!("the cluster is made"),
            Err(error) => tracing::info!(%error, "the cluster is not made yet"),
        }
    }

    async fn round(&self, state: &Arc<v1::ManagerState>, term: u64, schedule: &mut Schedule) {
        let Ok(found) = self.look(state, term, schedule) else { return };
        self.manager.push_table(state, term, &found.told, found.now.mono_ms);
        let by = Speaker { reign: Reign { era: state.era, incarnation: state.incarnation }, term };
        let mut skipped = BTreeSet::new();
        for action in found.actions {
            let group = group_of(state, &action);
            if group.is_some_and(|group| skipped.contains(&group)) {
                continue;
            }
            match action {
                Action::Tell(tell) => self.manager.send(tell, by),
                Action::Propose(command) => match self.propose(command).await {
                    Ok(()) => {}
                    Err(error) if is_refusal(&error) => skipped.extend(group),
                    Err(_) => return,
                },
            }
        }
        for command in found.proposals {
            if self.propose(command).await.is_err() {
                schedule.again();
                return;
            }
        }
    }

    /// Looks at everything; does nothing yet.
    fn look(
        &self,
        state: &Arc<v1::ManagerState>,
        term: u64,
        schedule: &mut Schedule,
    ) -> Result<Found, Error> {
        let (desk, now) = self.manager.desk(term)?;
        let told = state
            .nodes
            .iter()
            .filter_map(|node| Some((id_of(node), desk.sight.table_version(node)?)))
            .collect();
        let silent = silent(state, &desk.sight, now.mono_ms);
        let actions = executor::next(state, &desk.sight, now);
        let quiet = silent.is_empty() && !actions.iter().any(|a| matches!(a, Action::Propose(_)));
        let proposals = if quiet {
            let damaged = desk.sight.damaged(state);
            schedule.next(state, &damaged, now.group_ms)
        } else {
            // What is planned shall be planned from the state that these lead to.
            silent
        };
        Ok(Found { proposals, actions, told, now })
    }

    async fn propose(&self, command: v1::ManagerCommand) -> Result<(), Error> {
        let Some(command) = command.command else { return Ok(()) };
        let proposed = self.manager.propose(command).await;
        proposed.map(drop).inspect_err(|error| {
            tracing::info!(%error, "a change of the cluster was not made");
        })
    }
}

/// The group that an action is about, if it is one: a group has one move under way.
fn group_of(state: &v1::ManagerState, action: &Action) -> Option<u64> {
    match action {
        Action::Tell(tell) => Some(tell.group),
        Action::Propose(command) => match &command.command {
            Some(Command::Advance(step)) => {
                let mut moves = state.unfinished();
                moves.find(|known| known.id == step.id).map(|known| known.group)
            }
            Some(Command::Note(told)) => told.group,
            _ => None,
        },
    }
}

/// Whether the state refused the change, rather than that nothing can be stored now.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind, ErrorKind::NotReady { .. } | ErrorKind::BadRequest { .. })
}

/// Nodes that are up in the state and were not heard for too long.
fn silent(state: &v1::ManagerState, sight: &Sight, now_ms: u64) -> Vec<v1::ManagerCommand> {
    let up = state.nodes.iter().filter(|node| is_up(node));
    up.filter(|node| sight.silent_ms(node, now_ms) >= SILENT_MS)
        .map(|node| {
            let silent = v1::NodeSilent { node: id_of(node), incarnation: node.incarnation };
            v1::ManagerCommand { command: Some(Command::Silent(silent)) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::from_plan;
    use crate::testing::{plan_of, put};

    #[test]
    fn a_refused_proposal_holds_up_its_own_group_only() {
        let mut state = from_plan(&plan_of(4)).unwrap();
        let step = |group: &v1::GroupRecord| v1::Move {
            group: group.id,
            from: Some(group.members[0]),
            ..Default::default()
        };
        let moves: Vec<v1::Move> = state.groups.iter().take(2).map(step).collect();
        let table_version = state.table_version;
        let plan = v1::AddMoves { plan: 1, table_version, moves, ..Default::default() };
        put(&mut state, Command::AddMoves(plan), 5).unwrap();
        let about = |command| {
            let command = Some(command);
            group_of(&state, &Action::Propose(v1::ManagerCommand { command }))
        };
        for (step, group) in state.moves.iter().zip(&state.groups) {
            let advance = v1::AdvanceMove { id: step.id, ..Default::default() };
            assert_eq!(about(Command::Advance(advance)), Some(group.id));
        }
        assert_eq!(about(Command::Observe(v1::ObserveGroups::default())), None);
        let tell = crate::sight::Tell {
            node: 1,
            incarnation: 7,
            group: 44,
            generation: 1,
            command: v1::command_request::Command::Create(v1::CreateReplica { replica: 3 }),
        };
        assert_eq!(group_of(&state, &Action::Tell(tell)), Some(44));

        let stale = Error::from(&crate::command::Refusal::Stale("it went on".to_owned()));
        assert!(is_refusal(&stale));
        assert!(!is_refusal(&Error::refused(ErrorKind::NotLeader { leader: None })));
        assert!(!is_refusal(&Error::unknown(ErrorKind::OutcomeUnknown)));
    }
}
