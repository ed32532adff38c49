//! Who leads: moves that hand leadership over, the step of a reseat that takes it off the leaving
//! member (H3), and homes that lead their groups again.
//!
//! Whether a transfer succeeds is for the one that is to lead to say. So each voter that could gets
//! [`TRY_MS`], the best first, and after [`PATIENCE_MS`] the move is given up; what it was for is
//! planned again.
//!
//! A group led by another member than its home works as well, so going home is no move: it is done
//! one group a second, those that were tried longest ago first, and not again within
//! [`HOME_RETRY_MS`], whatever came of it. Only a group with a move of its own is left alone.

use std::collections::BTreeSet;

use annulus_proto::v1;
use annulus_proto::v1::MoveState;
use annulus_proto::v1::command_request::Command;

use super::health::Spares;
use super::{Newcomer, PATIENCE_MS, Round, is_near, seat_in};
use crate::sight::Seen;
use crate::state::{StateExt, is_up, seats_on};

/// Who is to take leadership over gets so long, then another one is tried, milliseconds.
pub(super) const TRY_MS: u64 = 20_000;
/// So long a move may be in a state in which leadership comes back again and again, milliseconds.
const FLAPS_MS: u64 = 10 * PATIENCE_MS;
/// Between two transfers of the same move.
const TRANSFER_RETRY_MS: u64 = 2_000;
/// Between two groups that go home.
const HOME_PACE_MS: u64 = 1_000;
/// Between two attempts to take the same group home.
const HOME_RETRY_MS: u64 = 5_000;
/// A leadership that is younger is left alone: it came about for a reason that may still hold.
const SETTLED_MS: u64 = 3_000;
/// Groups go home only to a node that was heard within two heartbeats and a little.
const HEARD_MS: u64 = 1_200;

