//! The hard state of all replicas of the node, as a fold over changes.
//!
//! Two of them exist: the index holds what has been queued, the writer what has been written. The
//! writer's is what a new segment starts with (L6).
//!
//! Invariants:
//! - a destroyed replica stays destroyed, whatever comes later;
//! - a damaged log stays as it is, but for its vote, which only ever follows newer records (L4).

use std::collections::{BTreeMap, BTreeSet};

use crate::format::record::{Change, Record};
use crate::{Damage, EntryId, LogState, StreamId};

#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    /// All replicas that were born and not destroyed, damaged ones too.
    pub(crate) streams: BTreeMap<StreamId, LogState>,
    pub(crate) tombstones: BTreeSet<StreamId>,
    /// Under [`StreamId::NODE`]: what may have swallowed replicas unknown to us.
    pub(crate) damage: BTreeMap<StreamId, Damage>,
}

impl Ledger {
    pub(crate) fn apply(&mut self, stream: StreamId, change: &Change) {
        if self.tombstones.contains(&stream) {
            return;
        }
        match change {
            Change::Create => {
                self.streams.entry(stream).or_default();
            }
            Change::Destroy => {
                self.streams.remove(&stream);
                self.damage.remove(&stream);
                self.tombstones.insert(stream);
            }
            Change::Damaged(damage) => {
                if stream != StreamId::NODE {
                    self.streams.entry(stream).or_default();
                }
                self.damage.entry(stream).or_insert_with(|| damage.clone());
            }
            Change::State(state) if !self.damage.contains_key(&stream) => {
                self.streams.insert(stream, state.clone());
            }
            _ => {
                let damaged = self.damage.contains_key(&stream);
                if let Some(state) = self.streams.get_mut(&stream) {
                    state.advance(change, damaged);
                }
            }
        }
    }

    /// Where a replica's log ends.
    pub(crate) fn last(&self, stream: StreamId) -> Option<EntryId> {
        self.streams.get(&stream)?.last
    }

    /// The records that make an empty ledger equal to this one.
    pub(crate) fn records(&self) -> Vec<Record> {
        let tombstones = self.tombstones.iter().map(|stream| (*stream, Change::Destroy));
        let states =
            self.streams.iter().map(|(stream, state)| (*stream, Change::State(state.clone())));
        let damage =
            self.damage.iter().map(|(stream, damage)| (*stream, Change::Damaged(damage.clone())));
        let all = tombstones.chain(states).chain(damage);
        all.map(|(stream, change)| Record::new(stream, change)).collect()
    }
}

impl LogState {
    fn advance(&mut self, change: &Change, damaged: bool) {
        match change {
            Change::Vote(vote) => self.vote = Some(*vote),
            Change::State(state) => self.vote = state.vote.or(self.vote),
            _ if damaged => {}
            Change::Committed(id) => self.committed = Some(*id),
            Change::Entry { id, membership, .. } => {
                self.last = Some(*id);
                if *membership {
                    self.membership = Some(*id);
                }
            }
            Change::Truncate { after, membership } => {
                if index_of(*after) < index_of(self.last) {
                    let purged = index_of(*after) < index_of(self.purged);
                    self.last = if purged { self.purged } else { *after };
                }
                self.membership = *membership;
            }
            Change::Purge { upto, membership } => {
                if index_of(self.purged) < Some(upto.index) {
                    self.purged = Some(*upto);
                }
                if index_of(self.last) < Some(upto.index) {
                    self.last = Some(*upto);
                }
                self.membership = *membership;
            }
            Change::Reset { after, membership } => {
                self.purged = Some(*after);
                self.last = Some(*after);
                self.membership = *membership;
                // What was known as committed beyond it is no longer held.
                if index_of(self.committed) > Some(after.index) {
                    self.committed = Some(*after);
                }
            }
            Change::Create | Change::Destroy | Change::Damaged(_) => {}
        }
    }
}

/// For comparisons: no entry is before the first.
pub(crate) fn index_of(id: Option<EntryId>) -> Option<u64> {
    id.map(|id| id.index)
}
