//! What the leader of group 0 has seen since it began to lead: who is heard, what replicas report,
//! what became of commands. Pure; times are milliseconds of its monotonic clock.
//!
//! Nothing of it is stored and nothing is handed on: a new leader begins with an empty sight and
//! sees the same again within a heartbeat. So nobody is found silent before a term is 3 s old.
//!
//! # Invariants
//!
//! - Only the admitted life of a node is heard.
//! - A report that is older than [`FRESH_MS`] says nothing, neither does one of a membership older
//!   than the stored one (H6).
//! - Errands are kept for a minute after their answer, reports until the node's next heartbeat.
//! - For how long something has been tried in vain is counted here, so it begins anew with every
//!   term: nothing is given up for what an earlier leader of group 0 saw.

use std::collections::{BTreeMap, BTreeSet};

use annulus_proto::v1;
use annulus_proto::v1::command_request::Command;
use annulus_raft::Reign;
use annulus_types::{Error, ErrorKind};

use crate::state::{StateExt, id_of, is_up};

/// A node that is not heard for this long is down.
pub const SILENT_MS: u64 = 3_000;
/// A life that is not heard for this long may be replaced by another one (N1).
pub const FORMER_MS: u64 = 10_000;
/// How long a report tells something: four heartbeats.
pub const FRESH_MS: u64 = 2_000;
/// How long the answer to an errand is kept.
const ERRAND_MS: u64 = 60_000;
/// So a node begins its refusal of a command that it carries out already.
const UNDER_WAY: &str = "in progress";

/// A replica as it was last reported.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// What it said.
    pub report: v1::GroupReport,
    /// Its node.
    pub node: u32,
    /// When that arrived.
    pub at_ms: u64,
    /// Whether it stays closed.
    pub absent: bool,
    /// The last index that it told in its report before this one; 0 when there was none in that
    /// term.
    pub earlier_index: u64,
    /// Since when it is seen to lead in its present term; `None` when it does not lead.
    pub leads_since_ms: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Heard {
    incarnation: u64,
    at_ms: u64,
    table_version: u64,
    /// Of the manager that it obeys.
    reign: Reign,
    /// By replica.
    replicas: BTreeMap<u64, Seen>,
}

/// Which command; see [`Errand`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// [`v1::CreateReplica`].
    Create,
    /// [`v1::SeedReplica`].
    Seed,
    /// [`v1::ChangeMembership`].
    Change,
    /// [`v1::VerifyReplica`].
    Verify,
    /// [`v1::TransferLeadership`].
    Transfer,
    /// [`v1::RetireReplica`].
    Retire,
    /// [`v1::CancelReplica`].
    Cancel,
}

/// What tells one command from another, so that it is not sent twice at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Errand {
    /// The group.
    pub group: u64,
    /// Its generation.
    pub generation: u64,
    /// The node that is told.
    pub node: u32,
    /// What it is told.
    pub act: Act,
    /// The replica that it is about; the node, for a transfer.
    pub about: u64,
    /// The membership that it was decided on; 0 where that does not matter.
    pub index: u64,
}

/// A command for a node, without what only the driver knows: era and term.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tell {
    /// The node.
    pub node: u32,
    /// The life of its folder.
    pub incarnation: u64,
    /// The group.
    pub group: u64,
    /// Its generation.
    pub generation: u64,
    /// The command.
    pub command: Command,
}

impl Tell {
    /// What tells it from others.
    #[must_use]
    pub fn errand(&self) -> Errand {
        let replica = |seat: Option<v1::Seat>| seat.map_or(0, |seat| seat.replica);
        let (act, about, index) = match &self.command {
            Command::Create(create) => (Act::Create, create.replica, 0),
            Command::Seed(seed) => (Act::Seed, replica(seed.to), 0),
            Command::Change(change) => {
                let about = change.add_learner.or(change.promote).or(change.remove);
                (Act::Change, replica(about), change.membership_index)
            }
            Command::Verify(verify) => (Act::Verify, replica(verify.seat), 0),
            Command::Transfer(transfer) => (Act::Transfer, u64::from(transfer.to), 0),
            Command::Retire(retire) => (Act::Retire, retire.replica, retire.membership_index),
            Command::Cancel(cancel) => (Act::Cancel, cancel.replica, 0),
        };
        let Self { node, group, generation, .. } = *self;
        Errand { group, generation, node, act, about, index }
    }
}

