//! Who the members of a group are, and how that is changed (H3, H6).
//!
//! A membership is an entry of the log, and takes effect when it is appended. Learners come and go by one
//! entry. A change of voters takes two: a *joint* membership, in which old and new voters must agree, and
//! the *uniform* one that follows it. openraft writes the second when the first is committed; if its
//! leader dies in between the group stays joint, and works, until somebody asks for the next change.
//!
//! A change is the next step towards what is asked for, and then the next, until nothing is left to do:
//!
//! 1. a joint membership that was left behind is finished;
//! 2. the learner is added: openraft promotes nobody who is not in the membership;
//! 3. voters are promoted and removed, both in one joint change. Removed voters do not stay as learners
//!    (openraft calls that `retain`), learners that are not concerned do;
//! 4. a learner is removed.
//!
//! So repeating a change that has been made in part does the rest, and repeating one that is made does
//! nothing.
//!
//! # Invariants
//!
//! - Only a leader whose gate is open changes anything, and only if the membership in force is the one
//!   that the caller saw (H6): each entry is proposed under the condition that the one before it is still
//!   the last membership. Another index is refused, and nothing has happened then.
//! - Other voters are proposed only if a majority of them, and of the present ones, confirms a frame that
//!   left after the call: a joint membership whose second half does not answer could neither be finished
//!   nor left. One that was left behind is finished all the same, since the gate counts both halves.
//! - A leader is never removed from its own seat: in the joint membership it could lead on, and then
//!   leads without a vote (H3). It is told to give leadership away first, also where it would only finish
//!   what another began.
//! - "It is so already" is answered after a confirmation round that began after the call, and of a
//!   membership that is committed: a deposed leader cannot say it.
//! - The gate counts the voters of a membership from its append on (R1 b): see `log_store`.
//!
//! # Failure
//!
//! Whoever asks must look again after a deadline or an unknown outcome: the first of the two entries may
//! be there, or both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use annulus_proto::v1;
use annulus_proto::v1::envelope::Body;
use annulus_types::{Error, ErrorKind, MayHaveApplied, NodeId, ReplicaId};
use annulus_wal::Vote;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, PreconditionFailed, RaftError};
use openraft::{ChangeMembers, Precondition, RaftMetrics};

use crate::group::Group;
use crate::types::{LogId, Membership, Seat, StoredMembership, TypeConfig};

#[cfg(test)]
mod tests;

/// A member of a group as a replica knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeatView {
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// Whether it votes, in either half of a joint membership.
    pub voter: bool,
    /// The last entry that it is known to have flushed. Only the leader knows; 0 elsewhere.
    pub matched: u64,
}

/// The membership in force: the one last appended, committed or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembershipView {
    /// Index of its entry; 0 also while there is none.
    pub index: u64,
    /// Whether it is known to be committed.
    pub committed: bool,
    /// Whether it is joint: a change of voters is half done.
    pub joint: bool,
    /// The members, by replica.
    pub seats: Vec<SeatView>,
}

/// What shall be different. Each part is left as it is where it is so already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Joins as a learner.
    pub add_learner: Option<(ReplicaId, NodeId)>,
    /// Votes from then on; must be a learner.
    pub promote: Option<ReplicaId>,
    /// Leaves, voter or learner.
    pub remove: Option<ReplicaId>,
}

impl MembershipView {
    pub(crate) fn of(metrics: &RaftMetrics<TypeConfig>) -> Self {
        let (now, settled) = (&metrics.membership_config, &metrics.committed_membership_config);
        let is_committed = now.log_id().is_some() && now.log_id() == settled.log_id();
        Self::new(now.log_id().as_ref(), is_committed, now.membership(), metrics)
    }

