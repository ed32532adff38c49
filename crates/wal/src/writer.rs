//! The one writer of the node: takes what is queued, lays it out as one batch, writes it, syncs it,
//! and completes it, in this order and with nothing in between.
//!
//! Owns the segments and the hard state *as written*. Does not own the queue or the index, which
//! callers share (`shared`), and starts no thread: [`Writer::run`] is for a thread of the node,
//! [`Writer::step`] for whoever drives it otherwise.
//!
//! Invariants:
//! - L2: one batch at a time is under way, so that everything before it is durable; a new segment's
//!   first batch seals the older ones;
//! - L6: a new segment starts with the hard state of all replicas as of its beginning;
//! - L8, L9: completions run in the order of the queue, after the sync of the batch;
//! - N1: up to where the log is durable is told to others after that sync, and before the completions;
//! - a segment goes, oldest first, only when what is *durable* says that nothing needs it.
//!
//! On failure of any write, sync or other file operation nothing is ever acknowledged again: the
//! failed batch and all that waits or comes later completes with the error, and the writer ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::format::batch::{self, Manifest, Seal};
use crate::format::record::{Change, Frames, Record};
use crate::format::{HEADER_BYTES, Place, Position};
use crate::ledger::Ledger;
use crate::recovery::{Again, Resume, Void};
use crate::segment::{ReadError, Segment, Store, failed};
use crate::shared::{Request, Shared};
use crate::weaken::{Weaken, Weakened};
use crate::{Completion, WalError};

/// Reclaimed segments that wait to be recycled; more are removed.
const SPARES: usize = 1;

/// A segment that is written no more.
#[derive(Debug)]
struct Sealed {
    segment: Arc<Segment>,
    /// Where its content ends.
    end: u64,
}

/// Writes the log. There is one for each [`crate::Wal`].
pub struct Writer {
    shared: Arc<Shared>,
    store: Store,
    /// Length of a segment that no batch needs longer.
    segment_bytes: u64,
    /// The hard state as written.
    ledger: Ledger,
    sealed: BTreeMap<u64, Sealed>,
    /// The segment that is written; none before the first batch of this run.
    current: Option<Arc<Segment>>,
    /// Up to here the log is durable. In the current segment, the next batch goes here.
    durable: Position,
    /// What the next segment's first batch must seal.
    seals: Vec<Seal>,
    next_number: u64,
    /// Segments below this number are needed by nothing durable.
    needed_from: u64,
    weakened: Weakened,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("durable", &self.durable).finish_non_exhaustive()
    }
}

impl Writer {
    /// Goes on after a recovery, and makes durable what was read but is not known to be (L2). The
    /// segments that were read are `found`.
    pub(crate) fn begin(
        shared: Arc<Shared>,
        store: Store,
        segment_bytes: u64,
        resume: Resume,
        found: BTreeMap<u64, Arc<Segment>>,
        weakened: Weakened,
    ) -> Result<Self, WalError> {
        let Some(next_number) = resume.newest.checked_add(1) else {
            let reason = "the segment numbers are used up".to_owned();
            return Err(WalError::Failed { action: "begin a segment", reason });
        };
        let again = load(&resume.again, &found)?;
        let ends = resume.ends;
        let seal = |(number, segment): (u64, Arc<Segment>)| {
            let end = ends.get(&number).copied().unwrap_or(HEADER_BYTES);
            (number, Sealed { segment, end })
        };
        let mut writer = Self {
            shared,
            store,
            segment_bytes,
            ledger: resume.ledger,
            sealed: found.into_iter().map(seal).collect(),
            current: None,
            durable: resume.mark,
            seals: resume.seals,
            next_number,
            needed_from: 0,
            weakened,
        };
        let places = writer.commit(&again)?;
        writer.settle(&again, &places);
        for Void { number, has_damage } in resume.void {
            writer.sealed.remove(&number);
            if has_damage {
                writer.shared.forget_segment(number);
                writer.store.set_aside(number)?;
            } else {
                writer.remove(number)?;
            }
        }
        Ok(writer)
    }

    /// Writes until the log is closed and nothing is queued, or until something fails. Blocks.
    pub fn run(mut self) {
        while self.shared.wait_for_work() {
            if let Err(error) = self.step() {
                tracing::error!(%error, "the log has stopped");
                return;
            }
        }
    }

    /// Writes everything queued as one batch and returns the number of records; 0 when nothing is
    /// worth a batch.
    ///
    /// # Errors
    /// The first failure, now and at every later call.
    pub fn step(&mut self) -> Result<usize, WalError> {
        let mut records = Vec::new();
        let mut completions = Vec::new();
        for Request { records: requested, done } in self.shared.take()? {
            records.extend(requested);
            completions.extend(done);
        }
        if self.weakened.is(Weaken::CompleteBeforeSync) {
            complete(completions.drain(..), &Ok(()));
        }
        let mut outcome = self.write(&records);
        if let Err(error) = &outcome {
            // Those that wait come after those under way.
            completions.extend(self.shared.fail(error));
        }
        complete(completions.into_iter(), &outcome);
        if outcome.is_ok() {
            outcome = self.reclaim();
            if let Err(error) = &outcome {
                complete(self.shared.fail(error).into_iter(), &outcome);
            }
        }
        outcome.map(|()| records.len())
    }

    fn write(&mut self, records: &[Record]) -> Result<(), WalError> {
        if records.is_empty() {
            // Requests without records wait for those before them, which are durable.
            return Ok(());
        }
        let places = self.commit(records)?;
        self.settle(records, &places);
        Ok(())
    }

