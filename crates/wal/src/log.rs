//! The handles: [`Wal`] for the node, [`GroupLog`] for one replica.
//!
//! They translate calls into changes of the shared state; the only thing that they do on the disk
//! is to read old entries.
//!
//! On failure of the writer every operation completes with the writer's error. An entry that fails
//! its check when it is read back damages its replica, on record.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use annulus_runtime::Disk;
use bytes::Bytes;

use crate::format::record::{Change, Record};
use crate::format::{BLOCK, Place, Position, file_name, sectors_of};
use crate::index::{Index, Picked, Source};
use crate::recovery::Survey;
use crate::segment::{ReadError, Segment, Store};
use crate::shared::{Hook, Request, Shared, State};
use crate::weaken::Weakened;
use crate::writer::Writer;
use crate::{
    Completion, Damage, Entry, EntryId, LogState, Options, StreamId, Vote, WalError, WalStats,
};

/// The longest payload of an entry, bytes: lengths on the disk have 32 bits.
const PAYLOAD_BYTES: usize = 1 << 30;

/// The write-ahead log of a node. A cheap handle; clones are the same log.
#[derive(Clone)]
pub struct Wal {
    shared: Arc<Shared>,
    recovered_end: Position,
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("newest_segment", &self.newest_segment()).finish()
    }
}

