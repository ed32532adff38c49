//! Where every live entry is: in memory, on the disk, or both. Answers for what has been *queued*,
//! durable or not.
//!
//! The same fold serves the callers' operations and recovery; a change that contradicts the log so
//! far is refused, and recovery takes the refusal as damage.
//!
//! Invariants:
//! - the entries of a log are consecutive, and each names the one before it (L1);
//! - an entry that is not yet durable is in memory;
//! - the membership entry that the hard state names (L6) is the newest in `Entries::memberships`;
//! - a segment that holds a live entry, or one that a reset dropped and no purge confirmed (L7), is
//!   never below [`Index::oldest_needed`].

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;

use crate::format::Place;
use crate::format::record::Change;
use crate::ledger::{Ledger, index_of};
use crate::{EntryId, StreamId};

/// Where the payload of an entry can be had.
#[derive(Debug)]
pub(crate) enum Source {
    Memory(Bytes),
    Disk(Place),
}

/// An entry without its payload.
#[derive(Debug)]
pub(crate) struct Picked {
    pub(crate) id: EntryId,
    pub(crate) membership: bool,
    pub(crate) source: Source,
}

#[derive(Debug)]
struct Slot {
    id: EntryId,
    /// Known once durable.
    place: Option<Place>,
    payload: Option<Bytes>,
}

impl Slot {
    /// What the entry takes: with its record where that is known.
    fn bytes(&self) -> u64 {
        match (self.place, &self.payload) {
            (Some(place), _) => u64::from(place.len),
            (None, Some(payload)) => payload.len() as u64,
            (None, None) => 0,
        }
    }
}

/// The entries of one log.
#[derive(Debug, Default)]
struct Entries {
    /// The entry before the first one held, or the last of the log when none is held.
    before: Option<EntryId>,
    slots: VecDeque<Slot>,
    /// Entries that change who is a member, oldest first: those held, and the newest at or below
    /// `before`. A truncation falls back to them.
    memberships: VecDeque<EntryId>,
    /// The oldest segment with entries that a reset dropped (L7).
    kept_from: Option<u64>,
}

impl Entries {
    fn slot_at(&self, index: u64) -> Option<usize> {
        let at = index.checked_sub(self.slots.front()?.id.index)? as usize;
        (at < self.slots.len()).then_some(at)
    }

    fn oldest_segment(&self) -> Option<u64> {
        // Entries become durable in order, so that the first one lies in the oldest segment.
        let first = self.slots.front().and_then(|slot| slot.place).map(|place| place.segment);
        first.into_iter().chain(self.kept_from).min()
    }

    fn is_membership(&self, index: u64) -> bool {
        self.memberships.binary_search_by_key(&index, |id| id.index).is_ok()
    }

    /// The newest membership entry at or below an index, which is not below `before`.
    fn membership_up_to(&self, index: Option<u64>) -> Option<EntryId> {
        self.memberships.iter().rev().find(|id| Some(id.index) <= index).copied()
    }

    /// Takes over which membership entry is the newest, after `before` was moved.
    fn name_membership(&mut self, newest: Option<EntryId>) {
        self.memberships.retain(|id| Some(id.index) < index_of(newest));
        // Not in the list so far if it lay in a segment that is gone.
        self.memberships.extend(newest);
        let before = index_of(self.before);
        while self.memberships.get(1).is_some_and(|id| Some(id.index) <= before) {
            self.memberships.pop_front();
        }
    }
}

/// Payloads in memory, the oldest durable ones dropped first.
#[derive(Debug)]
struct Tail {
    limit: usize,
    bytes: usize,
    payloads: usize,
    /// Durable entries in the order in which they became so; some may be gone since.
    order: VecDeque<(StreamId, EntryId)>,
}

impl Tail {
    fn hold(&mut self, payload: &Bytes) {
        self.bytes += payload.len();
        self.payloads += 1;
    }

    fn release(&mut self, slot: &mut Slot) {
        if let Some(payload) = slot.payload.take() {
            self.bytes -= payload.len();
            self.payloads -= 1;
        }
    }
}

