//! What is left over: memberships that stayed joint, learners that no move wants, and replicas that
//! no group has.
//!
//! A membership is left joint when the leader that was changing it dies between the joint entry and
//! the uniform one. The group works, but nothing can be said of it until somebody asks its leader
//! for another change. It is asked for one that changes nothing, so that this serves every move, and
//! groups without any. A leader that the membership to come does not hold refuses: leadership is
//! handed over first (H3), and the next leader asked.
//!
//! They come from moves that ended while a node was away, and from changes of a deposed leader. A
//! learner without a move is removed (H6). A replica that a node reports and nobody expects is one
//! of three things. Its group's membership holds it: then it is a member, and becomes known by
//! that. The committed, uniform membership of its group does not hold it: then it is destroyed on
//! the proof that its node gets from the group itself, or, if it never was a member, it is cancelled
//! like the newcomer of a move. Or nobody can tell: then it stays, and a decision says so once. That
//! the manager's table does not know a replica is never a reason (H4).
//!
//! # What a former manager has begun
//!
//! A manager that was made anew knows nothing of the moves of the one before. A replica that was made for
//! one of them, and did not become a member, would stay for ever, and keep every other one of its group
//! from its node. It is cancelled as well, and this is why no vote is lost by that:
//!
//! - *Its node* destroys it only if its own log and state, which must be whole, show no membership that
//!   ever held it. A replica is given a vote only after its digest at an entry was compared, so by then it
//!   holds the earlier entry that made it a learner. So one that has a vote, or that a command on its way
//!   could still give one, is not destroyed.
//! - *Its group's leader* has confirmed just before, by a strict read, that the membership does not hold
//!   it. The command for that is of this reign, which fences off every earlier one at that node; what of
//!   them was under way there has ended, for a node carries out one change of a group at a time.
//! - *Every node that votes* in the group, but for those that are dead, has told that it obeys this reign, or
//!   a later one: no command of a former manager begins at any of them any more, whoever leads next. What a
//!   former leader has appended stands in the log of the present one, so that the read shows it, or is lost.
//!   Of a dead one that comes back the same is true as of a change that was begun before, below.
//!
//! What is left is a change that a former leader began before, and that its group takes only when it leads
//! again: a learner without a replica, which is removed like any that no move wants.
//!
//! # Replicas that cannot tell
//!
//! A replica whose log or state is lost cannot tell when it had a seat, so its node cannot tell which
//! membership is later. For an id that this manager gave it names one itself: the settled membership
//! that the group's leader reports. An id that is in no move gets no seat any more, so neither that
//! membership nor any later one holds it. Of other ids the manager knows nothing, and they stay.

use std::collections::BTreeSet;

use annulus_proto::v1;
use annulus_proto::v1::command_request::Command;
use annulus_proto::v1::manager_command::Command as Change;

use super::leads::TRY_MS;
use super::{Asked, RETRY_MS, Round, seat_in};
use crate::planning::is_dead;
use crate::sight::Seen;
use crate::state::{StateExt, seat_of};

/// Between two attempts to clear the same thing up.
const CLEAR_RETRY_MS: u64 = 5_000;