impl Round<'_> {
    /// A transfer or a rehome.
    pub(super) fn hand_over(&mut self, step: &v1::Move, record: &v1::GroupRecord) {
        let Some(to) = step.to else { return };
        let newcomer = self.newcomer(step);
        if newcomer == Newcomer::Gone {
            return self.advance(step, MoveState::Cancelled, "its node is gone");
        }
        let Some(leader) = self.leader(step.group) else {
            if self.is_unsettled(step.group) {
                return self.advance(step, MoveState::Cancelled, "its group has no leader");
            }
            return self.wait(step, "a leader of the group");
        };
        if leader.node == to.node {
            return self.advance(step, MoveState::Done, "it leads");
        }
        let votes = |seat: &v1::SeatReport| {
            seat.voter && seat.node == to.node && !self.state.is_lost(seat.replica)
        };
        if !leader.report.joint && !leader.report.seats.iter().any(votes) {
            return self.advance(step, MoveState::Cancelled, "its node has no vote in the group");
        }
        if self.tried_ms(step, leader) >= PATIENCE_MS {
            return self.advance(
                step,
                MoveState::Cancelled,
                "its node does not take leadership over",
            );
        }
        if newcomer == Newcomer::Silent {
            return self.wait(step, "its node to come back");
        }
        self.transfer(leader, record, to.node);
        self.wait(step, "leadership to be handed over");
    }

    /// For how long a leader is to hand over: since the move is in its state and it leads.
    pub(super) fn tried_ms(&self, step: &v1::Move, leader: &Seen) -> u64 {
        let in_state_ms = self.in_state_ms(step);
        if in_state_ms >= FLAPS_MS {
            return in_state_ms;
        }
        let now_ms = self.now.mono_ms;
        let leads_ms = leader.leads_since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms));
        in_state_ms.min(leads_ms)
    }

    /// Takes leadership off the member that leaves.
    pub(super) fn lead_off(&mut self, step: &v1::Move, record: &v1::GroupRecord) {
        if self.newcomer(step) == Newcomer::Gone {
            return self.advance(step, MoveState::Undo, "the new replica's node is gone");
        }
        let Some(leader) = self.settled(step) else { return };
        let report = &leader.report;
        if let Some(to) = step.to
            && seat_in(report, to.replica).is_none()
        {
            return self.advance(step, MoveState::Undo, "the group does not have the learner");
        }
        match self.spares(step, report) {
            Spares::Yes => {}
            Spares::Unheard => return self.wait(step, "the other voters to be heard"),
            Spares::No(why) => return self.advance(step, MoveState::Cancelled, why),
        }
        let leaving = step.from.filter(|from| from.replica == report.replica);
        let Some(from) = leaving else {
            return self.advance(step, MoveState::Swap, "the leaving member does not lead");
        };
        if report.seats.iter().all(|seat| !seat.voter || seat.replica == from.replica) {
            if step.to.is_none() {
                return self.advance(step, MoveState::Cancelled, "it is the last member");
            }
            return self.advance(step, MoveState::Swap, "nobody but the leaving member votes");
        }
        let tried_ms = self.tried_ms(step, leader);
        if tried_ms >= PATIENCE_MS {
            return self.give_up(step, "nobody takes leadership over");
        }
        match self.successor(leader, record, tried_ms / TRY_MS) {
            Some(node) => {
                self.transfer(leader, record, node);
                self.wait(step, "leadership to leave the member that goes");
            }
            None => self.wait(step, "a voter that can lead"),
        }
    }

    /// Tells a leader to hand over; the effect shows in reports.
    pub(super) fn transfer(&mut self, leader: &Seen, record: &v1::GroupRecord, to: u32) {
        let command = Command::Transfer(v1::TransferLeadership { to });
        let tell = self.tell(leader.node, record, command);
        self.ask(tell, TRANSFER_RETRY_MS);
    }

    /// The voter that shall lead after this leader, when `passed` others have been tried: the home
    /// first if it can, else the one that is nearest and not draining, and so on, and again.
    pub(super) fn successor(
        &self,
        leader: &Seen,
        record: &v1::GroupRecord,
        passed: u64,
    ) -> Option<u32> {
        let report = &leader.report;
        let able = report.seats.iter().filter(|seat| {
            seat.voter
                && seat.node != leader.node
                && !self.state.is_lost(seat.replica)
                && self.state.node(seat.node).is_some_and(is_up)
        });
        let order = |seat: &&v1::SeatReport| {
            let draining = self.state.node(seat.node).is_some_and(|node| node.draining);
            let away = seat.node != record.home;
            (!is_near(report, **seat), draining, away, u64::MAX - seat.matched, seat.node)
        };
        let mut able: Vec<&v1::SeatReport> = able.collect();
        able.sort_by_key(order);
        let count = u64::try_from(able.len()).unwrap_or(1).max(1);
        let place = usize::try_from(passed % count).unwrap_or(0);
        able.get(place).map(|seat| seat.node)
    }

    /// Takes at most one group home.
    pub(super) fn lead_at_home(&mut self) {
        let now_ms = self.now.mono_ms;
        let since =
            |at_ms: Option<u64>| at_ms.map_or(u64::MAX, |at_ms| now_ms.saturating_sub(at_ms));
        if self.state.settings().paused {
            return;
        }
        let moving: BTreeSet<u64> = self.state.running().map(|step| step.group).collect();
        let free = self.state.groups.iter().filter(|group| !moving.contains(&group.id));
        let mut tried: Vec<(Option<u64>, &v1::GroupRecord)> =
            free.map(|group| (self.sight.last_transfer_ms(group.id), group)).collect();
        if tried.iter().any(|(at_ms, _)| since(*at_ms) < HOME_PACE_MS) {
            return;
        }
        // The longest ago first: one that refuses for ever must not stand before the others.
        tried.sort_by_key(|(at_ms, _)| *at_ms);
        for (at_ms, record) in tried {
            if since(at_ms) < HOME_RETRY_MS {
                continue;
            }
            let Some(leader) = self.leader(record.id) else { continue };
            if since(leader.leads_since_ms) < SETTLED_MS || leader.report.joint {
                continue;
            }
            if let Some(to) = self.wanted(leader, record) {
                return self.transfer(leader, record, to);
            }
        }
    }

    /// The member that should lead and does not, although it could.
    fn wanted(&self, leader: &Seen, record: &v1::GroupRecord) -> Option<u32> {
        let is_pinned = record.pinned != 0 && self.can_lead(leader, record, record.pinned);
        let node = if is_pinned { record.pinned } else { record.home };
        (node != leader.node && self.can_lead(leader, record, node)).then_some(node)
    }

    fn can_lead(&self, leader: &Seen, record: &v1::GroupRecord, node: u32) -> bool {
        let known = self.state.node(node).filter(|known| is_up(known) && !known.draining);
        let heard = known.and_then(|known| self.sight.heard_ms(known, self.now.mono_ms));
        if heard.is_none_or(|heard_ms| heard_ms > HEARD_MS) {
            return false;
        }
        let report = &leader.report;
        seats_on(record, node).any(|member| {
            let seat = seat_in(report, member.replica);
            let own = self.sight.replica(node, member.replica, self.now.mono_ms);
            let serves = own.is_some_and(|own| !own.absent && own.report.halted.is_empty());
            serves && seat.is_some_and(|seat| seat.voter && is_near(report, seat))
        })
    }
}