#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) ledger: Ledger,
    logs: BTreeMap<StreamId, Entries>,
    tail: Tail,
}

impl Index {
    pub(crate) fn new(tail_bytes: usize) -> Self {
        let tail = Tail { limit: tail_bytes, bytes: 0, payloads: 0, order: VecDeque::new() };
        Self { ledger: Ledger::default(), logs: BTreeMap::new(), tail }
    }

    /// Takes over a change; an entry comes with its payload (queued) or its place (recovered).
    ///
    /// # Errors
    /// Why it contradicts the log so far; nothing has changed then.
    pub(crate) fn apply(
        &mut self,
        stream: StreamId,
        change: &Change,
        payload: Option<Bytes>,
        place: Option<Place>,
    ) -> Result<(), String> {
        if self.ledger.tombstones.contains(&stream) {
            return Ok(());
        }
        let begins = matches!(
            change,
            Change::Create | Change::Destroy | Change::Damaged(_) | Change::State(_)
        );
        if !begins && !self.ledger.streams.contains_key(&stream) {
            return Err("a record of a replica whose birth is not in the log".to_owned());
        }
        if !self.ledger.damage.contains_key(&stream) {
            self.apply_to_entries(stream, change, payload, place)?;
        }
        self.ledger.apply(stream, change);
        Ok(())
    }

    fn apply_to_entries(
        &mut self,
        stream: StreamId,
        change: &Change,
        payload: Option<Bytes>,
        place: Option<Place>,
    ) -> Result<(), String> {
        let last = self.ledger.last(stream);
        match change {
            Change::Vote(_) | Change::Committed(_) => {}
            Change::Create => {
                self.logs.entry(stream).or_default();
            }
            Change::Destroy | Change::Damaged(_) => {
                for mut slot in self.logs.remove(&stream).unwrap_or_default().slots {
                    self.tail.release(&mut slot);
                }
            }
            Change::Entry { id, prev, membership } => {
                let next = prev.is_none_or(|prev| prev.index.checked_add(1) == Some(id.index));
                if *prev != last || !next {
                    return Err(follows(*id, *prev, last));
                }
                if let Some(payload) = &payload {
                    self.tail.hold(payload);
                }
                let entries = self.logs.entry(stream).or_default();
                entries.slots.push_back(Slot { id: *id, place, payload });
                if *membership {
                    entries.memberships.push_back(*id);
                }
            }
            Change::Truncate { after, membership } => {
                self.truncate(stream, *after);
                self.logs.entry(stream).or_default().name_membership(*membership);
            }
            Change::Purge { upto, membership } => {
                self.purge(stream, *upto);
                let entries = self.logs.entry(stream).or_default();
                if Some(upto.index) >= index_of(entries.before) {
                    entries.kept_from = None;
                }
                entries.name_membership(*membership);
            }
            Change::Reset { after, membership } => {
                let entries = self.logs.entry(stream).or_default();
                entries.kept_from = entries.oldest_segment();
                entries.before = Some(*after);
                entries.name_membership(*membership);
                for mut slot in std::mem::take(&mut entries.slots) {
                    self.tail.release(&mut slot);
                }
            }
            Change::State(state) if !self.ledger.streams.contains_key(&stream) => {
                // The segments before this one are gone: nothing older was needed.
                let memberships = state.membership.into_iter().collect();
                let entries = Entries { before: state.last, memberships, ..Entries::default() };
                self.logs.insert(stream, entries);
            }
            Change::State(state) => {
                if last != state.last {
                    let (read, told) = (show(last), show(state.last));
                    return Err(format!("the log ends at {read}, a later segment says {told}"));
                }
                if let Some(upto) = state.purged {
                    self.purge(stream, upto);
                }
                self.logs.entry(stream).or_default().name_membership(state.membership);
            }
        }
        Ok(())
    }

