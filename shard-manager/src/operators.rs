//! What operators ask of the manager: the methods behind the `Admin` service.
//!
//! Every change is one command: it is stored before it is answered, and a dry run applies it to a
//! copy of the state and stores nothing. Reads are of the leader, after it proved that it still
//! leads.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::explain_request::About;
use annulus_proto::v1::manager_command::Command;
use annulus_types::{Error, ErrorKind};
use bytes::Bytes;
use prost::Message as _;

use crate::command::apply;
use crate::manager::Manager;
use crate::planning::{Figures, plan};
use crate::state::{StateExt, id_of, seats_on};

/// A read that the leader cannot vouch for within this is refused.
const READ_LIMIT: Duration = Duration::from_secs(2);

impl Manager {
    /// The state, no older than this call.
    async fn read(&self) -> Result<(u64, Arc<v1::ManagerState>), Error> {
        let term = self.leading()?;
        self.group.read_grant(false, READ_LIMIT).await?;
        Ok((term, self.state()?))
    }

    async fn change(&self, command: Command, dry_run: bool) -> Result<v1::ChangeReply, Error> {
        let outcome = if dry_run {
            let (term, state) = self.read().await?;
            let now_ms = self.desk(term)?.1.group_ms;
            let command = v1::ManagerCommand { command: Some(command) };
            let applied = apply(Some(state.as_ref()), &command, now_ms);
            applied.map_err(|refusal| Error::from(&refusal))?.1
        } else {
            self.leading()?;
            self.propose(command).await?
        };
        Ok(v1::ChangeReply { id: outcome.id, decisions: outcome.decisions })
    }

    /// What the manager thinks of the nodes, and what is under way.
    ///
    /// # Errors
    /// `NotLeader` elsewhere, `NoQuorum`, or `NotReady` before the cluster is made; so for all
    /// reads.
    pub async fn overview(&self) -> Result<v1::OverviewReply, Error> {
        let (term, state) = self.read().await?;
        let (desk, now) = self.desk(term)?;
        let node = |record: &v1::NodeRecord| {
            let id = id_of(record);
            let seats = state.groups.iter().map(|group| seats_on(group, id).count()).sum::<usize>();
            v1::NodeOverview {
                node: id,
                state: record.state,
                draining: record.draining,
                seats: u32::try_from(seats).unwrap_or(u32::MAX),
                silent_ms: desk.sight.heard_ms(record, now.mono_ms),
            }
        };
        let manager = state.manager.as_ref().map(|group| group.members.clone());
        Ok(v1::OverviewReply {
            leader: self.host.options().info.id.0,
            term,
            era: state.era,
            paused: state.settings().paused,
            table_version: state.table_version,
            nodes: state.nodes.iter().map(node).collect(),
            manager: manager.unwrap_or_default(),
            moves: state.unfinished().cloned().collect(),
        })
    }

    /// Drains a node or ends that, removes it, changes its weight or zone.
    ///
    /// # Errors
    /// `BadRequest` when that cannot be; else as any proposal. So for all changes.
    pub async fn change_node(
        &self,
        change: v1::NodeChange,
        dry_run: bool,
    ) -> Result<v1::ChangeReply, Error> {
        self.change(Command::ChangeNode(change), dry_run).await
    }

    /// The settings.
    ///
    /// # Errors
    /// See [`Manager::overview`].
    pub async fn settings(&self) -> Result<v1::ClusterSettings, Error> {
        Ok(self.read().await?.1.settings())
    }

    /// Changes settings, the pause of all moves among them.
    ///
    /// # Errors
    /// See [`Manager::change_node`].
    pub async fn change_settings(
        &self,
        settings: v1::SettingsChange,
        dry_run: bool,
    ) -> Result<v1::ChangeReply, Error> {
        self.change(Command::Settings(settings), dry_run).await
    }