    fn new(
        id: Option<&LogId>,
        committed: bool,
        membership: &Membership,
        metrics: &RaftMetrics<TypeConfig>,
    ) -> Self {
        let matched = |replica: &u64| {
            let known = metrics.replication.as_ref();
            known.and_then(|known| known.get(replica).cloned().flatten()).map_or(0, |id| id.index)
        };
        let configs = membership.get_joint_config();
        let seats = membership.nodes().map(|(replica, seat)| SeatView {
            replica: ReplicaId(*replica),
            node: seat.node,
            voter: configs.iter().any(|config| config.contains(replica)),
            matched: matched(replica),
        });
        Self {
            index: id.map_or(0, |id| id.index),
            committed,
            joint: configs.len() > 1,
            seats: seats.collect(),
        }
    }
}

/// What openraft is asked for next.
type Step = ChangeMembers<u64, Seat>;

/// The next step from a membership towards what is asked for; `None` when it is so.
fn next_step(me: ReplicaId, now: &Membership, change: &Change) -> Result<Option<Step>, Error> {
    let configs = now.get_joint_config();
    let Some(goal) = configs.last() else {
        return Err(not_ready("the group has no membership yet".to_owned()));
    };
    let is_joint = configs.len() > 1;
    if change.remove == Some(me) || (is_joint && !goal.contains(&me.0)) {
        let reason = format!("replica {me} leads and is to leave: leadership must leave it first");
        return Err(not_ready(reason));
    }
    let added = change.add_learner.map(|(replica, _)| replica);
    if change.remove.is_some() && (change.remove == change.promote || change.remove == added) {
        return Err(Error::bad_request("remove", "the same replica cannot come and leave"));
    }
    if is_joint {
        // openraft: a change that asks for nothing ends it.
        return Ok(Some(ChangeMembers::AddVoterIds(BTreeSet::new())));
    }
    if let Some((replica, node)) = change.add_learner {
        match now.get_node(&replica.0) {
            Some(seat) if seat.node != node => {
                let message = format!("replica {replica} sits on node {}", seat.node);
                return Err(Error::bad_request("add_learner", message));
            }
            Some(_) => {}
            None => {
                let learner = BTreeMap::from([(replica.0, Seat { node })]);
                return Ok(Some(ChangeMembers::AddNodes(learner)));
            }
        }
    }
    let mut voters = goal.clone();
    if let Some(promoted) = change.promote {
        if now.get_node(&promoted.0).is_none() {
            let message = format!("replica {promoted} is not a learner of the group");
            return Err(Error::bad_request("promote", message));
        }
        voters.insert(promoted.0);
    }
    if let Some(removed) = change.remove {
        voters.remove(&removed.0);
    }
    if voters.is_empty() {
        return Err(Error::bad_request("remove", "it is the last voter"));
    }
    if voters != *goal {
        return Ok(Some(ChangeMembers::ReplaceAllVoters(voters)));
    }
    let learner = change.remove.filter(|removed| now.get_node(&removed.0).is_some());
    Ok(learner.map(|removed| ChangeMembers::RemoveNodes(BTreeSet::from([removed.0]))))
}

fn not_ready(reason: String) -> Error {
    Error::refused(ErrorKind::NotReady { reason })
}

/// The membership in force is not the one that the caller saw (H6).
fn moved_on(expected: u64, found: Option<&LogId>) -> Error {
    let found = found.map_or(0, |id| id.index);
    let message = format!("the membership in force is entry {found}, not {expected}");
    Error::bad_request("membership_index", message)
}

impl Group {
    /// The membership in force, as far as this replica knows. Costs a copy of small metrics.
    #[must_use]
    pub fn membership(&self) -> MembershipView {
        MembershipView::of(&self.raft.metrics().borrow_watched().clone())
    }