/// What became of an errand.
#[derive(Clone, Debug)]
pub enum Standing<'a> {
    /// It was not sent, or that is forgotten.
    New,
    /// It is on its way.
    Busy,
    /// It is done, since then.
    Done(u64, &'a v1::CommandReply),
    /// It was refused or got lost: the first time in a row, and the last time.
    Failed {
        /// Since when it fails, attempts that are under way again included.
        since_ms: u64,
        /// When it failed last.
        at_ms: u64,
        /// Why it did.
        error: &'a Error,
    },
}

#[derive(Clone, Debug)]
struct Run {
    /// When it failed first, if it did ever since.
    failing_since_ms: Option<u64>,
    /// When, and what.
    answer: Option<(u64, Result<v1::CommandReply, Error>)>,
}

/// How far a learner has come.
#[derive(Clone, Copy, Debug)]
struct Gain {
    /// Of the leader that tells it.
    term: u64,
    matched: u64,
    /// When it came there, or last lacked nothing.
    at_ms: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    since_ms: u64,
    nodes: BTreeMap<u32, Heard>,
    /// When somebody last said that it leads a settled membership, by group.
    settled: BTreeMap<u64, u64>,
    /// By group and replica; learners only.
    gains: BTreeMap<(u64, u64), Gain>,
    /// When leadership was last to be handed over, by group.
    handed: BTreeMap<u64, u64>,
    errands: BTreeMap<Errand, Run>,
}