    fn truncate(&mut self, stream: StreamId, after: Option<EntryId>) {
        let entries = self.logs.entry(stream).or_default();
        while entries.slots.back().is_some_and(|slot| Some(slot.id.index) > index_of(after)) {
            if let Some(mut slot) = entries.slots.pop_back() {
                self.tail.release(&mut slot);
            }
        }
        if index_of(after) < index_of(entries.before) {
            // Recovery only: entries were dropped that lay in segments since reclaimed, or entries
            // below the purge point were named.
            let purged = self.ledger.streams.get(&stream).and_then(|state| state.purged);
            let below = index_of(after) < index_of(purged);
            entries.before = if below { purged } else { after };
        }
    }

    fn purge(&mut self, stream: StreamId, upto: EntryId) {
        let entries = self.logs.entry(stream).or_default();
        while entries.slots.front().is_some_and(|slot| slot.id.index <= upto.index) {
            if let Some(mut slot) = entries.slots.pop_front() {
                self.tail.release(&mut slot);
            }
        }
        if index_of(entries.before) < Some(upto.index) {
            entries.before = Some(upto);
        }
    }

    /// The newest membership entry that is left when the entries after `after` are dropped.
    pub(crate) fn membership_after_truncate(
        &self,
        stream: StreamId,
        after: Option<EntryId>,
    ) -> Option<EntryId> {
        let entries = self.logs.get(&stream)?;
        entries.membership_up_to(index_of(after).max(index_of(entries.before)))
    }

    /// The newest membership entry that is left when the entries up to `upto` are dropped.
    pub(crate) fn membership_after_purge(
        &self,
        stream: StreamId,
        upto: EntryId,
    ) -> Option<EntryId> {
        let state = self.ledger.streams.get(&stream)?;
        if Some(upto.index) <= index_of(state.last) {
            // It is an entry of this log, and so all before it led there.
            state.membership
        } else {
            self.membership_after_reset(stream, upto)
        }
    }

    /// The newest membership entry that is left when all entries are given up for `after`, which
    /// the log does not hold. Entries above the commit hint may be those of a leader that was
    /// overruled: no checkpoint at `after` would know them, and so they are not named any more.
    pub(crate) fn membership_after_reset(
        &self,
        stream: StreamId,
        after: EntryId,
    ) -> Option<EntryId> {
        let entries = self.logs.get(&stream)?;
        let committed = self.ledger.streams.get(&stream)?.committed;
        let sure = index_of(committed).max(index_of(entries.before));
        entries.membership_up_to(sure.min(Some(after.index)))
    }

    /// The membership entries that are held, oldest first.
    pub(crate) fn memberships(&self, stream: StreamId) -> Vec<EntryId> {
        let Some(entries) = self.logs.get(&stream) else { return Vec::new() };
        let before = index_of(entries.before);
        entries.memberships.iter().filter(|id| Some(id.index) > before).copied().collect()
    }

    /// Takes note that an entry is durable.
    pub(crate) fn settle(&mut self, stream: StreamId, id: EntryId, place: Place) {
        let Some(entries) = self.logs.get_mut(&stream) else { return };
        let Some(at) = entries.slot_at(id.index) else { return };
        let slot = &mut entries.slots[at];
        if slot.id == id {
            slot.place = Some(place);
            if slot.payload.is_some() {
                self.tail.order.push_back((stream, id));
            }
        }
    }

    /// Drops the oldest durable payloads until the tail is within its limit.
    pub(crate) fn shrink(&mut self) {
        while self.tail.bytes > self.tail.limit {
            let Some((stream, id)) = self.tail.order.pop_front() else { break };
            let Some(entries) = self.logs.get_mut(&stream) else { continue };
            let Some(at) = entries.slot_at(id.index) else { continue };
            let slot = &mut entries.slots[at];
            if slot.id == id && slot.place.is_some() {
                self.tail.release(slot);
            }
        }
        // Entries that were purged or truncated leave their names behind.
        if self.tail.order.len() > 2 * self.tail.payloads + 1024 {
            let logs = &self.logs;
            self.tail.order.retain(|(stream, id)| {
                let slot = logs
                    .get(stream)
                    .and_then(|entries| entries.slot_at(id.index).map(|at| &entries.slots[at]));
                slot.is_some_and(|slot| slot.id == *id && slot.payload.is_some())
            });
        }
    }