    /// Makes the membership as asked for, in steps that each leave a working group, `limit` at most.
    /// `expected_index` is the membership entry that the caller has seen in force. Dropping the future
    /// loses the answer; what was proposed stays proposed.
    ///
    /// # Errors
    /// `BadRequest` on `membership_index` when another membership is in force (H6), unless what is asked
    /// for is so already; on another field when it makes no sense in this membership. `NotReady` when
    /// leadership must leave first, another change is under way, or too few of the voters that there would
    /// be answer within a lease; it names who is silent. `NotLeader`, `NoQuorum`: this replica does not lead,
    /// or its gate is shut. Nothing has happened, unless the error says that it may have: the caller looks
    /// again then, as after `OutcomeUnknown` and a deadline.
    pub async fn change_membership(
        &self,
        expected_index: u64,
        change: Change,
        limit: Duration,
    ) -> Result<MembershipView, Error> {
        let changing = Box::pin(self.make_membership(expected_index, change));
        match tokio::time::timeout(limit, changing).await {
            Ok(made) => made,
            Err(_) => Err(Error::unknown(ErrorKind::OutcomeUnknown)),
        }
    }

    async fn make_membership(
        &self,
        expected_index: u64,
        change: Change,
    ) -> Result<MembershipView, Error> {
        self.check_alive()?;
        let vote = self.sure_leadership()?;
        let me = self.replica();
        let (stored, _) = self.membership_in_force().await?;
        let (mut id, mut members) = (*stored.log_id(), stored.membership().clone());
        let Some(mut step) = next_step(me, &members, &change)? else {
            return self.made_already(vote, expected_index, &change).await;
        };
        let found = id.map_or(0, |id| id.index);
        if found != expected_index && !self.weaken.any_membership() {
            return Err(moved_on(expected_index, id.as_ref()));
        }
        let mut steps = 0;
        // What the first steps have done is not undone by a later one that fails.
        let failed = |steps: u32, error: Error| match steps {
            0 => error,
            _ => Error { may_have_applied: MayHaveApplied::Unknown, ..error },
        };
        loop {
            let answered = self.check_answers(vote, &members, &step).await;
            answered.map_err(|error| failed(steps, error))?;
            let last = Precondition::LastMembershipLogId { last_membership_log_id: id };
            let written = Box::pin(self.raft.change_membership_if(step, false, [last])).await;
            let written = written.map_err(|error| failed(steps, self.not_changed(error, id)))?;
            let Some(membership) = written.membership else {
                return Err(Error::unknown(ErrorKind::OutcomeUnknown));
            };
            steps += 1;
            tracing::info!(
                group = %self.id(),
                index = written.log_id.index,
                members = %membership,
                "membership changed"
            );
            (id, members) = (Some(written.log_id), membership);
            match next_step(me, &members, &change).map_err(|error| failed(steps, error))? {
                Some(next) => step = next,
                None => break,
            }
        }
        // It is applied here, so it is committed.
        let metrics = self.raft.metrics().borrow_watched().clone();
        Ok(MembershipView::new(id.as_ref(), true, &members, &metrics))
    }

    /// Waits until majorities of the voters that `step` leads to and of those of `now` have confirmed a
    /// frame that left after this call, for one lease at most. Other steps change no voters: for them the
    /// open gate is enough.
    async fn check_answers(&self, vote: Vote, now: &Membership, step: &Step) -> Result<(), Error> {
        let ChangeMembers::ReplaceAllVoters(goal) = step else { return Ok(()) };
        let configs = now.get_joint_config().iter().chain(std::iter::once(goal));
        let configs: Vec<BTreeSet<ReplicaId>> =
            configs.map(|ids| ids.iter().copied().map(ReplicaId).collect()).collect();
        let gate = &self.replica.gate;
        let asked = self.env.clock.boot();
        let silent = || gate.silent(vote, &configs, asked).ok_or_else(|| self.not_leader());
        if self.raft.trigger().heartbeat().await.is_err() {
            return Err(self.not_leader());
        }
        let answers = async {
            loop {
                // Begun before the look, so that nothing in between is missed.
                let changed = gate.changed();
                if silent()?.is_empty() {
                    return Ok::<(), Error>(());
                }
                changed.await;
            }
        };
        if let Ok(answered) = tokio::time::timeout(gate.lease(), answers).await {
            return answered;
        }
        let named = silent()?.into_iter().map(|id| match now.get_node(&id.0) {
            Some(seat) => format!("{id} on node {}", seat.node),
            None => id.to_string(),
        });
        let named: Vec<String> = named.collect();
        if named.is_empty() {
            return Ok(());
        }
        let reason = format!(
            "no majority of the voters to be answers: silent are replicas {}",
            named.join(", ")
        );
        Err(not_ready(reason))
    }

