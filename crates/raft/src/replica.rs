//! What the parts of one replica share: its gate, what it hears of leaders, how far it has applied.
//!
//! Owned by the replica's openraft adapters, its peer clients and its readers alike; holds no task
//! and no disk handle. Nothing here is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_runtime::{BootTime, Clock};
use annulus_types::{GroupId, NodeId, ReplicaId};
use annulus_wal::{EntryId, Vote};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::digest::Digests;
use crate::gate::Gate;
use crate::polls::Freshness;
use crate::traffic::{Arrival, Meter};

/// The last time a leader's frame was accepted here (R1 a, elections).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) at: BootTime,
    pub(crate) vote: Vote,
}

/// The votes saved last.
#[derive(Clone, Copy, Debug, Default)]
struct Votes {
    before: Option<Vote>,
    saved: Option<Vote>,
    saved_at: Option<BootTime>,
}

impl Votes {
    fn save(&mut self, vote: Vote, now: BootTime) {
        if self.saved != Some(vote) {
            self.before = self.saved;
        }
        self.saved = Some(vote);
        self.saved_at = Some(now);
    }
}

/// How far the state machine has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AppliedAt {
    pub(crate) id: EntryId,
    pub(crate) group_time_ms: u64,
    /// The group's time at which something in that state ends by itself next (W5).
    pub(crate) next_end_ms: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct ReplicaState {
    pub(crate) group: GroupId,
    pub(crate) me: ReplicaId,
    pub(crate) clock: Clock,
    pub(crate) gate: Gate,
    pub(crate) freshness: Freshness,
    pub(crate) digests: Digests,
    /// The node's counters; nobody's before it is given one.
    pub(crate) meter: Arc<Meter>,
    pub(crate) arrival: Arrival,
    lease: Duration,
    heard: Mutex<Option<Heard>>,
    resigned: Mutex<Option<Vote>>,
    votes: Mutex<Votes>,
    /// The leader's vote of the last transfer that named this replica.
    transfer_from: Mutex<Option<Vote>>,
    applied: watch::Sender<AppliedAt>,
    seats: Mutex<BTreeMap<ReplicaId, NodeId>>,
    /// Members without a vote, and whether there are any.
    learners: Mutex<BTreeSet<ReplicaId>>,
    has_learners: AtomicBool,
    seated_at: Mutex<Option<u64>>,
    /// Replicas that this one has sent its group's state to, and the entry up to which it went (H2).
    seeded: Mutex<BTreeMap<ReplicaId, EntryId>>,
    /// Before this moment the replica neither grants nor sends votes (N3).
    quarantine_until: BootTime,
    whole: AtomicBool,
    /// The read index that makes the state whole once reached; `u64::MAX` while none is known.
    whole_at: AtomicU64,
    halted: watch::Sender<Option<String>>,
    distrusted: Mutex<Option<String>>,
    /// The replica is being destroyed.
    ended: watch::Sender<bool>,
    /// Nothing applies entries any more.
    machine_ended: watch::Sender<bool>,
    /// Indexes of entries that were sent, by receiver.
    #[cfg(test)]
    sent: Mutex<BTreeMap<ReplicaId, Vec<u64>>>,
}

impl ReplicaState {
    pub(crate) fn new(
        group: GroupId,
        me: ReplicaId,
        clock: Clock,
        gate: Gate,
        lease: Duration,
        quarantined: bool,
    ) -> Self {
        let now = clock.boot();
        Self {
            group,
            me,
            clock,
            gate,
            freshness: Freshness::default(),
            digests: Digests::new(),
            meter: Arc::default(),
            arrival: Arrival::default(),
            lease,
            heard: Mutex::new(None),
            resigned: Mutex::new(None),
            votes: Mutex::new(Votes::default()),
            transfer_from: Mutex::new(None),
            applied: watch::Sender::new(AppliedAt::default()),
            seats: Mutex::new(BTreeMap::new()),
            learners: Mutex::new(BTreeSet::new()),
            has_learners: AtomicBool::new(false),
            seated_at: Mutex::new(None),
            seeded: Mutex::new(BTreeMap::new()),
            quarantine_until: if quarantined { now.plus(lease) } else { BootTime(0) },
            whole: AtomicBool::new(false),
            whole_at: AtomicU64::new(u64::MAX),
            halted: watch::Sender::new(None),
            distrusted: Mutex::new(None),
            ended: watch::Sender::new(false),
            machine_ended: watch::Sender::new(false),
            #[cfg(test)]
            sent: Mutex::new(BTreeMap::new()),
        }
    }

    /// Counts for this node from now on.
    pub(crate) fn with_meter(mut self, meter: Arc<Meter>) -> Self {
        self.meter = meter;
        self
    }

    /// N3: whether votes and pre-votes are neither granted nor sent yet.
    pub(crate) fn is_quarantined(&self) -> bool {
        self.clock.boot() < self.quarantine_until
    }

