//! What handles and writer share: the queue and the index, under one lock, so that what is visible
//! and what is queued are the same sequence. That is all there is to L8.
//!
//! The queue has no limit of its own: what waits in it was admitted by its group, whose queues are
//! bounded in bytes.
//!
//! Invariant: no completion and no hook runs under the lock.
//!
//! On failure of the writer every operation completes with the writer's error.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::format::Position;
use crate::format::record::{Change, Record};
use crate::index::Index;
use crate::segment::Segment;
use crate::{Completion, StreamId, WalError, WalStats};

/// What one call asks of the writer.
pub(crate) struct Request {
    pub(crate) records: Vec<Record>,
    pub(crate) done: Option<Completion>,
}

/// The lock, and what wakes the writer's thread.
pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    work: Condvar,
}

pub(crate) type Hook = Arc<dyn Fn() + Send + Sync>;

pub(crate) struct State {
    /// What has been queued.
    pub(crate) index: Index,
    pub(crate) queue: Vec<Request>,
    /// Whether something in the queue is worth a batch.
    pub(crate) urgent: bool,
    pub(crate) closed: bool,
    failed: Option<WalError>,
    pub(crate) hook: Option<Hook>,
    pub(crate) segments: BTreeMap<u64, Arc<Segment>>,
    pub(crate) newest_segment: u64,
    /// Everything before this is durable.
    pub(crate) durable: Position,
    pub(crate) stats: WalStats,
}

impl State {
    /// Why nothing more is taken, if so.
    fn refuses(&self) -> Result<(), WalError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None if self.closed => Err(WalError::Closed),
            None => Ok(()),
        }
    }

    /// Why this log cannot be used, if so.
    pub(crate) fn check(&self, stream: StreamId) -> Result<(), WalError> {
        let ledger = &self.index.ledger;
        if ledger.tombstones.contains(&stream) {
            return Err(WalError::Destroyed);
        }
        if let Some(damage) = ledger.damage.get(&stream) {
            return Err(WalError::damaged(damage.clone()));
        }
        if ledger.streams.contains_key(&stream) { Ok(()) } else { Err(WalError::Unknown) }
    }

    /// Applies changes to the index and makes records of them.
    pub(crate) fn take_over(
        &mut self,
        stream: StreamId,
        changes: impl IntoIterator<Item = (Change, Bytes)>,
    ) -> Result<Vec<Record>, WalError> {
        let mut records = Vec::new();
        for (change, payload) in changes {
            let held = matches!(change, Change::Entry { .. }).then(|| payload.clone());
            self.index
                .apply(stream, &change, held, None)
                .map_err(|reason| WalError::Refused { reason })?;
            records.push(Record { stream, change, payload });
        }
        Ok(records)
    }
}

impl Shared {
    pub(crate) fn new(index: Index, found: &BTreeMap<u64, Arc<Segment>>) -> Self {
        let state = State {
            index,
            queue: Vec::new(),
            urgent: false,
            closed: false,
            failed: None,
            hook: None,
            segments: found.clone(),
            newest_segment: 0,
            durable: Position::default(),
            stats: WalStats::default(),
        };
        Self { state: Mutex::new(state), work: Condvar::new() }
    }

    /// Queues what `prepare` makes, unless it refuses, and wakes the writer unless that can wait.
    pub(crate) fn submit(
        &self,
        can_wait: bool,
        done: Option<Completion>,
        prepare: impl FnOnce(&mut State) -> Result<Vec<Record>, WalError>,
    ) {
        let mut state = self.state.lock();
        let prepared = state.refuses().and_then(|()| prepare(&mut state));
        let records = match prepared {
            Ok(records) => records,
            Err(error) => {
                drop(state);
                if let Some(done) = done {
                    done(Err(error));
                }
                return;
            }
        };
        state.queue.push(Request { records, done });
        if !can_wait && !state.urgent {
            state.urgent = true;
            self.wake(state.hook.clone(), state);
        }
    }

    /// Wakes whoever runs the writer, after letting go of the lock.
    pub(crate) fn wake(&self, hook: Option<Hook>, lock: MutexGuard<'_, State>) {
        drop(lock);
        self.work.notify_one();
        if let Some(hook) = hook {
            hook();
        }
    }

    /// Blocks until there is something to write; `false` when there will never be.
    pub(crate) fn wait_for_work(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.failed.is_some() {
                return false;
            }
            if state.urgent {
                return true;
            }
            if state.closed {
                return !state.queue.is_empty();
            }
            self.work.wait(&mut state);
        }
    }

    /// The queue, or nothing while nothing in it is worth a batch.
    pub(crate) fn take(&self) -> Result<Vec<Request>, WalError> {
        let mut state = self.state.lock();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        if !state.urgent && !state.closed {
            return Ok(Vec::new());
        }
        state.urgent = false;
        Ok(std::mem::take(&mut state.queue))
    }

    /// Refuses everything from now on; the first reason stays. Returns what the caller has to
    /// complete with the error.
    pub(crate) fn fail(&self, error: &WalError) -> Vec<Completion> {
        let mut state = self.state.lock();
        state.failed.get_or_insert_with(|| error.clone());
        let waiting = std::mem::take(&mut state.queue);
        waiting.into_iter().filter_map(|request| request.done).collect()
    }

    pub(crate) fn add_segment(&self, segment: &Arc<Segment>) {
        let mut state = self.state.lock();
        state.segments.insert(segment.header.number, Arc::clone(segment));
        state.newest_segment = segment.header.number;
    }

    pub(crate) fn set_durable(&self, position: Position) {
        self.state.lock().durable = position;
    }

    pub(crate) fn forget_segment(&self, number: u64) {
        self.state.lock().segments.remove(&number);
    }

    pub(crate) fn count(&self, update: impl FnOnce(&mut WalStats)) {
        update(&mut self.state.lock().stats);
    }
}
