//! The way back of a reseat: the learner leaves the group, the new replica is destroyed.
//!
//! The order carries the safety (H4). First the group's leader is told, under the generation that
//! this state raised, to let the replica go; it answers only when it has confirmed that it leads,
//! so afterwards its membership is known not to hold the replica, and what was sent earlier to
//! bring it in is refused by it. (Another leader, which was not told, may still obey such a
//! command: the group then has a learner without a replica, which is removed like any that no move
//! wants. A vote needs a move in SWAP.) Only then is the node told to destroy it: as one that never
//! was a member, or, when its own log says that it was a learner once, on its group's proof.
//!
//! A newcomer that votes is not undone: a change that was under way succeeded after all, and the
//! move goes on from SWAP.
//!
//! Group or node may refuse for ever, or not be there. So the way back ends after [`PATIENCE_MS`] in
//! any case. Nothing is destroyed by that: what is left of the newcomer is a learner that no move
//! wants and a replica that its group does not have, and `strays` goes on with the same proofs.

use annulus_proto::v1;
use annulus_proto::v1::MoveState;
use annulus_proto::v1::command_request::Command;

use super::{Asked, Newcomer, PATIENCE_MS, RETRY_MS, Round, seat_in};

/// Where the way back leads, and why; or what it waits for.
type Way = Result<(MoveState, &'static str), &'static str>;

impl Round<'_> {
    pub(super) fn undo(&mut self, step: &v1::Move, record: &v1::GroupRecord) {
        match self.way_back(step, record) {
            Ok((next, why)) => self.advance(step, next, why),
            Err(what) if self.in_state_ms(step) >= PATIENCE_MS => {
                let why = format!("it has waited long enough for {what}; what is left follows");
                self.advance(step, MoveState::Cancelled, &why);
            }
            Err(what) => self.wait(step, what),
        }
    }

    fn way_back(&mut self, step: &v1::Move, record: &v1::GroupRecord) -> Way {
        let Some(to) = step.to.filter(|to| to.replica != 0) else {
            return Ok((MoveState::Cancelled, "nothing was begun"));
        };
        let Some(leader) = self.leader(step.group) else { return Err("a leader of the group") };
        let report = &leader.report;
        if report.joint || !report.membership_committed {
            return Err("the membership to settle");
        }
        if seat_in(report, to.replica).is_some_and(|seat| seat.voter) {
            return Ok((MoveState::Swap, "it votes already"));
        }
        if !self.is_let_go(to, record, leader) {
            return Err("the group to let the new replica go");
        }
        if self.newcomer(step) != Newcomer::Up {
            let why = "the new replica's node is not there; the rest follows when it comes back";
            return Ok((MoveState::Cancelled, why));
        }
        let destroyed = Ok((MoveState::Cancelled, "the new replica is destroyed"));
        let waiting = Err("the new replica to be destroyed");
        let command = Command::Cancel(v1::CancelReplica { replica: to.replica });
        let tell = self.tell(to.node, record, command);
        match self.ask(tell, RETRY_MS) {
            Asked::Done(_) => return destroyed,
            Asked::Waiting => return waiting,
            Asked::Failed | Asked::InVain => {}
        }
        // It was a learner, or its log is lost: then the membership from which on it is none counts.
        let (replica, membership_index) = (to.replica, record.membership_index);
        let command = Command::Retire(v1::RetireReplica { replica, membership_index });
        let tell = self.tell(to.node, record, command);
        match self.ask(tell, RETRY_MS) {
            Asked::Done(_) => destroyed,
            Asked::Waiting | Asked::Failed | Asked::InVain => waiting,
        }
    }

    /// Whether the group's leader just confirmed that its membership does not hold the replica; it
    /// is told to see to that.
    pub(super) fn is_let_go(
        &mut self,
        replica: v1::MemberRoute,
        record: &v1::GroupRecord,
        leader: &crate::sight::Seen,
    ) -> bool {
        let seat = v1::Seat { replica: replica.replica, node: replica.node };
        let command = Command::Change(v1::ChangeMembership {
            membership_index: leader.report.membership_index,
            remove: Some(seat),
            ..Default::default()
        });
        let tell = self.tell(leader.node, record, command);
        let Asked::Done(reply) = self.ask(tell, super::CONFIRMED_MS) else { return false };
        let without = |report: &v1::GroupReport| {
            report.membership_committed
                && !report.joint
                && seat_in(report, replica.replica).is_none()
        };
        seat_in(&leader.report, replica.replica).is_none()
            && reply.report.as_ref().is_some_and(without)
    }
}
