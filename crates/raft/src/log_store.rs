//! openraft's log storage over one stream of the shared log.
//!
//! # Invariants
//!
//! - `append` makes entries readable before it returns and calls back when they are durable; a
//!   failed write reaches openraft as an error, which stops the group (and, through the log's
//!   writer, the node: architecture 8).
//! - `save_vote` returns when the vote is durable. *Before* that the gate learns of it, so that a
//!   promise to another never coexists with an open gate (R1 c).
//! - A membership reaches the gate when it is appended, before the entry can leave (R1 b), or when the
//!   snapshot that holds it is installed, and is taken back when the entry is truncated.
//! - A replica starts with the newest membership that its log names (L6), or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use annulus_types::limits::FRAME_BYTES;
use annulus_types::{NodeId, ReplicaId};
use annulus_wal::{EntryId, GroupLog, WalError};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::replica::ReplicaState;
use crate::types::{
    Entry, LogId, Membership, Payload, StoredMembership, TypeConfig, Vote, entry_from_log,
    entry_id, entry_to_log, log_id, vote, wal_vote,
};

/// Memberships by the index of their entry: those that may still be truncated, and the one below.
type Memberships = BTreeMap<u64, Membership>;

/// The log of one replica; clones share it.
#[derive(Clone)]
pub(crate) struct LogStore {
    log: GroupLog,
    replica: Arc<ReplicaState>,
    memberships: Arc<Mutex<Memberships>>,
    /// Index of an applied membership that has a seat for this replica, if the last applied has none (H4).
    seated_at: Option<u64>,
}

fn failed(error: WalError) -> io::Error {
    io::Error::other(error)
}

/// The membership that an entry of the log holds.
pub(crate) fn membership_of(log: &GroupLog, id: EntryId) -> io::Result<Membership> {
    let found = log.entries(id.index..id.index + 1, FRAME_BYTES).map_err(failed)?;
    let entry = found.into_iter().next().map(entry_from_log).transpose();
    match entry.map_err(io::Error::other)?.map(|entry| entry.payload) {
        Some(Payload::Membership(membership)) => Ok(membership),
        _ => Err(io::Error::other(format!("entry {id} of the log holds no membership"))),
    }
}

/// Index of the newest membership that has a seat for a replica.
fn newest_with(memberships: &Memberships, replica: ReplicaId) -> Option<u64> {
    let mut newest_first = memberships.iter().rev();
    let seats_it =
        |(_, membership): &(&u64, &Membership)| membership.get_node(&replica.0).is_some();
    newest_first.find(seats_it).map(|(index, _)| *index)
}

impl LogStore {
    /// `base` is the membership that the state machine has applied, with its index; memberships
    /// that the log holds above it are read from the log. The machine has applied all that the log
    /// has purged.
    ///
    /// # Errors
    /// When the log cannot be read, or names a membership that neither it nor the machine has.
    pub(crate) fn open(
        log: GroupLog,
        replica: Arc<ReplicaState>,
        base: Option<(u64, Membership)>,
    ) -> io::Result<Self> {
        let applied = base.as_ref().map(|(index, _)| *index);
        let mut memberships: Memberships = base.into_iter().collect();
        let (state, held) = (log.state(), log.memberships());
        // No sound replica is refused here. A named entry that is not held was purged. It led to
        // the purge point, because a reset (L7) and a purge behind a snapshot take the names of all
        // that may have been overruled; so the machine has applied it. A fresh group has no base,
        // and holds every entry.
        if let Some(named) = state.membership
            && !held.contains(&named)
            && Some(named.index) > applied
        {
            let reason = "which neither the log nor the engine has";
            return Err(io::Error::other(format!("the log names membership {named}, {reason}")));
        }
        let (older, newer): (Vec<EntryId>, Vec<EntryId>) =
            held.into_iter().partition(|id| Some(id.index) <= applied);
        for id in newer {
            memberships.insert(id.index, membership_of(&log, id)?);
        }
        let mut seated_at = None;
        if newest_with(&memberships, replica.me).is_none() {
            // It may have left. What does not read says nothing.
            let seats_it = |id: &&EntryId| {
                let membership = membership_of(&log, **id);
                membership.is_ok_and(|membership| membership.get_node(&replica.me.0).is_some())
            };
            seated_at = older.iter().rev().find(seats_it).map(|id| id.index);
        }
        let memberships = Arc::new(Mutex::new(memberships));
        let store = Self { log, replica, memberships, seated_at };
        store.tell_gate();
        if let Some(saved) = state.vote {
            // After a restart nobody leads by an old vote: the gate is not told.
            store.replica.vote_restored(saved);
        }
        Ok(store)
    }