    async fn planned(&self) -> Result<(Arc<v1::ManagerState>, v1::RebalancePlan), Error> {
        let (term, state) = self.read().await?;
        check_plannable(&state)?;
        let (damaged, now_ms) = {
            let (desk, now) = self.desk(term)?;
            (desk.sight.damaged(&state), now.group_ms)
        };
        let planned = plan(&state, &damaged, now_ms, Figures::Wanted);
        Ok((state, planned))
    }

    /// What a rebalance would do now. Groups that have a move which has not ended are left out, and
    /// it says how many.
    ///
    /// # Errors
    /// See [`Manager::overview`]; `NotReady` while every group has a move.
    pub async fn plan(&self) -> Result<v1::RebalancePlan, Error> {
        Ok(self.planned().await?.1)
    }

    /// Starts the plan of this name.
    ///
    /// # Errors
    /// See [`Manager::change_node`]; `BadRequest` when another plan would be shown now, `NotReady`
    /// while every group has a move.
    pub async fn apply_plan(&self, plan: u64, dry_run: bool) -> Result<v1::ChangeReply, Error> {
        let (state, planned) = self.planned().await?;
        if planned.plan != plan {
            let message = format!(
                "the cluster has changed since plan {plan} was shown; now it would be {}",
                planned.plan
            );
            return Err(Error::bad_request("plan", message));
        }
        let moves = v1::AddMoves {
            plan,
            table_version: state.table_version,
            moves: planned.steps,
            why: "an operator applied it".to_owned(),
            applied: true,
        };
        self.change(Command::AddMoves(moves), dry_run).await
    }

    /// The moves: those that have not ended, or all that are kept.
    ///
    /// # Errors
    /// See [`Manager::overview`].
    pub async fn moves(&self, ended: bool) -> Result<Vec<v1::Move>, Error> {
        let (_, state) = self.read().await?;
        if ended {
            return Ok(state.moves.clone());
        }
        Ok(state.unfinished().cloned().collect())
    }

    /// Undoes a move that has not begun to change the membership. Of one that has it says so: it
    /// completes, or ends by itself.
    ///
    /// # Errors
    /// See [`Manager::change_node`].
    pub async fn cancel_move(&self, id: u64, dry_run: bool) -> Result<v1::ChangeReply, Error> {
        self.change(Command::Cancel(v1::CancelMove { id }), dry_run).await
    }

    /// Hands the leadership of a group to a member, which keeps it until
    /// [`Manager::balance_leaders`].
    ///
    /// # Errors
    /// See [`Manager::change_node`].
    pub async fn move_leader(
        &self,
        group: u64,
        node: u32,
        dry_run: bool,
    ) -> Result<v1::ChangeReply, Error> {
        self.change(Command::Transfer(v1::TransferTo { group, node }), dry_run).await
    }

    /// Lets homes lead their groups again.
    ///
    /// # Errors
    /// See [`Manager::change_node`].
    pub async fn balance_leaders(&self, dry_run: bool) -> Result<v1::ChangeReply, Error> {
        self.change(Command::BalanceLeaders(v1::Plain {}), dry_run).await
    }

    /// Everything that the manager keeps, as an encoded `ManagerState`.
    ///
    /// # Errors
    /// See [`Manager::overview`].
    pub async fn export(&self) -> Result<Bytes, Error> {
        let (_, state) = self.read().await?;
        Ok(Bytes::from(state.encode_to_vec()))
    }

    /// The decisions and moves that concern one thing, or all.
    ///
    /// # Errors
    /// See [`Manager::overview`]; `BadRequest` for a shard that does not exist.
    pub async fn explain(&self, about: Option<About>) -> Result<v1::ExplainReply, Error> {
        let (_, state) = self.read().await?;
        explain(&state, about)
    }
}

/// Refuses a plan that could say nothing.
fn check_plannable(state: &v1::ManagerState) -> Result<(), Error> {
    let moving: BTreeSet<u64> = state.unfinished().map(|step| step.group).collect();
    if moving.is_empty() || state.groups.iter().any(|group| !moving.contains(&group.id)) {
        return Ok(());
    }
    let reason = "every group has a move that has not ended; plan when some have".to_owned();
    Err(Error::refused(ErrorKind::NotReady { reason }))
}

