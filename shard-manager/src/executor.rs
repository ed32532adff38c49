//! What the leader of group 0 does next: from the stored state and what it sees to proposals and
//! commands. Pure.
//!
//! The executor has no memory. What is to be done about a move follows from its stored state, from
//! the latest reports, and from what became of the commands that were sent in this term; each may
//! be missing, and then the answer is "ask" or "wait". So a new leader goes on where the old one
//! stopped, a command that got lost is sent again, and one that arrived twice meets a node for
//! which it is done already. Nothing here counts on a command having had an effect: effects are
//! seen, in the memberships that groups report as committed.
//!
//! # The way of a reseat (H3)
//!
//! | state | what is done | it is over when |
//! | --- | --- | --- |
//! | CREATE | an empty replica is made, under the id allocated for it | the node holds it |
//! | SEED | the group's leader copies its state there (H2) | the leader says so |
//! | CATCH_UP | it joins as a learner | it has nearly all, and what the leader had before |
//! | VERIFY | its digest is compared with the leader's (E5) | they are equal; else UNDO |
//! | LEAD | who leaves hands leadership over | another one leads, or nobody else votes |
//! | SWAP | the newcomer gets a vote, who leaves loses it | a settled membership says so |
//! | RETIRE | the old replica is destroyed on its group's proof (H4) | it is; or its node is gone |
//! | UNDO | the learner leaves, and the new replica is destroyed | it is; or its node is gone |
//!
//! A newcomer votes only after SWAP, so nobody hands leadership to it before. The exception is a
//! member that leaves as the only voter: it lets the newcomer vote first, hands over, and then
//! goes.
//!
//! # What waits, and for how long
//!
//! Every state has an exit that no other party has to give:
//!
//! | what is missing | the move |
//! | --- | --- |
//! | the newcomer's node | is undone after [`PATIENCE_MS`]; ends when who came votes already |
//! | a leader, or a settled membership | is undone after [`PATIENCE_MS`]; ends if nobody comes |
//! | the success of a command | is undone when it fails for [`PATIENCE_MS`]; RETIRE is done then |
//! | progress of the learner | is undone after [`STALL_MS`]; a copy that goes on is waited for |
//! | who takes leadership over | after [`PATIENCE_MS`], all voters tried: is undone, or ends |
//! | a sound newcomer, in SWAP | is undone after [`PATIENCE_MS`]; ends when who came votes already |
//! | enough live members without who leaves, where nobody comes | ends |
//! | anything, in UNDO | ends after [`PATIENCE_MS`] |
//!
//! CREATE and SEED, where nothing was asked of the group, end at once instead of being undone when it
//! is the leader that is missing.
//!
//! A move may end while something of it is left: a learner, a replica, a change that the group makes
//! or drops when it has a leader again. That is safe, because what ends is only the manager's wish:
//! the membership is what the group says, and `strays` clears up what it does not hold, on its word
//! (H4), and finishes what is half done. What the rules then ask for is planned anew.
//!
//! How long is judged by what is stored (since when a move is in its state) and by what was seen in
//! this term (see [`Sight`]); the latter begins anew with every leader of group 0.
//!
//! No move holds up another group: one whose group has no leader takes no room at its nodes, plans are
//! made around it ([`schedule`](crate::schedule)), and homes of other groups lead. What is planned
//! waits for its turn, and for a leader of its group with a settled membership that is stored, for ever,
//! and takes nothing from anybody.
//!
//! # Invariants
//!
//! - A command is sent when the state that it belongs to is stored, never before; a change of
//!   membership names the membership that it was decided on (H6).
//! - One group has one move under way. At a node at most [`RESEATS_PER_NODE`] begin; neither nodes
//!   that are down count nor moves of groups without a leader, which do nothing.
//! - Before a replica is cancelled, its group's leader confirms that the membership does not hold
//!   it and is fenced by a higher generation, or by a later reign if a former manager gave the
//!   replica its id: no addition that is still on its way can succeed there.
//! - A replica is retired or cancelled because its own group does not have it; that the manager
//!   does not know it is no reason (H4), and neither is impatience.
//! - No live voter leaves for a newcomer whose node does not report it just now, or reports that it serves
//!   nothing.
//! - Where nobody comes for who leaves, as many live voters stay as the group should have: the number of
//!   members falls only when there are not enough nodes. (The manager's own group may be drained to fewer,
//!   H9; a majority stays there, too.)
//!
//! `reseat` and `leads` hold the states, `health` whom a group can count on, `undo` the way back, `strays`
//! what is left over from moves that ended while a node was away and from changes whose leader died,
//! `floors` what `strays` cannot clear up.