    fn tell_gate(&self) {
        let memberships = self.memberships.lock();
        let Some((_, newest)) = memberships.last_key_value() else { return };
        let configs: Vec<BTreeSet<ReplicaId>> = newest
            .get_joint_config()
            .iter()
            .map(|config| config.iter().copied().map(ReplicaId).collect())
            .collect();
        let seats: BTreeMap<ReplicaId, NodeId> =
            newest.nodes().map(|(id, seat)| (ReplicaId(*id), seat.node)).collect();
        let votes = |replica: &ReplicaId| configs.iter().any(|config| config.contains(replica));
        let learners = seats.keys().copied().filter(|replica| !votes(replica)).collect();
        self.replica.set_learners(learners, votes(&self.replica.me));
        self.replica.set_seats(seats);
        self.replica.set_seated_at(newest_with(&memberships, self.replica.me).or(self.seated_at));
        self.replica.gate.change(|core| core.membership_appended(configs));
    }

    /// A snapshot up to entry `last` was installed. Its membership takes the place of whatever the log
    /// told up to there.
    pub(crate) fn membership_installed(&self, last: u64, stored: &StoredMembership) {
        let Some(id) = stored.log_id().as_ref() else { return };
        {
            let mut memberships = self.memberships.lock();
            memberships.retain(|index, _| *index < id.index || *index > last);
            memberships.insert(id.index, stored.membership().clone());
        }
        self.tell_gate();
    }

    fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        // openraft's contract: what is absent at either end of a range is left out.
        let state = self.log.state();
        let to = to.min(state.last.map_or(0, |id| id.index + 1));
        let mut from = from.max(state.purged.map_or(0, |id| id.index + 1));
        while from < to && self.log.id_at(from).is_none() {
            from += 1;
        }
        if from >= to {
            return Ok(Vec::new());
        }
        let entries = self.log.entries(from..to, max_bytes).map_err(failed)?;
        entries.into_iter().map(|entry| entry_from_log(entry).map_err(io::Error::other)).collect()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + Send,
    {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => self.log.state().last.map_or(0, |id| id.index + 1),
        };
        self.read(from, to, usize::MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.log.state().vote.map(vote))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, FRAME_BYTES)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.log.state();
        Ok(LogState {
            last_purged_log_id: state.purged.map(log_id),
            last_log_id: state.last.map(log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = wal_vote(vote);
        self.replica.vote_saved(vote);
        let (done, durable) = oneshot::channel();
        let completion = move |result| {
            // openraft gave up waiting only when the group is shutting down.
            let _ = done.send(result);
        };
        self.log.save_vote(vote, Box::new(completion));
        match durable.await {
            Ok(result) => result.map_err(failed),
            Err(_) => Err(failed(WalError::Closed)),
        }
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        if let Some(committed) = committed {
            self.log.save_committed(entry_id(&committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.log.state().committed.map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut records = Vec::new();
        let mut changed = false;
        for entry in entries {
            if let Payload::Membership(membership) = &entry.payload {
                self.memberships.lock().insert(entry.log_id.index, membership.clone());
                changed = true;
            }
            records.push(entry_to_log(&entry));
        }
        if changed {
            self.tell_gate();
        }
        // Not before: see `traffic`.
        let sizes = records.iter().map(|record| (record.id.index, record.payload.len()));
        self.replica.arrival.took_log(sizes);
        self.log
            .append(records, Box::new(move |result| callback.io_completed(result.map_err(failed))));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.log.truncate_after(last.as_ref().map(entry_id));
        let after = last.map_or(0, |id| id.index + 1);
        let removed = self.memberships.lock().split_off(&after);
        if !removed.is_empty() {
            self.tell_gate();
        }
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.log.purge(entry_id(&upto));
        // The newest membership at or below the purge point must stay known.
        let mut memberships = self.memberships.lock();
        let kept = memberships.range(..=upto.index).next_back().map(|(index, _)| *index);
        if let Some(kept) = kept {
            *memberships = memberships.split_off(&kept);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