/// See [`Manager::explain`].
fn explain(state: &v1::ManagerState, about: Option<About>) -> Result<v1::ExplainReply, Error> {
    let about = match about {
        Some(About::Shard(id)) => {
            let shard = state.shards.iter().find(|shard| shard.id == id);
            let Some(shard) = shard else {
                return Err(Error::bad_request("shard", format!("there is no shard {id}")));
            };
            Some(About::Group(shard.group))
        }
        other => other,
    };
    let touches = |step: &&v1::Move| match about {
        None | Some(About::Shard(_)) => true,
        Some(About::Group(group)) => step.group == group,
        Some(About::MoveId(id)) => step.id == id,
        Some(About::Node(node)) => {
            [step.from, step.to].into_iter().flatten().any(|seat| seat.node == node)
        }
    };
    let moves: Vec<v1::Move> = state.moves.iter().filter(touches).cloned().collect();
    let of_node: BTreeSet<u64> = match about {
        Some(About::Node(_)) => moves.iter().map(|step| step.id).collect(),
        _ => BTreeSet::new(),
    };
    let concerns = |decision: &&v1::Decision| match about {
        None | Some(About::Shard(_)) => true,
        Some(About::Group(group)) => decision.group == Some(group),
        Some(About::MoveId(id)) => decision.move_id == id,
        Some(About::Node(node)) => decision.node == node || of_node.contains(&decision.move_id),
    };
    let decisions = state.history.iter().filter(concerns).cloned().collect();
    Ok(v1::ExplainReply { decisions, moves })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::from_plan;
    use crate::testing::plan_of;

    #[test]
    fn a_plan_is_refused_only_while_every_group_has_a_move() {
        let mut state = from_plan(&plan_of(3)).unwrap();
        assert!(check_plannable(&state).is_ok());
        let step = |group: &v1::GroupRecord| v1::Move { group: group.id, ..Default::default() };
        let moves: Vec<v1::Move> = state.groups.iter().map(step).collect();
        state.moves = moves[1..].to_vec();
        assert!(check_plannable(&state).is_ok());
        state.moves = moves;
        let refused = check_plannable(&state).unwrap_err();
        assert!(matches!(refused.kind, ErrorKind::NotReady { .. }));
        state.moves[0].set_state(v1::MoveState::Cancelled);
        assert!(check_plannable(&state).is_ok());
    }

    #[test]
    fn decisions_are_found_by_what_they_are_about() {
        let mut state = from_plan(&plan_of(3)).unwrap();
        let group = state.shards[5].group;
        let seat = |node| Some(v1::MemberRoute { node, replica: 1, learner: false });
        state.moves.push(v1::Move {
            id: 77,
            group,
            from: seat(1),
            to: seat(2),
            ..Default::default()
        });
        let decision = |what: &str| v1::Decision { what: what.to_owned(), ..Default::default() };
        state.history = vec![
            v1::Decision { node: 2, ..decision("node 2 joins") },
            v1::Decision { node: 2, group: Some(group), move_id: 77, ..decision("begins") },
            v1::Decision { group: Some(0), ..decision("the manager's own") },
        ];
        let found = |about| {
            let reply = explain(&state, about).unwrap();
            let what = reply.decisions.into_iter().map(|decision| decision.what);
            (what.collect::<Vec<_>>().join("; "), reply.moves.len())
        };
        assert_eq!(found(Some(About::Shard(5))), ("begins".to_owned(), 1));
        assert_eq!(found(Some(About::Group(0))), ("the manager's own".to_owned(), 0));
        assert_eq!(found(Some(About::Node(2))), ("node 2 joins; begins".to_owned(), 1));
        // Who leaves is touched, too.
        assert_eq!(found(Some(About::Node(1))), ("begins".to_owned(), 1));
        assert_eq!(found(Some(About::MoveId(77))), ("begins".to_owned(), 1));
        assert_eq!(found(None).1, 1);
        assert!(explain(&state, Some(About::Shard(128))).is_err());
    }
}