mod floors;
mod health;
mod leads;
mod reseat;
mod strays;
mod undo;

use std::collections::{BTreeMap, BTreeSet};

use annulus_proto::v1;
use annulus_proto::v1::command_request::Command;
use annulus_proto::v1::manager_command::Command as Change;
use annulus_proto::v1::{MoveKind, MoveState};

use crate::sight::{Seen, Sight, Standing, Tell};
use crate::state::{StateExt, is_up, order_members, seat_of, seats_on};
use health::Spares;

/// Reseats that may be under way at a node, coming and going.
pub const RESEATS_PER_NODE: usize = 2;
/// What does not come about in this time is given up, milliseconds: a newcomer that is down, a leader
/// of the group, a command that fails again and again; so are waiting moves by plans.
pub const PATIENCE_MS: u64 = 60_000;
/// A learner that takes nothing for so long is given up, milliseconds. Its node may be silent for
/// [`PATIENCE_MS`] of it.
pub const STALL_MS: u64 = 2 * PATIENCE_MS;
/// What a node allows for one copy of a group's state, milliseconds. A learner that has taken no
/// entry yet may be receiving one.
const COPY_MS: u64 = 600_000;
/// A replica that lacks at most so many entries is as good as caught up.
const LAG_MOST: u64 = 256;
/// After this a command without effect is sent again, milliseconds.
const RETRY_MS: u64 = 1_000;
/// How long the success of a command is taken for what still is so, milliseconds; among them a leader's
/// word that its membership does not hold a replica.
const CONFIRMED_MS: u64 = 3_000;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// To be stored. In the order given.
    Propose(v1::ManagerCommand),
    /// To be said to a node.
    Tell(Tell),
}

/// Two readings of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The leader's monotonic clock, milliseconds: the clock of its [`Sight`].
    pub mono_ms: u64,
    /// The group's time, milliseconds: the clock of what is stored.
    pub group_ms: u64,
}

/// What is to be done now. Asking again without having done it gives the same answer.
#[must_use]
pub fn next(state: &v1::ManagerState, sight: &Sight, now: Now) -> Vec<Action> {
    let groups = state.all_groups().map(|group| (group.id, group)).collect();
    let leaders = sight.leaders(state, now.mono_ms);
    let mut round = Round { state, groups, leaders, sight, now, actions: Vec::new() };
    let observed = round.observe();
    for step in state.running().filter(|step| !observed.contains(&step.group)) {
        round.go_on(step);
    }
    round.begin(&observed);
    round.lead_at_home();
    round.clear_up(&observed);
    round.tell_of_unproved(&observed);
    round.actions
}

struct Round<'a> {
    state: &'a v1::ManagerState,
    /// All groups, the manager's own too.
    groups: BTreeMap<u64, &'a v1::GroupRecord>,
    /// By group.
    leaders: BTreeMap<u64, &'a Seen>,
    sight: &'a Sight,
    now: Now,
    actions: Vec<Action>,
}

/// How the node that a move needs is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Newcomer {
    /// The move needs none.
    Nobody,
    Up,
    /// Down for a short time.
    Silent,
    /// Not to be waited for: removed, in another life, or down for too long.
    Gone,
}

/// What became of a command that [`Round::ask`] may just have sent.
enum Asked<'a> {
    Done(&'a v1::CommandReply),
    Failed,
    /// It has failed for [`PATIENCE_MS`]; only of [`Round::attempt`].
    InVain,
    Waiting,
}

impl<'a> Round<'a> {
    /// Reports what leaders say of their groups, where that is news; returns the groups whose
    /// stored membership is about to change.
    fn observe(&mut self) -> BTreeSet<u64> {
        let mut groups = Vec::new();
        let mut observed = BTreeSet::new();
        for record in self.state.all_groups() {
            let Some(leader) = self.leader(record.id) else { continue };
            let report = &leader.report;
            if report.joint || !report.membership_committed {
                continue;
            }
            let is_newer = report.membership_index > record.membership_index;
            if !is_newer && !differs(record.bytes, report.bytes) {
                continue;
            }
            if is_newer {
                observed.insert(record.id);
            }
            groups.push(sighting(record, report));
        }
        if !groups.is_empty() {
            self.propose(Change::Observe(v1::ObserveGroups { groups }));
        }
        observed
    }