impl Wal {
    /// Recovers what is on disk in `dir` (created when missing) and begins a new segment. On return
    /// everything recovered is durable. `salt` gives 64 random bits for each new segment. Blocks.
    ///
    /// Damage is no error: see [`Wal::damage`].
    ///
    /// # Errors
    /// When the disk fails, or holds segments of a later program.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: Options,
        salt: impl FnMut() -> u64 + Send + 'static,
    ) -> Result<(Self, Writer), WalError> {
        Self::open_weakened(disk, dir, &options, salt, Weakened::default())
    }

    pub(crate) fn open_weakened(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: &Options,
        salt: impl FnMut() -> u64 + Send + 'static,
        weakened: Weakened,
    ) -> Result<(Self, Writer), WalError> {
        let store = Store::open(disk, dir, Box::new(salt), weakened)?;
        let mut survey = Survey::new(weakened);
        let mut found = BTreeMap::new();
        for number in store.numbers()? {
            let (file, data) = store.load(number)?;
            let len = data.len() as u64;
            let header = survey.add(number, data).map_err(|error| WalError::Failed {
                action: "read a segment",
                reason: error.to_string(),
            })?;
            if let Some(header) = header {
                found.insert(number, Arc::new(Segment { header, file, len }));
            }
        }
        let (index, resume) = survey.finish(Index::new(options.tail_bytes));
        let recovered_end = resume.end;
        let shared = Arc::new(Shared::new(index, &found));
        let segment_bytes = options.segment_bytes.next_multiple_of(BLOCK);
        let writer =
            Writer::begin(Arc::clone(&shared), store, segment_bytes, resume, found, weakened)?;
        Ok((Self { shared, recovered_end }, writer))
    }

    /// All replicas that were recovered or created and not destroyed, damaged ones too.
    #[must_use]
    pub fn streams(&self) -> Vec<StreamId> {
        self.shared.state.lock().index.ledger.streams.keys().copied().collect()
    }

    /// All replicas that were destroyed.
    #[must_use]
    pub fn tombstones(&self) -> Vec<StreamId> {
        self.shared.state.lock().index.ledger.tombstones.iter().copied().collect()
    }

    /// What makes this log unusable: the replica must stop, loudly, and be replaced (L5). Also
    /// answers for a replica that the log does not know, when damage may have swallowed its birth.
    #[must_use]
    pub fn damage(&self, stream: StreamId) -> Option<Damage> {
        let state = self.shared.state.lock();
        let ledger = &state.index.ledger;
        let known = ledger.streams.contains_key(&stream) || ledger.tombstones.contains(&stream);
        let concerns = if known { stream } else { StreamId::NODE };
        ledger.damage.get(&concerns).cloned()
    }

    /// Gives birth to a replica with an empty log. [`Wal::log`] works at once; `done` is called
    /// when the birth is durable. A replica that exists stays as it is.
    pub fn create(&self, stream: StreamId, done: Completion) {
        self.shared.submit(false, Some(done), |state| match state.check(stream) {
            Err(WalError::Unknown) => state.take_over(stream, [(Change::Create, Bytes::new())]),
            other => other.map(|()| Vec::new()),
        });
    }

    /// Ends a replica for good, known or not: a tombstone stays (H4).
    pub fn destroy(&self, stream: StreamId, done: Completion) {
        self.shared.submit(false, Some(done), |state| match state.check(stream) {
            Err(WalError::Destroyed) => Ok(Vec::new()),
            _ => state.take_over(stream, [(Change::Destroy, Bytes::new())]),
        });
    }

    /// The log of a replica.
    ///
    /// # Errors
    /// When the replica was never created, was destroyed, or is damaged.
    pub fn log(&self, stream: StreamId) -> Result<GroupLog, WalError> {
        self.shared.state.lock().check(stream)?;
        Ok(GroupLog { shared: Arc::clone(&self.shared), stream })
    }

    /// The number of the segment that is written. Numbers only grow, over all lives of the folder,
    /// and this one is durable.
    #[must_use]
    pub fn newest_segment(&self) -> u64 {
        self.shared.state.lock().newest_segment
    }

    /// Up to here the log is durable: the end of the last batch whose sync has returned. Only grows,
    /// over all lives of the folder. When a completion runs, its batch lies before this.
    #[must_use]
    pub fn durable_position(&self) -> Position {
        self.shared.state.lock().durable
    }

    /// Where the log ended when [`Wal::open`] read it, before a segment was begun; the least position
    /// when there was none.
    ///
    /// A sound log never ends below a position that [`Wal::durable_position`] returned in any of its
    /// lives. Let that be the end of a batch B in segment S:
    ///
    /// - B's sync had returned, so that S has its header and B and all before it in S are on the disk,
    ///   whatever a kill or a power cut takes away later. Nothing of that is ever overwritten, nor cut
    ///   off as torn: what is torn was never synced, and lies behind B (L3).
    /// - If no newer segment counts, S is read up to its last whole or damaged batch. A damaged one
    ///   counts to its end; where that is unreadable, to the next batch or to the end of the file. Both
    ///   reach as far as B. A segment without a readable header counts to the end of its file.
    /// - Else the newest segment that counts is newer than S. It counts from its header on, if nothing
    ///   in it is whole: that is beyond any position in S. So it does not matter what a seal cuts off S
    ///   because it is written again.
    /// - A segment is removed, recycled or set aside only when a batch in a newer one is durable, and the
    ///   newest segment with a durable batch never is: then the second case holds. A half-made file that
    ///   is ignored as unborn had no batch yet.
    ///
    /// A log that was set back to an earlier state ends where it ended then, unless it was opened since:
    /// every opening begins a segment.
    #[must_use]
    pub fn recovered_end(&self) -> Position {
        self.recovered_end
    }

    /// Counts since the log was opened, and its size.
    #[must_use]
    pub fn stats(&self) -> WalStats {
        let state = self.shared.state.lock();
        let mut stats = state.stats.clone();
        stats.segments = state.segments.len() as u64;
        stats.bytes_on_disk = state.segments.values().map(|segment| segment.len).sum();
        stats
    }

    /// Refuses new work from now on; the writer ends when it has written what is queued.
    pub fn close(&self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        self.shared.wake(state.hook.clone(), state);
    }

    /// Calls `hook` whenever [`Writer::step`] has something to do after it had nothing, and when
    /// the log is closed. For whoever drives the writer without [`Writer::run`].
    pub fn on_work(&self, hook: Box<dyn Fn() + Send + Sync>) {
        let hook: Hook = Arc::from(hook);
        let mut state = self.shared.state.lock();
        state.hook = Some(Arc::clone(&hook));
        if state.urgent {
            drop(state);
            hook();
        }
    }
}

