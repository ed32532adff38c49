//! Where every live entry is: in memory, on the disk, or both. Answers for what has been *queued*,
//! durable or not.
//!
//! The same fold serves the callers' operations and recovery; a change that contradicts the log so
//! far is refused, and recovery takes the refusal as damage.
//!
//! Invariants:
//! - the entries of a log are consecutive, and each names the one before it (L1);
//! - an entry that is not yet durable is in memory;
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

#[derive(Debug)]
struct Slot {
    id: EntryId,
    /// Known once durable.
    place: Option<Place>,
    payload: Option<Bytes>,
}

/// The entries of one log.
#[derive(Debug, Default)]
struct Entries {
    /// The entry before the first one held, or the last of the log when none is held.
    before: Option<EntryId>,
    slots: VecDeque<Slot>,
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
            Change::Entry { id, prev } => {
                let next = prev.is_none_or(|prev| prev.index.checked_add(1) == Some(id.index));
                if *prev != last || !next {
                    return Err(follows(*id, *prev, last));
                }
                if let Some(payload) = &payload {
                    self.tail.hold(payload);
                }
                let slots = &mut self.logs.entry(stream).or_default().slots;
                slots.push_back(Slot { id: *id, place, payload });
            }
            Change::Truncate(after) => {
                self.truncate(stream, *after);
            }
            Change::Purge(upto) => {
                self.purge(stream, *upto);
                let entries = self.logs.entry(stream).or_default();
                if Some(upto.index) >= index_of(entries.before) {
                    entries.kept_from = None;
                }
            }
            Change::Reset(after) => {
                let entries = self.logs.entry(stream).or_default();
                entries.kept_from = entries.oldest_segment();
                entries.before = Some(*after);
                for mut slot in std::mem::take(&mut entries.slots) {
                    self.tail.release(&mut slot);
                }
            }
            Change::State(state) if !self.ledger.streams.contains_key(&stream) => {
                // The segments before this one are gone: nothing older was needed.
                let entries = Entries { before: state.last, ..Entries::default() };
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
    ) -> Vec<(EntryId, Source)> {
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
            picked.push((slot.id, source));
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