    fn go_on(&mut self, step: &v1::Move) {
        let Some(record) = self.group(step.group) else { return };
        match (step.kind(), step.state()) {
            (_, MoveState::Planned | MoveState::Done | MoveState::Cancelled) => {}
            (MoveKind::Transfer | MoveKind::Rehome, _) => self.hand_over(step, record),
            (_, MoveState::Create) => self.create(step, record),
            (_, MoveState::Seed) => self.seed(step, record),
            (_, MoveState::CatchUp) => self.catch_up(step, record),
            (_, MoveState::Verify) => self.verify(step, record),
            (_, MoveState::Lead) => self.lead_off(step, record),
            (_, MoveState::Swap) => self.swap(step, record),
            (_, MoveState::Retire) => self.retire(step, record),
            (_, MoveState::Undo) => self.undo(step, record),
        }
    }

    /// Begins planned moves: the most urgent first, one of a group at a time and in its order. Only on a
    /// settled membership that is stored: those that are `observed` come next time.
    fn begin(&mut self, observed: &BTreeSet<u64>) {
        if self.state.settings().paused {
            return;
        }
        let mut taken: BTreeSet<u64> = self.state.running().map(|step| step.group).collect();
        let mut load: BTreeMap<u32, usize> = BTreeMap::new();
        for step in self.state.running().filter(|step| self.leader(step.group).is_some()) {
            for node in self.loaded(step) {
                *load.entry(node).or_default() += 1;
            }
        }
        let planned = |step: &&v1::Move| step.state() == MoveState::Planned;
        let mut planned: Vec<&'a v1::Move> = self.state.unfinished().filter(planned).collect();
        planned.sort_by_key(|step| (step.priority, step.id));
        for step in planned {
            if !taken.insert(step.group) || observed.contains(&step.group) {
                continue;
            }
            if !self.is_ready(step) {
                continue;
            }
            let nodes = self.loaded(step);
            if nodes.iter().any(|node| load.get(node).is_some_and(|n| *n >= RESEATS_PER_NODE)) {
                continue;
            }
            for node in nodes {
                *load.entry(node).or_default() += 1;
            }
            let comes = step.kind() == MoveKind::Reseat && step.to.is_some();
            let first = if comes { MoveState::Create } else { MoveState::Lead };
            self.advance(step, first, "it is its turn");
        }
    }

    /// Whether a planned move can begin as far as its group and its nodes go; says what is waited for if
    /// not, or cancels it.
    fn is_ready(&mut self, step: &v1::Move) -> bool {
        let waits = match self.premise(step) {
            Err(why) => {
                self.advance(step, MoveState::Cancelled, &why);
                return false;
            }
            Ok(()) if self.newcomer(step) == Newcomer::Silent => "its node to come back",
            Ok(()) => match self.leader(step.group).map(|leader| &leader.report) {
                None => "a leader of the group",
                Some(report) if report.joint || !report.membership_committed => {
                    "the membership to settle"
                }
                Some(report) => match self.spares(step, report) {
                    Spares::Yes => return true,
                    Spares::Unheard => "the other voters to be heard",
                    Spares::No(why) => {
                        self.advance(step, MoveState::Cancelled, why);
                        return false;
                    }
                },
            },
        };
        self.wait(step, waits);
        false
    }