impl Sight {
    /// The sight of a term that begins now.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Self { since_ms: now_ms, ..Self::default() }
    }

    /// The admitted life of a node reported.
    pub fn hear(&mut self, request: &v1::HeartbeatRequest, now_ms: u64) {
        let node = request.info.as_ref().map_or(0, |info| info.id);
        let heard = self.nodes.entry(node).or_default();
        if heard.incarnation != request.incarnation {
            *heard = Heard { incarnation: request.incarnation, ..Heard::default() };
        }
        let mut replicas = BTreeMap::new();
        let open = request.groups.iter().map(|report| (report, false));
        for (report, absent) in open.chain(request.absent.iter().map(|report| (report, true))) {
            let before = heard.replicas.get(&report.replica);
            replicas.insert(report.replica, see(before, report, (node, absent), now_ms));
        }
        heard.at_ms = now_ms;
        heard.table_version = request.table_version;
        heard.reign = Reign { era: request.era, incarnation: request.manager_incarnation };
        for seen in replicas.values().filter(|seen| leads(seen)) {
            note_group(&mut self.settled, &mut self.gains, seen);
        }
        heard.replicas = replicas;
    }

    /// How long the admitted life of a node has said nothing, in this term.
    #[must_use]
    pub fn silent_ms(&self, node: &v1::NodeRecord, now_ms: u64) -> u64 {
        let id = id_of(node);
        let heard = self.nodes.get(&id).filter(|heard| heard.incarnation == node.incarnation);
        now_ms.saturating_sub(heard.map_or(self.since_ms, |heard| heard.at_ms))
    }

    /// How long nobody has said that it leads the group, can prove it, and that no change of the
    /// membership is half done, in this term.
    #[must_use]
    pub fn unsettled_ms(&self, group: u64, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.settled.get(&group).copied().unwrap_or(self.since_ms))
    }

    /// How long the group's leader has not seen this learner hold more than before, nor all that there
    /// was before; 0 for one that no leader told of.
    #[must_use]
    pub fn stalled_ms(&self, group: u64, replica: u64, now_ms: u64) -> u64 {
        let gain = self.gains.get(&(group, replica));
        gain.map_or(0, |gain| now_ms.saturating_sub(gain.at_ms))
    }

    /// How long a node was not heard; `None` when it was not heard at all.
    #[must_use]
    pub fn heard_ms(&self, node: &v1::NodeRecord, now_ms: u64) -> Option<u64> {
        let heard = self.nodes.get(&id_of(node))?;
        let same = heard.incarnation == node.incarnation;
        same.then(|| now_ms.saturating_sub(heard.at_ms))
    }

    /// The routing table that the node told it holds, and when it did.
    #[must_use]
    pub fn table_version(&self, node: &v1::NodeRecord) -> Option<(u64, u64)> {
        let heard = self.nodes.get(&id_of(node))?;
        let same = heard.incarnation == node.incarnation;
        same.then_some((heard.table_version, heard.at_ms))
    }

    /// Whether the admitted life of a node told in this term that it obeys the manager of this state, or a
    /// later one. It has stored that, and begins no command of an earlier one any more (H6).
    #[must_use]
    pub fn obeys(&self, state: &v1::ManagerState, node: u32) -> bool {
        let own = Reign { era: state.era, incarnation: state.incarnation };
        let heard = self.nodes.get(&node).filter(|heard| heard.reign >= own);
        let known = state.node(node).map(|node| node.incarnation);
        heard.is_some_and(|heard| Some(heard.incarnation) == known)
    }

    /// What a replica last said, if that was just now.
    #[must_use]
    pub fn replica(&self, node: u32, replica: u64, now_ms: u64) -> Option<&Seen> {
        let seen = self.nodes.get(&node)?.replicas.get(&replica)?;
        is_fresh(seen, now_ms).then_some(seen)
    }

    /// What nodes which are up last said, by node and replica.
    pub fn reported<'a>(&'a self, state: &'a v1::ManagerState) -> impl Iterator<Item = &'a Seen> {
        self.nodes
            .iter()
            .filter(move |(id, heard)| {
                let known = state.node(**id).filter(|node| is_up(node));
                known.is_some_and(|node| node.incarnation == heard.incarnation)
            })
            .flat_map(|(_, heard)| heard.replicas.values())
    }

    /// The same, if they said it just now.
    pub fn fresh<'a>(
        &'a self,
        state: &'a v1::ManagerState,
        now_ms: u64,
    ) -> impl Iterator<Item = &'a Seen> {
        self.reported(state).filter(move |seen| is_fresh(seen, now_ms))
    }

    /// Replicas that say they serve nothing.
    #[must_use]
    pub fn damaged(&self, state: &v1::ManagerState) -> BTreeSet<u64> {
        let halted = |seen: &&Seen| seen.absent || !seen.report.halted.is_empty();
        self.reported(state).filter(halted).map(|seen| seen.report.replica).collect()
    }

    /// The leaders of groups: those that say they lead, can prove it, and know at least the
    /// membership that is stored. By group.
    #[must_use]
    pub fn leaders(&self, state: &v1::ManagerState, now_ms: u64) -> BTreeMap<u64, &Seen> {
        let stored: BTreeMap<u64, u64> =
            state.all_groups().map(|group| (group.id, group.membership_index)).collect();
        let up = state.nodes.iter().filter(|node| is_up(node));
        let up: BTreeMap<u32, u64> = up.map(|node| (id_of(node), node.incarnation)).collect();
        let mut leaders: BTreeMap<u64, &Seen> = BTreeMap::new();
        let heard = self.nodes.iter().filter(|(id, heard)| up.get(*id) == Some(&heard.incarnation));
        for seen in heard.flat_map(|(_, heard)| heard.replicas.values()) {
            let Some(stored) = stored.get(&seen.report.group) else { continue };
            if !leads(seen) || seen.report.membership_index < *stored || !is_fresh(seen, now_ms) {
                continue;
            }
            let known = leaders.entry(seen.report.group).or_insert(seen);
            if seen.report.term > known.report.term {
                *known = seen;
            }
        }
        leaders
    }

    /// A command leaves.
    pub fn sent(&mut self, errand: Errand, now_ms: u64) {
        self.errands.retain(|_, run| {
            let answered = run.answer.as_ref().map(|(at_ms, _)| *at_ms);
            answered.is_none_or(|at_ms| now_ms.saturating_sub(at_ms) < ERRAND_MS)
        });
        if errand.act == Act::Transfer {
            self.handed.insert(errand.group, now_ms);
        }
        let run = self.errands.entry(errand);
        run.or_insert(Run { failing_since_ms: None, answer: None }).answer = None;
    }

    /// It is answered, or lost. The report in the answer is news about the replica.
    pub fn answered(
        &mut self,
        errand: Errand,
        result: Result<v1::CommandReply, Error>,
        now_ms: u64,
    ) {
        if let Ok(v1::CommandReply { report: Some(report), .. }) = &result
            && let Some(heard) = self.nodes.get_mut(&errand.node)
        {
            let before = heard.replicas.get(&report.replica);
            let seen = see(before, report, (errand.node, false), now_ms);
            if leads(&seen) {
                note_group(&mut self.settled, &mut self.gains, &seen);
            }
            heard.replicas.insert(report.replica, seen);
        }
        let run = Run { failing_since_ms: None, answer: None };
        let run = self.errands.entry(errand).or_insert(run);
        let fails = result.as_ref().is_err_and(|error| !goes_on(errand.act, error));
        let since_ms = run.failing_since_ms.unwrap_or(now_ms);
        run.failing_since_ms = fails.then_some(since_ms);
        run.answer = Some((now_ms, result));
    }

    /// What became of an errand.
    #[must_use]
    pub fn standing(&self, errand: &Errand) -> Standing<'_> {
        let Some(run) = self.errands.get(errand) else { return Standing::New };
        match &run.answer {
            None => Standing::Busy,
            Some((at_ms, Ok(reply))) => Standing::Done(*at_ms, reply),
            Some((at_ms, Err(error))) => {
                let since_ms = run.failing_since_ms.unwrap_or(*at_ms);
                Standing::Failed { since_ms, at_ms: *at_ms, error }
            }
        }
    }

    /// Commands that are on their way.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.errands.values().filter(|run| run.answer.is_none()).count()
    }

    /// When leadership of this group was last to be handed over.
    #[must_use]
    pub fn last_transfer_ms(&self, group: u64) -> Option<u64> {
        self.handed.get(&group).copied()
    }
}