    /// Makes records durable, as one batch, and says where each one lies.
    fn commit(&mut self, records: &[Record]) -> Result<Vec<Place>, WalError> {
        let mut manifest = Manifest::describe(records);
        let mut frames = Frames::of(records);
        let mut hard_state = Vec::new();
        let len = batch::len(&manifest, &frames);
        let fits = |segment: &Arc<Segment>| self.durable.offset + len <= segment.len;
        let segment = match self.current.clone().filter(fits) {
            Some(segment) => segment,
            None => {
                if !self.weakened.is(Weaken::OmitHardState) {
                    hard_state = self.ledger.records();
                }
                let all = [&hard_state[..], records].concat();
                manifest = Manifest::describe(&all);
                manifest.seals.clone_from(&self.seals);
                frames = Frames::of(&all);
                self.roll(HEADER_BYTES + batch::len(&manifest, &frames))?
            }
        };
        let header = &segment.header;
        let offset =
            if self.durable.segment == header.number { self.durable.offset } else { HEADER_BYTES };

        for record in records {
            self.ledger.apply(record.stream, &record.change);
        }
        for item in &mut manifest.items {
            item.state = self.ledger.streams.get(&item.stream).cloned().unwrap_or_default();
        }
        frames.stamp(header.number, header.salt);
        let mut written = batch::encode(header, offset, self.durable, &manifest, &frames);
        let end = offset + written.bytes.len() as u64;
        let position = Position { segment: header.number, offset: end };
        if self.weakened.is(Weaken::TellBeforeSync) {
            self.shared.set_durable(position);
        }
        segment.file.write_all_at(&written.bytes, offset).map_err(failed("write a batch"))?;
        self.store.sync(&*segment.file)?;

        self.durable = position;
        self.shared.set_durable(position);
        self.seals = vec![Seal { segment: header.number, end, checksum: written.checksum }];
        self.shared.count(|stats| {
            stats.batches += 1;
            stats.records += records.len() as u64;
            stats.bytes_written += written.bytes.len() as u64;
            stats.syncs = self.store.syncs;
        });
        Ok(written.places.split_off(hard_state.len()))
    }

    /// Begins a segment of at least `len` bytes.
    fn roll(&mut self, len: u64) -> Result<Arc<Segment>, WalError> {
        let number = self.next_number;
        let len = len.max(self.segment_bytes);
        let segment = match self.sealed.first_entry() {
            Some(oldest) if *oldest.key() < self.needed_from && oldest.get().segment.len == len => {
                let (old, Sealed { segment, end }) = oldest.remove_entry();
                self.shared.forget_segment(old);
                self.shared.count(|stats| stats.recycled += 1);
                self.store.recycle(&segment, end, number)?
            }
            _ => self.store.create(number, len)?,
        };
        let segment = Arc::new(segment);
        self.next_number = number.saturating_add(1);
        self.shared.add_segment(&segment);
        if let Some(full) = self.current.replace(Arc::clone(&segment)) {
            let sealed = Sealed { segment: full, end: self.durable.offset };
            self.sealed.insert(self.durable.segment, sealed);
        }
        Ok(segment)
    }

    /// Tells the index what is durable, and learns what is needed no more.
    fn settle(&mut self, records: &[Record], places: &[Place]) {
        let mut state = self.shared.state.lock();
        for (record, place) in records.iter().zip(places) {
            if let Change::Entry { id, .. } = record.change {
                state.index.settle(record.stream, id, *place);
            }
        }
        state.index.shrink();
        // The index is ahead of the disk: what a queued change releases is needed until that change
        // is durable. What is not needed once never is again.
        let mut pending = state.queue.iter().flat_map(|request| &request.records);
        if !pending.any(|record| record.change.releases()) {
            self.needed_from = state.index.oldest_needed();
        }
    }

    /// Removes old segments that nothing needs, except those that will be recycled.
    fn reclaim(&mut self) -> Result<(), WalError> {
        while self.sealed.range(..self.needed_from).count() > SPARES {
            let Some((number, _)) = self.sealed.pop_first() else { break };
            self.remove(number)?;
        }
        Ok(())
    }

    fn remove(&self, number: u64) -> Result<(), WalError> {
        self.shared.forget_segment(number);
        self.store.remove(number)
    }
}

impl Drop for Writer {
    /// Without a writer nothing waits for ever.
    fn drop(&mut self) {
        let error = WalError::Closed;
        complete(self.shared.fail(&error).into_iter(), &Err(error));
    }
}

fn complete(completions: impl Iterator<Item = Completion>, outcome: &Result<(), WalError>) {
    for done in completions {
        done(outcome.clone());
    }
}

/// Reads the payloads of what is to be written again.
fn load(again: &[Again], found: &BTreeMap<u64, Arc<Segment>>) -> Result<Vec<Record>, WalError> {
    let mut records = Vec::new();
    for Again { stream, change, payload } in again {
        let mut record = Record::new(*stream, change.clone());
        if let (Change::Entry { id, .. }, Some(place)) = (change, payload) {
            let read = match found.get(&place.segment) {
                Some(segment) => segment.read(*stream, *id, *place),
                None => Err(ReadError::Wrong),
            };
            record.payload = read.map_err(|error| WalError::Failed {
                action: "read an entry again",
                reason: error.to_string(),
            })?;
        }
        records.push(record);
    }
    Ok(records)
}