    pub(crate) fn leader_heard(&self, vote: Vote) {
        *self.heard.lock() = Some(Heard { at: self.clock.boot(), vote });
    }

    /// The leader of this vote said that it gave its leadership up.
    pub(crate) fn leader_resigned(&self, vote: Vote) {
        *self.resigned.lock() = Some(vote);
    }

    /// Whether the leader heard last has given its leadership up.
    pub(crate) fn has_resigned(&self, heard: Heard) -> bool {
        *self.resigned.lock() == Some(heard.vote) && self.gate.minds_resignation()
    }

    pub(crate) fn heard(&self) -> Option<Heard> {
        *self.heard.lock()
    }

    /// The node that this replica has good reason to believe leads: itself while its gate view says
    /// so, else whoever it heard within the last lease.
    pub(crate) fn believed_leader(&self) -> Option<(ReplicaId, NodeId)> {
        let view = self.gate.view();
        let leader = match view.leading {
            Some(vote) => vote.leader,
            None => {
                let heard = self.heard()?;
                if self.clock.boot().since(heard.at) > self.lease {
                    return None;
                }
                heard.vote.leader
            }
        };
        self.seats.lock().get(&leader).map(|node| (leader, *node))
    }

    pub(crate) fn vote_saved(&self, vote: Vote) {
        let now = self.clock.boot();
        self.votes.lock().save(vote, now);
        self.gate.change(|core| core.vote_saved(vote, now));
    }

    /// The log held this vote at the start.
    pub(crate) fn vote_restored(&self, vote: Vote) {
        self.votes.lock().saved = Some(vote);
    }

    pub(crate) fn vote_saved_at(&self) -> Option<BootTime> {
        self.votes.lock().saved_at
    }

    /// The vote that was held right before `vote` was saved; `None` unless `vote` is the last one.
    pub(crate) fn vote_before(&self, vote: Vote) -> Option<Vote> {
        let votes = self.votes.lock();
        votes.before.filter(|_| votes.saved == Some(vote))
    }

    /// Whether a transfer from the leader of `from` may lift this replica's promise in favour of
    /// `vote`: it is the leader that was promised to, or the request comes a second time.
    pub(crate) fn may_lift(&self, vote: Vote, from: Option<Vote>) -> bool {
        let votes = self.votes.lock();
        let again = votes.saved == Some(vote) && votes.before == from;
        from.is_some() && (votes.saved == from || again)
    }

    pub(crate) fn transfer_asked(&self, from: Vote) {
        *self.transfer_from.lock() = Some(from);
    }

    pub(crate) fn transfer_from(&self) -> Option<Vote> {
        *self.transfer_from.lock()
    }

    /// The seats of the membership last appended.
    pub(crate) fn set_seats(&self, seats: BTreeMap<ReplicaId, NodeId>) {
        *self.seats.lock() = seats;
    }

    pub(crate) fn seats(&self) -> BTreeMap<ReplicaId, NodeId> {
        self.seats.lock().clone()
    }

    /// The members without a vote, by the membership last appended, and whether this replica has one.
    pub(crate) fn set_learners(&self, learners: BTreeSet<ReplicaId>, votes: bool) {
        self.has_learners.store(!learners.is_empty(), Ordering::Relaxed);
        *self.learners.lock() = learners;
        if votes {
            self.arrival.votes(&self.meter);
        }
    }

    /// Whether that replica is a member without a vote. Costs a load where there are none.
    pub(crate) fn is_learner(&self, replica: ReplicaId) -> bool {
        self.has_learners.load(Ordering::Relaxed) && self.learners.lock().contains(&replica)
    }

    /// What its log and state say of this replica's own seat.
    pub(crate) fn set_seated_at(&self, index: Option<u64>) {
        *self.seated_at.lock() = index;
    }

    /// Index of the newest membership, in log or state, that has a seat for this replica (H4).
    pub(crate) fn seated_at(&self) -> Option<u64> {
        *self.seated_at.lock()
    }

    /// Another replica holds everything up to this entry, for as long as it lives.
    pub(crate) fn set_seeded(&self, replica: ReplicaId, upto: EntryId) {
        self.seeded.lock().insert(replica, upto);
    }

    /// It says that it does not.
    pub(crate) fn forget_seeded(&self, replica: ReplicaId) {
        self.seeded.lock().remove(&replica);
    }

    pub(crate) fn seeded_upto(&self, replica: ReplicaId) -> Option<EntryId> {
        self.seeded.lock().get(&replica).copied()
    }

    #[cfg(test)]
    pub(crate) fn note_sent(&self, to: ReplicaId, indexes: impl Iterator<Item = u64>) {
        self.sent.lock().entry(to).or_default().extend(indexes);
    }

    #[cfg(test)]
    pub(crate) fn sent(&self, to: ReplicaId) -> Vec<u64> {
        self.sent.lock().get(&to).cloned().unwrap_or_default()
    }