    /// Answers that nothing is to be done, if that is so and this replica leads beyond doubt.
    async fn made_already(
        &self,
        vote: Vote,
        expected_index: u64,
        change: &Change,
    ) -> Result<MembershipView, Error> {
        self.strict_index(vote).await?;
        let mut metrics = self.raft.metrics();
        loop {
            let (stored, is_committed) = self.membership_in_force().await?;
            if next_step(self.replica(), stored.membership(), change)?.is_some() {
                return Err(moved_on(expected_index, stored.log_id().as_ref()));
            }
            if is_committed {
                let known = metrics.borrow_watched().clone();
                let id = stored.log_id().as_ref();
                return Ok(MembershipView::new(id, true, stored.membership(), &known));
            }
            if metrics.changed().await.is_err() {
                return Err(self.stopped());
            }
        }
    }

    /// From openraft's core itself: its metrics are a little behind.
    async fn membership_in_force(&self) -> Result<(Arc<StoredMembership>, bool), Error> {
        let look = self.raft.with_raft_state(|state| {
            let (now, settled) =
                (state.membership_state.effective(), state.membership_state.committed());
            (Arc::clone(now), now.log_id() == settled.log_id())
        });
        look.await.map_err(|_| self.stopped())
    }

    pub(crate) fn stopped(&self) -> Error {
        Error::unknown(ErrorKind::NotReady { reason: "the replica has stopped".to_owned() })
    }

    /// The vote under which this replica leads, if its gate is open and it is not about to give
    /// leadership away.
    pub(crate) fn sure_leadership(&self) -> Result<Vote, Error> {
        let view = self.replica.gate.view();
        let Some(vote) = view.leading else { return Err(self.not_leader()) };
        if view.latched || self.packer.is_held() {
            return Err(not_ready("leadership is being given away".to_owned()));
        }
        if !self.replica.gate.is_open(self.env.clock.boot()) {
            return Err(Error::refused(ErrorKind::NoQuorum));
        }
        Ok(vote)
    }

    /// What openraft's refusal of a change under the condition `on` means.
    fn not_changed(
        &self,
        error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>,
        on: Option<LogId>,
    ) -> Error {
        let RaftError::APIError(error) = error else { return self.stopped() };
        match error {
            // Of the joint entry or of the one behind it: nobody can tell from here.
            ClientWriteError::ForwardToLeader(_) => {
                Error { may_have_applied: MayHaveApplied::Unknown, ..self.not_leader() }
            }
            ClientWriteError::PreconditionFailed(
                PreconditionFailed::LastMembershipLogIdMismatch { expected, actual },
            ) if expected == on => moved_on(on.map_or(0, |id| id.index), actual.as_ref()),
            ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => {
                not_ready("another change of the membership is under way".to_owned())
            }
            ClientWriteError::ChangeMembershipError(error) => {
                Error::bad_request("change", error.to_string())
            }
            ClientWriteError::PreconditionFailed(_) | ClientWriteError::LogEntryDiscarded(_) => {
                Error::unknown(ErrorKind::OutcomeUnknown)
            }
        }
    }

    /// What another node is told of the membership.
    pub(crate) fn tell_membership(&self) -> Body {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let MembershipView { index, committed, joint, seats } = MembershipView::of(&metrics);
        let seats = seats.into_iter().map(|seat| v1::MemberSeat {
            replica: seat.replica.0,
            node: seat.node.0,
            voter: seat.voter,
        });
        Body::MembershipReply(v1::MembershipReply {
            replica: self.replica().0,
            index,
            committed,
            joint,
            seats: seats.collect(),
            last_index: metrics.last_log_index,
        })
    }
}