/// The log of one replica. A cheap handle; clones are the same log.
#[derive(Clone)]
pub struct GroupLog {
    shared: Arc<Shared>,
    stream: StreamId,
}

impl std::fmt::Debug for GroupLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupLog").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl GroupLog {
    /// Appends entries with consecutive indexes. They are readable on return; `done` is called when
    /// they are durable.
    pub fn append(&self, entries: Vec<Entry>, done: Completion) {
        self.submit(false, Some(done), |state| {
            let mut prev = state.index.ledger.last(self.stream);
            let mut changes = Vec::with_capacity(entries.len());
            for Entry { id, membership, payload } in entries {
                let next = prev.is_none_or(|prev| prev.index.checked_add(1) == Some(id.index));
                if !next || payload.len() > PAYLOAD_BYTES {
                    let held = prev.map_or_else(|| "nothing".to_owned(), |prev| prev.to_string());
                    let bytes = payload.len();
                    let reason = format!("entry {id} of {bytes} bytes cannot follow {held}");
                    return Err(WalError::Refused { reason });
                }
                changes.push((Change::Entry { id, prev, membership }, payload));
                prev = Some(id);
            }
            state.take_over(self.stream, changes)
        });
    }

    /// Saves a vote; it may be told to others only after `done`.
    pub fn save_vote(&self, vote: Vote, done: Completion) {
        self.change(false, Some(done), |_| Change::Vote(vote));
    }

    /// Saves how far the log is known to be committed: a hint. It rides with the next batch and
    /// causes none.
    pub fn save_committed(&self, committed: EntryId) {
        self.change(true, None, |_| Change::Committed(committed));
    }

    /// Drops all entries after this one; all that are not purged when `None`. Takes effect at once;
    /// rides with the next batch, and so is durable no later than what is appended next.
    pub fn truncate_after(&self, after: Option<EntryId>) {
        self.change(true, None, |index| {
            let membership = index.membership_after_truncate(self.stream, after);
            Change::Truncate { after, membership }
        });
    }

    /// Drops all entries up to this one, also when the log ends before it; the log then goes on
    /// after it. Takes effect at once. The caller keeps E1.
    pub fn purge(&self, upto: EntryId) {
        self.change(false, None, |index| {
            let membership = index.membership_after_purge(self.stream, upto);
            Change::Purge { upto, membership }
        });
    }

    /// Drops all entries; the log goes on after this one, which it does not hold (L7). What is
    /// dropped stays on the disk until a purge at or above it.
    pub fn reset(&self, after: EntryId, done: Completion) {
        self.change(false, Some(done), |index| {
            let membership = index.membership_after_reset(self.stream, after);
            Change::Reset { after, membership }
        });
    }

    /// Consecutive entries from `range.start`, as many as are held and no more than about
    /// `max_bytes`, but at least one if the first is held. May block on the disk.
    ///
    /// # Errors
    /// When the log cannot be used, the disk fails, or an entry on it fails its check; the replica
    /// is then damaged.
    pub fn entries(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Entry>, WalError> {
        let (picked, segments) = {
            let state = self.shared.state.lock();
            state.check(self.stream)?;
            let picked = state.index.pick(self.stream, range, max_bytes);
            let mut segments = BTreeMap::new();
            for Picked { source, .. } in &picked {
                if let Source::Disk(place) = source
                    && let Some(segment) = state.segments.get(&place.segment)
                {
                    segments.insert(place.segment, Arc::clone(segment));
                }
            }
            (picked, segments)
        };
        let mut entries = Vec::with_capacity(picked.len());
        for Picked { id, membership, source } in picked {
            let payload = match source {
                Source::Memory(payload) => Some(payload),
                Source::Disk(place) => self.read(segments.get(&place.segment), id, place)?,
            };
            let Some(payload) = payload else { break };
            entries.push(Entry { id, membership, payload });
        }
        Ok(entries)
    }

    /// The payload of an entry on the disk; `None` when the entry is held no more.
    fn read(
        &self,
        segment: Option<&Arc<Segment>>,
        id: EntryId,
        place: Place,
    ) -> Result<Option<Bytes>, WalError> {
        let read = segment.map(|segment| segment.read(self.stream, id, place));
        match read.unwrap_or(Err(ReadError::Wrong)) {
            Ok(payload) => Ok(Some(payload)),
            Err(ReadError::Disk(error)) => {
                Err(WalError::Failed { action: "read an entry", reason: error.to_string() })
            }
            Err(ReadError::Wrong) => {
                let mut state = self.shared.state.lock();
                if state.index.is_at(self.stream, id, place) {
                    return Err(self.damaged(&mut state, id, place));
                }
                // Purged or truncated meanwhile, and its segment recycled.
                Ok(None)
            }
        }
    }

    /// The identity of the entry at `index`, if it is held or the last one purged.
    #[must_use]
    pub fn id_at(&self, index: u64) -> Option<EntryId> {
        self.shared.state.lock().index.id_at(self.stream, index)
    }

    /// What has been queued, durable or not.
    #[must_use]
    pub fn state(&self) -> LogState {
        let state = self.shared.state.lock();
        state.index.ledger.streams.get(&self.stream).cloned().unwrap_or_default()
    }

    /// Whether the entries that are held take more than `bytes` bytes, with their records where these
    /// are written. Looks at no more entries than it must, under the lock of the log.
    #[must_use]
    pub fn is_larger_than(&self, bytes: u64) -> bool {
        self.shared.state.lock().index.is_larger_than(self.stream, bytes)
    }

    /// The membership entries that are held, oldest first. [`LogState::membership`] is the last of
    /// them; when there are none, it names one that is held no more.
    #[must_use]
    pub fn memberships(&self) -> Vec<EntryId> {
        self.shared.state.lock().index.memberships(self.stream)
    }

    /// What [`LogState::membership`] would be without the entries that are held.
    #[cfg(test)]
    pub(crate) fn membership_below(&self) -> Option<EntryId> {
        self.shared.state.lock().index.membership_after_truncate(self.stream, None)
    }

    #[cfg(test)]
    pub(crate) fn tail(&self) -> (usize, usize, usize) {
        self.shared.state.lock().index.tail()
    }

    fn change(
        &self,
        can_wait: bool,
        done: Option<Completion>,
        change: impl FnOnce(&Index) -> Change,
    ) {
        self.submit(can_wait, done, |state| {
            let change = change(&state.index);
            state.take_over(self.stream, [(change, Bytes::new())])
        });
    }

    fn submit(
        &self,
        can_wait: bool,
        done: Option<Completion>,
        prepare: impl FnOnce(&mut State) -> Result<Vec<Record>, WalError>,
    ) {
        self.shared.submit(can_wait, done, |state| {
            state.check(self.stream)?;
            prepare(state)
        });
    }

    /// An acknowledged entry is unreadable: the replica is damaged from now on, and on record.
    fn damaged(&self, state: &mut State, id: EntryId, place: Place) -> WalError {
        let damage = Damage {
            file: file_name(place.segment),
            offset: sectors_of(place.at, 1).start,
            reason: format!("entry {id} fails its check"),
        };
        let Damage { file, offset, reason } = &damage;
        tracing::error!(stream = %self.stream, %file, offset, %reason, "the log is damaged");
        let change = Change::Damaged(damage.clone());
        if let Ok(records) = state.take_over(self.stream, [(change, Bytes::new())]) {
            state.queue.push(Request { records, done: None });
        }
        WalError::damaged(damage)
    }
}