    /// The seat of one of its replicas.
    pub(crate) fn seat(&self, replica: ReplicaId) -> Option<NodeId> {
        self.seats.lock().get(&replica).copied()
    }

    pub(crate) fn entry_applied(&self, at: AppliedAt) {
        self.applied.send_replace(at);
        self.freshness.applied(at.id.index);
        self.gate.change(|core| core.applied(at.id));
    }

    pub(crate) fn applied(&self) -> AppliedAt {
        *self.applied.borrow()
    }

    /// R4: the answer to a question that left at `asked` says that whoever has applied `index` holds
    /// everything that was acknowledged before.
    pub(crate) fn read_index_told(&self, index: u64, asked: BootTime) {
        self.freshness.told(index, asked, || self.applied().id.index);
    }

    /// Waits until entry `index` is applied. Cancel-safe; has no deadline of its own.
    pub(crate) async fn wait_applied(&self, index: u64) {
        let mut applied = self.applied.subscribe();
        // The sender lives as long as `self`.
        let _ = applied.wait_for(|at| at.id.index >= index).await;
    }

    /// E6: a leader told this read index; reaching it makes the state whole.
    pub(crate) fn set_whole_at(&self, index: u64) {
        self.whole_at.fetch_min(index, Ordering::SeqCst);
        if self.applied().id.index >= index {
            self.set_whole(true);
        }
    }

    pub(crate) fn reaches_whole(&self, index: u64) -> bool {
        index >= self.whole_at.load(Ordering::SeqCst)
    }

    pub(crate) fn set_whole(&self, whole: bool) {
        if whole {
            self.whole.store(true, Ordering::SeqCst);
        }
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::SeqCst)
    }

    /// A check of the replica's state failed (E6): it answers no reads any more. It goes on voting and
    /// taking the log, which are not in doubt.
    pub(crate) fn distrust(&self, reason: &str) {
        let mut distrusted = self.distrusted.lock();
        if distrusted.is_none() {
            tracing::error!(group = %self.group, replica = %self.me, reason, "replica is not trusted");
            *distrusted = Some(reason.to_owned());
        }
    }

    pub(crate) fn distrusted(&self) -> Option<String> {
        self.distrusted.lock().clone()
    }

    /// The replica stops for a local reason; the first reason is kept.
    pub(crate) fn halt(&self, reason: &str) {
        self.halted.send_if_modified(|halted| {
            let first = halted.is_none();
            if first {
                tracing::error!(group = %self.group, replica = %self.me, reason, "replica halted");
                *halted = Some(reason.to_owned());
            }
            first
        });
    }

    pub(crate) fn halted(&self) -> Option<String> {
        self.halted.borrow().clone()
    }

    /// The replica is being destroyed: it serves nothing from now on, whoever waits for it is told, and
    /// its tasks end. That its parts stop is no news then.
    pub(crate) fn end(&self) {
        self.halted.send_if_modified(|halted| {
            let first = halted.is_none();
            if first {
                *halted = Some("the replica is being destroyed".to_owned());
            }
            first
        });
        self.ended.send_replace(true);
    }

    /// Waits until the replica is being destroyed. Cancel-safe.
    pub(crate) async fn until_ended(&self) {
        let mut ended = self.ended.subscribe();
        // The sender lives as long as `self`.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    pub(crate) fn machine_has_ended(&self) {
        self.machine_ended.send_replace(true);
    }

    /// Waits until nothing applies entries any more. Cancel-safe.
    pub(crate) async fn until_machine_ended(&self) {
        let mut ended = self.machine_ended.subscribe();
        // The sender lives as long as `self`.
        let _ = ended.wait_for(|ended| *ended).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(term: u64, leader: u64, committed: bool) -> Vote {
        Vote { term, leader: ReplicaId(leader), committed }
    }

    #[test]
    fn a_transfer_lifts_the_promise_to_the_leader_that_asked_and_no_other() {
        use crate::gate::{Core, Lease, Weaken};
        let span = Duration::from_millis(600);
        let core = Core::new(ReplicaId(3), Lease { lease: span, silence: span }, Weaken::default());
        let clock = Clock::real();
        let gate = Gate::new(core);
        let replica = ReplicaState::new(GroupId(1), ReplicaId(3), clock, gate, span, false);
        let (asking, newer, wanted) = (vote(5, 1, true), vote(6, 1, true), vote(6, 2, false));
        assert!(!replica.may_lift(wanted, Some(asking)), "nothing was promised to it");
        replica.vote_saved(asking);
        assert!(replica.may_lift(wanted, Some(asking)));
        assert!(!replica.may_lift(wanted, None));
        replica.vote_saved(newer);
        assert!(!replica.may_lift(wanted, Some(asking)), "another leader was promised to since");
        replica.vote_saved(wanted);
        assert!(replica.may_lift(wanted, Some(newer)), "the same request again");
        assert_eq!(replica.vote_before(wanted), Some(newer));
        assert_eq!(replica.vote_before(newer), None);
    }
}