    /// Whether a planned move still makes sense.
    fn premise(&self, step: &v1::Move) -> Result<(), String> {
        let Some(record) = self.group(step.group) else {
            return Err("its group is gone".to_owned());
        };
        if self.newcomer(step) == Newcomer::Gone {
            return Err("its node is gone".to_owned());
        }
        let voters = record.members.iter().filter(|member| !member.learner).count();
        match (step.kind(), step.from, step.to) {
            (MoveKind::Transfer | MoveKind::Rehome, _, Some(to)) => {
                let votes =
                    |seat: v1::MemberRoute| !seat.learner && !self.state.is_lost(seat.replica);
                if seats_on(record, to.node).any(votes) {
                    return Ok(());
                }
                Err(format!("node {} has no vote in the group", to.node))
            }
            (MoveKind::Transfer | MoveKind::Rehome, _, None) | (_, None, None) => {
                Err("it says nothing".to_owned())
            }
            (MoveKind::Reseat, Some(from), _) if seat_of(record, from.replica).is_none() => {
                Err(format!("replica {} has left already", from.replica))
            }
            (MoveKind::Reseat, Some(_), None) if voters < 2 => {
                Err("it would take the last member away".to_owned())
            }
            (MoveKind::Reseat, from, Some(to)) => {
                let in_place = from.is_some_and(|from| from.node == to.node);
                if !in_place && seats_on(record, to.node).next().is_some() {
                    return Err(format!("node {} has a seat already", to.node));
                }
                Ok(())
            }
            (MoveKind::Reseat, Some(_), None) => Ok(()),
        }
    }

    /// How the node that a move needs is doing.
    fn newcomer(&self, step: &v1::Move) -> Newcomer {
        let Some(to) = step.to else { return Newcomer::Nobody };
        let Some(node) = self.state.node(to.node) else { return Newcomer::Gone };
        if to.replica != 0 && self.state.is_lost(to.replica) {
            return Newcomer::Gone;
        }
        match node.state() {
            v1::NodeState::Up => Newcomer::Up,
            v1::NodeState::Removed => Newcomer::Gone,
            v1::NodeState::Down => {
                let down_ms = self.now.group_ms.saturating_sub(node.down_since_ms);
                if down_ms >= PATIENCE_MS { Newcomer::Gone } else { Newcomer::Silent }
            }
        }
    }

    /// The nodes at which a reseat works now: one that is down has no work with it.
    fn loaded(&self, step: &v1::Move) -> Vec<u32> {
        reseated(step).filter(|node| self.state.node(*node).is_some_and(is_up)).collect()
    }

    /// Whether the group has had no leader, or none with a settled membership, for so long that moves
    /// need not wait any more.
    fn is_unsettled(&self, group: u64) -> bool {
        self.sight.unsettled_ms(group, self.now.mono_ms) >= PATIENCE_MS
    }

    /// How long a move is in its state.
    fn in_state_ms(&self, step: &v1::Move) -> u64 {
        self.now.group_ms.saturating_sub(self.state.entered_ms(step))
    }

    /// Whether a learner takes nothing any more.
    fn has_stalled(&self, group: u64, seat: v1::SeatReport) -> bool {
        let most_ms = if seat.matched == 0 { COPY_MS } else { STALL_MS };
        self.sight.stalled_ms(group, seat.replica, self.now.mono_ms) >= most_ms
    }