impl Round<'_> {
    /// `observed`: groups whose stored membership is about to change; they come next time.
    pub(super) fn clear_up(&mut self, observed: &BTreeSet<u64>) {
        let expected: BTreeSet<u64> = self
            .state
            .unfinished()
            .flat_map(|step| [step.from, step.to])
            .flatten()
            .map(|seat| seat.replica)
            .collect();
        for record in self.state.all_groups().filter(|group| !observed.contains(&group.id)) {
            if let Some(leader) = self.leader(record.id) {
                self.finish_joint(record, leader);
                self.remove_learners(record, leader, &expected);
            }
        }
        let (state, sight, now_ms) = (self.state, self.sight, self.now.mono_ms);
        for seen in sight.fresh(state, now_ms) {
            let (group, replica) = (seen.report.group, seen.report.replica);
            if expected.contains(&replica) || observed.contains(&group) {
                continue;
            }
            match self.group(group) {
                Some(record) if seat_of(record, replica).is_some() => {}
                Some(record) => self.clear_stray(record, seen),
                None => self.note(seen, "the manager knows no such group"),
            }
        }
    }

    fn finish_joint(&mut self, record: &v1::GroupRecord, leader: &Seen) {
        let report = &leader.report;
        if !report.joint {
            return;
        }
        let leaves = self.state.running().any(|step| {
            step.group == record.id
                && step.state() == v1::MoveState::Swap
                && step.from.is_some_and(|from| from.replica == report.replica)
        });
        let passed = self.sight.unsettled_ms(record.id, self.now.mono_ms) / TRY_MS;
        let successor = self.successor(leader, record, passed);
        if let Some(node) = successor.filter(|_| leaves) {
            return self.transfer(leader, record, node);
        }
        // It is a member already. A change that names nothing at all would not be taken.
        let own = v1::Seat { replica: report.replica, node: leader.node };
        let command = Command::Change(v1::ChangeMembership {
            membership_index: report.membership_index,
            add_learner: Some(own),
            ..Default::default()
        });
        let tell = self.tell(leader.node, record, command);
        let Asked::Failed = self.ask(tell, RETRY_MS) else { return };
        // Perhaps it is to leave, which its report does not say.
        if let Some(node) = successor {
            self.transfer(leader, record, node);
        }
    }

    fn remove_learners(
        &mut self,
        record: &v1::GroupRecord,
        leader: &Seen,
        expected: &BTreeSet<u64>,
    ) {
        if leader.report.joint || !leader.report.membership_committed {
            return;
        }
        let mut learners = leader.report.seats.iter().filter(|seat| !seat.voter);
        let Some(seat) = learners.find(|seat| !expected.contains(&seat.replica)) else { return };
        let command = Command::Change(v1::ChangeMembership {
            membership_index: leader.report.membership_index,
            remove: Some(v1::Seat { replica: seat.replica, node: seat.node }),
            ..Default::default()
        });
        let tell = self.tell(leader.node, record, command);
        self.ask(tell, CLEAR_RETRY_MS);
    }

    fn clear_stray(&mut self, record: &v1::GroupRecord, seen: &Seen) {
        let Some(leader) = self.leader(record.id) else {
            return self
                .note(seen, "its group has no leader that could say whether it is a member");
        };
        let report = &leader.report;
        let replica = seen.report.replica;
        if report.joint || !report.membership_committed || seat_in(report, replica).is_some() {
            return;
        }
        let is_own = self.state.allocated(replica);
        let membership_index = if is_own { record.membership_index } else { 0 };
        let command = Command::Retire(v1::RetireReplica { replica, membership_index });
        let tell = self.tell(seen.node, record, command);
        let Asked::Failed = self.ask(tell, CLEAR_RETRY_MS) else { return };
        // Its node has no proof. Perhaps it never was a member.
        // A voter that is gone may obey a former manager at most in bringing the replica in as a learner,
        // which is removed then; waiting for its word could be for ever.
        let is_gone = |node: u32| {
            let known = self.state.node(node);
            known.is_none_or(|known| is_dead(self.state, known, self.now.group_ms))
        };
        let mut voters = report.seats.iter().filter(|seat| seat.voter && !is_gone(seat.node));
        if !is_own && !voters.all(|seat| self.sight.obeys(self.state, seat.node)) {
            let why = "its group does not have it, its node has no proof of that, and a voter may obey \
                       a former manager";
            return self.note(seen, why);
        }
        let seat = v1::MemberRoute { node: seen.node, replica, learner: false };
        if self.is_let_go(seat, record, leader) {
            let command = Command::Cancel(v1::CancelReplica { replica });
            let tell = self.tell(seen.node, record, command);
            let is_closed = seen.absent || !seen.report.halted.is_empty();
            if let Asked::Failed = self.ask(tell, CLEAR_RETRY_MS)
                && is_closed
                && !is_own
            {
                self.note(
                    seen,
                    "its group does not have it, and what it was does not read any more",
                );
            }
        }
    }

    /// Tells people, once.
    fn note(&mut self, seen: &Seen, why: &str) {
        let (group, replica, node) = (seen.report.group, seen.report.replica, seen.node);
        let what = format!("node {node} holds replica {replica} of group {group}; it stays");
        if self.state.history.iter().any(|known| known.what == what && known.why == why) {
            return;
        }
        self.propose(Change::Note(v1::Decision {
            what,
            why: why.to_owned(),
            node,
            group: Some(group),
            ..Default::default()
        }));
    }
}