    /// The lowest segment that must stay; `u64::MAX` when no entry needs any. Damage keeps all.
    pub(crate) fn oldest_needed(&self) -> u64 {
        if self.ledger.damage.keys().any(|stream| *stream != StreamId::NODE) {
            return 0;
        }
        self.logs.values().filter_map(Entries::oldest_segment).min().unwrap_or(u64::MAX)
    }

    /// Logs whose first entries are missing, with what is missing.
    pub(crate) fn gaps(&self) -> Vec<(StreamId, String)> {
        let gap = |(stream, entries): (&StreamId, &Entries)| {
            let purged = self.ledger.streams.get(stream)?.purged;
            let (held, dropped) = (show(entries.before), show(purged));
            let reason = format!("entries are missing: held after {held}, dropped up to {dropped}");
            (entries.before != purged).then_some((*stream, reason))
        };
        self.logs.iter().filter_map(gap).collect()
    }

    pub(crate) fn id_at(&self, stream: StreamId, index: u64) -> Option<EntryId> {
        let entries = self.logs.get(&stream)?;
        match entries.slot_at(index) {
            Some(at) => Some(entries.slots[at].id),
            None => entries.before.filter(|before| before.index == index),
        }
    }

    /// Whether the entries that are held take more than so many bytes. Looks at no more of them than it
    /// must.
    pub(crate) fn is_larger_than(&self, stream: StreamId, bytes: u64) -> bool {
        let Some(entries) = self.logs.get(&stream) else { return false };
        let mut sum = 0_u64;
        entries.slots.iter().any(|slot| {
            sum = sum.saturating_add(slot.bytes());
            sum > bytes
        })
    }

    /// Whether this entry is still held, and at this place.
    pub(crate) fn is_at(&self, stream: StreamId, id: EntryId, place: Place) -> bool {
        let slot = self
            .logs
            .get(&stream)
            .and_then(|entries| entries.slot_at(id.index).map(|at| &entries.slots[at]));
        slot.is_some_and(|slot| slot.id == id && slot.place == Some(place))
    }

    /// Consecutive entries from `range.start`, at most `max_bytes` of them but at least one.
    pub(crate) fn pick(
        &self,
        stream: StreamId,
        range: Range<u64>,
        max_bytes: usize,
    ) -> Vec<Picked> {
        let Some(entries) = self.logs.get(&stream) else { return Vec::new() };
        let Some(first) = entries.slot_at(range.start) else { return Vec::new() };
        let mut picked = Vec::new();
        let mut bytes = 0_usize;
        for slot in entries.slots.range(first..) {
            if slot.id.index >= range.end {
                break;
            }
            let (len, source) = match (&slot.payload, slot.place) {
                (Some(payload), _) => (payload.len(), Source::Memory(payload.clone())),
                (None, Some(place)) => (place.len as usize, Source::Disk(place)),
                (None, None) => break,
            };
            bytes = bytes.saturating_add(len);
            if bytes > max_bytes && !picked.is_empty() {
                break;
            }
            let membership = entries.is_membership(slot.id.index);
            picked.push(Picked { id: slot.id, membership, source });
        }
        picked
    }

    /// Payloads in memory, their bytes, and names remembered for dropping them.
    #[cfg(test)]
    pub(crate) fn tail(&self) -> (usize, usize, usize) {
        (self.tail.payloads, self.tail.bytes, self.tail.order.len())
    }
}

fn follows(id: EntryId, prev: Option<EntryId>, last: Option<EntryId>) -> String {
    format!("entry {id} wants to follow {}, the log ends at {}", show(prev), show(last))
}

fn show(id: Option<EntryId>) -> String {
    id.map_or_else(|| "nothing".to_owned(), |id| id.to_string())
}