    fn leader(&self, group: u64) -> Option<&'a Seen> {
        self.leaders.get(&group).copied()
    }

    fn group(&self, id: u64) -> Option<&'a v1::GroupRecord> {
        self.groups.get(&id).copied()
    }

    /// The leader of a group whose membership is settled. If there is none, says what is waited for,
    /// or gives the move up.
    fn settled(&mut self, step: &v1::Move) -> Option<&'a Seen> {
        let leader = self.leader(step.group);
        let is_settled = |seen: &&Seen| !seen.report.joint && seen.report.membership_committed;
        let settled = leader.filter(is_settled);
        if settled.is_some() {
            return settled;
        }
        if self.is_unsettled(step.group) {
            self.give_up(step, "its group has no leader, or does not settle its membership");
        } else if leader.is_none() {
            self.wait(step, "a leader of the group");
        } else {
            self.wait(step, "the membership to settle");
        }
        None
    }

    /// Ends a move whose newcomer, if one comes, has no vote: by the way back if one comes.
    fn give_up(&mut self, step: &v1::Move, why: &str) {
        let comes = step.kind() == MoveKind::Reseat && step.to.is_some();
        let next = if comes { MoveState::Undo } else { MoveState::Cancelled };
        self.advance(step, next, why);
    }

    fn propose(&mut self, change: Change) {
        self.actions.push(Action::Propose(v1::ManagerCommand { command: Some(change) }));
    }

    fn advance(&mut self, step: &v1::Move, next: MoveState, why: &str) {
        self.propose(Change::Advance(v1::AdvanceMove {
            id: step.id,
            expected: step.state().into(),
            next: next.into(),
            why: why.to_owned(),
            waiting: String::new(),
            bytes_done: 0,
        }));
    }

    /// Says what a move waits for, where that is news.
    fn wait(&mut self, step: &v1::Move, what: &str) {
        if step.waiting != what {
            self.propose(Change::Advance(v1::AdvanceMove {
                id: step.id,
                expected: step.state,
                next: step.state,
                why: String::new(),
                waiting: what.to_owned(),
                bytes_done: 0,
            }));
        }
    }

    /// A command about a group for a node in its admitted life; `None` for a node that is not up.
    fn tell(&self, node: u32, record: &v1::GroupRecord, command: Command) -> Option<Tell> {
        let known = self.state.node(node).filter(|node| is_up(node))?;
        let (group, generation) = (record.id, record.generation);
        Some(Tell { node, incarnation: known.incarnation, group, generation, command })
    }

    /// What became of a command. It is sent if it never was, and again when its answer is old.
    fn ask(&mut self, tell: Option<Tell>, retry_ms: u64) -> Asked<'a> {
        let Some(tell) = tell else { return Asked::Waiting };
        let is_older = |at_ms: u64, ms: u64| self.now.mono_ms.saturating_sub(at_ms) >= ms;
        let due = |at_ms: u64| is_older(at_ms, retry_ms);
        // Longer than a round of a busy manager takes, or no round would ever see a success.
        let is_old = |at_ms: u64| is_older(at_ms, retry_ms.max(CONFIRMED_MS));
        let (again, asked) = match self.sight.standing(&tell.errand()) {
            Standing::New => (true, Asked::Waiting),
            Standing::Busy => (false, Asked::Waiting),
            Standing::Done(at_ms, _) if is_old(at_ms) => (true, Asked::Waiting),
            Standing::Done(_, reply) => (false, Asked::Done(reply)),
            Standing::Failed { at_ms, .. } => (due(at_ms), Asked::Failed),
        };
        if again {
            self.actions.push(Action::Tell(tell));
        }
        asked
    }

    /// The same for a command that the move does not wait for for ever.
    fn attempt(&mut self, tell: Option<Tell>) -> Asked<'a> {
        let standing = tell.as_ref().map(|tell| self.sight.standing(&tell.errand()));
        if let Some(Standing::Failed { since_ms, .. }) = standing
            && self.now.mono_ms.saturating_sub(since_ms) >= PATIENCE_MS
        {
            return Asked::InVain;
        }
        self.ask(tell, RETRY_MS)
    }
}

/// The nodes at which a reseat works.
fn reseated(step: &v1::Move) -> impl Iterator<Item = u32> {
    let nodes = if step.kind() == MoveKind::Reseat { [step.from, step.to] } else { [None, None] };
    let in_place = nodes[0].map(|seat| seat.node) == nodes[1].map(|seat| seat.node);
    nodes.into_iter().take(if in_place { 1 } else { 2 }).flatten().map(|seat| seat.node)
}

fn sighting(record: &v1::GroupRecord, report: &v1::GroupReport) -> v1::GroupSighting {
    let member = |seat: &v1::SeatReport| v1::MemberRoute {
        node: seat.node,
        replica: seat.replica,
        learner: !seat.voter,
    };
    let mut members: Vec<v1::MemberRoute> = report.seats.iter().map(member).collect();
    order_members(&mut members, record.home);
    v1::GroupSighting {
        group: record.id,
        membership_index: report.membership_index,
        members,
        bytes: report.bytes,
    }
}

/// Whether a size is worth an entry in the log: it changed by more than an eighth and 64 KiB.
fn differs(known: u64, seen: u64) -> bool {
    known.abs_diff(seen) > (known / 8).max(64 * 1024)
}

fn seat_in(report: &v1::GroupReport, replica: u64) -> Option<v1::SeatReport> {
    report.seats.iter().find(|seat| seat.replica == replica).copied()
}

/// Whether a seat has nearly all that its leader has.
fn is_near(report: &v1::GroupReport, seat: v1::SeatReport) -> bool {
    seat.matched > 0 && report.last_index.saturating_sub(seat.matched) <= LAG_MOST
}

#[cfg(test)]
mod tests;