/// Whether this answer says that the node is at it already. Only of what may take minutes, and for
/// which a node sets a limit itself; a later leader of group 0 meets it.
fn goes_on(act: Act, error: &Error) -> bool {
    let takes_long = matches!(act, Act::Seed | Act::Verify);
    let ErrorKind::NotReady { reason } = &error.kind else { return false };
    takes_long && reason.starts_with(UNDER_WAY)
}

/// Notes what a leader says of its group.
fn note_group(
    settled: &mut BTreeMap<u64, u64>,
    gains: &mut BTreeMap<(u64, u64), Gain>,
    seen: &Seen,
) {
    let (report, now_ms) = (&seen.report, seen.at_ms);
    let (group, term) = (report.group, report.term);
    if report.membership_committed && !report.joint {
        settled.insert(group, now_ms);
    }
    let is_learner =
        |replica: u64| report.seats.iter().any(|seat| !seat.voter && seat.replica == replica);
    gains.retain(|(of, replica), _| *of != group || is_learner(*replica));
    for seat in report.seats.iter().filter(|seat| !seat.voter) {
        let now = Gain { term, matched: seat.matched, at_ms: now_ms };
        let known = gains.entry((group, seat.replica)).or_insert(now);
        // Another leader has to find out first how far it is. Who lacks nothing that was there when the
        // leader spoke before has nothing to take: in an idle group that is no stall.
        let has_all = seen.earlier_index > 0 && seat.matched >= seen.earlier_index;
        if known.term != term || seat.matched > known.matched || has_all {
            *known = now;
        }
    }
}

fn leads(seen: &Seen) -> bool {
    let report = &seen.report;
    let is_sound = report.halted.is_empty() && !seen.absent;
    is_sound && report.role() == v1::Role::Leader && report.gate_open
}

fn is_fresh(seen: &Seen, now_ms: u64) -> bool {
    now_ms.saturating_sub(seen.at_ms) <= FRESH_MS
}

fn see(
    before: Option<&Seen>,
    report: &v1::GroupReport,
    (node, absent): (u32, bool),
    now_ms: u64,
) -> Seen {
    let same_term = before.filter(|before| before.report.term == report.term);
    let leads = report.role() == v1::Role::Leader;
    let since = same_term.and_then(|before| before.leads_since_ms).unwrap_or(now_ms);
    Seen {
        report: report.clone(),
        node,
        at_ms: now_ms,
        absent,
        earlier_index: same_term.map_or(0, |before| before.report.last_index),
        leads_since_ms: leads.then_some(since),
    }
}

#[cfg(test)]
mod tests;
