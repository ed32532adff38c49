//! The states of a reseat, but for leadership and the way back. See the text of the executor.

use annulus_proto::v1;
use annulus_proto::v1::MoveState;
use annulus_proto::v1::command_request::Command;
use annulus_proto::v1::manager_command::Command as Change;

use super::health::{Health, Spares};
use super::leads::TRY_MS;
use super::{Asked, COPY_MS, Newcomer, PATIENCE_MS, Round, is_near, seat_in};
use crate::sight::Seen;
use crate::state::{StateExt, is_up};

/// Longest time in SEED when attempts last long and fail, milliseconds: two of them, and a third that
/// an earlier leader of group 0 began.
const SEED_MS: u64 = 3 * COPY_MS;

impl Round<'_> {
    /// Whether the newcomer can be worked with; the move is undone when it is gone.
    fn newcomer_is_up(&mut self, step: &v1::Move) -> bool {
        match self.newcomer(step) {
            Newcomer::Up => true,
            Newcomer::Nobody => false,
            Newcomer::Silent => {
                self.wait(step, "the new replica's node to come back");
                false
            }
            Newcomer::Gone => {
                self.advance(step, MoveState::Undo, "the new replica's node is gone");
                false
            }
        }
    }

    /// Ends a move whose group has had no leader for too long. Only where no change of the membership
    /// was ever asked for: the new replica, if it is there, is cleared up with the group's word, when
    /// it has a leader again.
    fn ends_unsettled(&mut self, step: &v1::Move) -> bool {
        let ends = self.is_unsettled(step.group);
        if ends {
            self.advance(step, MoveState::Cancelled, "its group has no leader");
        }
        ends
    }

    pub(super) fn create(&mut self, step: &v1::Move, record: &v1::GroupRecord) {
        if self.ends_unsettled(step) {
            return;
        }
        let Some(to) = step.to.filter(|_| self.newcomer_is_up(step)) else { return };
        let command = Command::Create(v1::CreateReplica { replica: to.replica });
        let tell = self.tell(to.node, record, command);
        match self.attempt(tell) {
            Asked::Done(_) => self.advance(step, MoveState::Seed, "the empty replica exists"),
            Asked::Failed => self.wait(step, "the node to create the replica"),
            Asked::InVain => self.give_up(step, "its node does not create the new replica"),
            Asked::Waiting => {}
        }
    }

    pub(super) fn seed(&mut self, step: &v1::Move, record: &v1::GroupRecord) {
        if self.ends_unsettled(step) {
            return;
        }
        let Some(to) = step.to.filter(|_| self.newcomer_is_up(step)) else { return };
        let Some(leader) = self.leader(step.group) else {
            return self.wait(step, "a leader of the group");
        };
        let to = v1::Seat { replica: to.replica, node: to.node };
        let command = Command::Seed(v1::SeedReplica { to: Some(to) });
        let tell = self.tell(leader.node, record, command);
        match self.attempt(tell) {
            Asked::Done(reply) => self.propose(Change::Advance(v1::AdvanceMove {
                id: step.id,
                expected: MoveState::Seed.into(),
                next: MoveState::CatchUp.into(),
                why: "the group's state is there".to_owned(),
                waiting: String::new(),
                bytes_done: reply.bytes,
            })),
            Asked::Failed if self.in_state_ms(step) < SEED_MS => {
                self.wait(step, "the leader to copy the group's state");
            }
            Asked::Failed | Asked::InVain => {
                self.give_up(step, "the group's state does not get to the new replica");
            }
            Asked::Waiting => {}
        }
    }

    pub(super) fn catch_up(&mut self, step: &v1::Move, record: &v1::GroupRecord) {
        let Some(to) = step.to.filter(|_| self.newcomer_is_up(step)) else { return };
        let Some(leader) = self.settled(step) else { return };
        let report = &leader.report;
        let Some(seat) = seat_in(report, to.replica) else {
            let add = v1::Seat { replica: to.replica, node: to.node };
            let command = Command::Change(v1::ChangeMembership {
                membership_index: report.membership_index,
                add_learner: Some(add),
                ..Default::default()
            });
            let tell = self.tell(leader.node, record, command);
            return match self.attempt(tell) {
                Asked::Failed => self.wait(step, "the leader to take the learner in"),
                Asked::InVain => self.give_up(step, "its group does not take the learner in"),
                Asked::Done(_) | Asked::Waiting => {}
            };
        };
        let mark = leader.earlier_index;
        if mark > 0 && seat.matched >= mark && is_near(report, seat) {
            self.advance(step, MoveState::Verify, "it has what the leader had, and nearly all");
        } else if self.has_stalled(step.group, seat) {
            self.give_up(step, "the learner takes nothing any more");
        } else {
            self.wait(step, "the learner to catch up");
        }
    }

    pub(super) fn verify(&mut self, step: &v1::Move, record: &v1::GroupRecord) {
        let Some(to) = step.to.filter(|_| self.newcomer_is_up(step)) else { return };
        let Some(leader) = self.settled(step) else { return };
        if seat_in(&leader.report, to.replica).is_none() {
            return self.advance(step, MoveState::Undo, "the group does not have the learner");
        }
        let seat = v1::Seat { replica: to.replica, node: to.node };
        let command = Command::Verify(v1::VerifyReplica { seat: Some(seat) });
        let tell = self.tell(leader.node, record, command);
        match self.attempt(tell) {
            Asked::Done(reply) if reply.equal => {
                self.advance(step, MoveState::Lead, "its digest equals the leader's");
            }
            Asked::Done(_) => {
                self.advance(step, MoveState::Undo, "its digest differs from the leader's");
            }
            Asked::Failed => self.wait(step, "the digests to be compared"),
            Asked::InVain => self.give_up(step, "the digests cannot be compared"),
            Asked::Waiting => {}
        }
    }

    pub(super) fn swap(&mut self, step: &v1::Move, record: &v1::GroupRecord) {
        let Some(leader) = self.settled(step) else { return };
        let report = &leader.report;
        let arriving = step.to.map(|to| (to, seat_in(report, to.replica)));
        let votes = arriving.is_none_or(|(_, seat)| seat.is_some_and(|seat| seat.voter));
        let leaving = step.from.and_then(|from| seat_in(report, from.replica));
        if votes && leaving.is_none() {
            let why = "the committed membership says so";
            return self.advance(step, MoveState::Retire, why);
        }
        if !self.newcomer_is_fit(step, leader, votes) {
            return;
        }
        // Who votes already is not undone: then both stay, and what to do is planned anew.
        let back = if votes { MoveState::Cancelled } else { MoveState::Undo };
        let promote = arriving
            .filter(|_| !votes)
            .map(|(to, _)| v1::Seat { replica: to.replica, node: to.node });
        let leads = leaving.is_some_and(|seat| seat.replica == report.replica);
        if leads {
            // Leadership came back to who leaves, or nobody else could take it.
            let tried_ms = self.tried_ms(step, leader);
            let successor = self.successor(leader, record, tried_ms / TRY_MS);
            if tried_ms >= PATIENCE_MS && (successor.is_some() || promote.is_none()) {
                return self.advance(step, back, "nobody takes leadership over");
            }
            if let Some(node) = successor {
                self.transfer(leader, record, node);
                return self.wait(step, "leadership to leave the member that goes");
            }
            if promote.is_none() {
                return self.wait(step, "a voter that can lead");
            }
        }
        match self.spares(step, report) {
            Spares::Yes => {}
            Spares::Unheard => return self.wait(step, "the other voters to be heard"),
            Spares::No(why) => return self.advance(step, back, why),
        }
        let leaving = leaving.filter(|_| !leads);
        let remove = leaving.map(|seat| v1::Seat { replica: seat.replica, node: seat.node });
        let command = Command::Change(v1::ChangeMembership {
            membership_index: report.membership_index,
            add_learner: None,
            promote,
            remove,
        });
        let tell = self.tell(leader.node, record, command);
        match self.attempt(tell) {
            Asked::Failed => self.wait(step, "the leader to change the membership"),
            Asked::InVain => self.advance(step, back, "the membership is not changed"),
            Asked::Done(_) | Asked::Waiting => {}
        }
    }

    /// Whether the newcomer of a move in SWAP, if one comes, can be given a vote, or be counted on
    /// when it `votes` already; says what is waited for if not, or that the move ends.
    fn newcomer_is_fit(&mut self, step: &v1::Move, leader: &Seen, votes: bool) -> bool {
        let Some(to) = step.to else { return true };
        if votes && self.newcomer(step) == Newcomer::Gone {
            let why = "the new replica's node is gone; who was to leave stays";
            self.advance(step, MoveState::Cancelled, why);
            return false;
        }
        // Who died before it votes must not be given a vote.
        if !self.newcomer_is_up(step) {
            return false;
        }
        match self.health(to.node, to.replica) {
            Health::Sound => {}
            Health::Broken if self.in_state_ms(step) >= PATIENCE_MS => {
                let why = "the new replica serves nothing, or is not there";
                let back = if votes { MoveState::Cancelled } else { MoveState::Undo };
                self.advance(step, back, why);
                return false;
            }
            Health::Unheard | Health::Broken => {
                self.wait(step, "the new replica to be reported sound");
                return false;
            }
        }
        if votes {
            return true;
        }
        match seat_in(&leader.report, to.replica) {
            Some(seat) if is_near(&leader.report, seat) => return true,
            Some(seat) if self.has_stalled(step.group, seat) => {
                self.give_up(step, "the learner takes nothing any more");
            }
            Some(_) => self.wait(step, "the learner to catch up"),
            None => self.give_up(step, "the group does not have the learner"),
        }
        false
    }

    pub(super) fn retire(&mut self, step: &v1::Move, record: &v1::GroupRecord) {
        let Some(from) = step.from else {
            return self.advance(step, MoveState::Done, "nobody had to leave");
        };
        if !self.state.node(from.node).is_some_and(is_up) {
            // What it still holds is cleared up when it comes back.
            return self.advance(step, MoveState::Done, "the old replica's node is not there");
        }
        let (replica, membership_index) = (from.replica, record.membership_index);
        let command = Command::Retire(v1::RetireReplica { replica, membership_index });
        let tell = self.tell(from.node, record, command);
        match self.attempt(tell) {
            Asked::Done(_) => self.advance(step, MoveState::Done, "the old replica is destroyed"),
            Asked::Failed => self.wait(step, "the old replica to be destroyed"),
            Asked::InVain => {
                let why = "the old replica has left; its node is told on to destroy it";
                self.advance(step, MoveState::Done, why);
            }
            Asked::Waiting => {}
        }
    }
}
