//! What clients do and see, for workloads whose operations are no register's.
//!
//! The same record as [`history`](crate::history), for any kind of call and answer: each workload has its
//! own, defined beside the checker that reads them. A [`Journal`] is the single writer of a run; its
//! stamps are strictly increasing, so the order of the record is the real-time order of the events. Each
//! event is also one line of JSON in the sink.
//!
//! Invariants:
//! - An operation is on the record before it can reach the cluster, and its answer only after it arrived.
//! - An operation that never completed is [`End::Unknown`] (W4): it may take effect later.
//!
//! Does not judge, and does not know what calls and answers mean. A sink that fails does not disturb the
//! run; [`Journal::entries`] reports it at the end, because a record with holes proves nothing.

use std::io::{self, Write};
use std::sync::Arc;

use annulus_runtime::Clock;
use parking_lot::Mutex;
use serde::Serialize;

use crate::history::Outcome;

/// How an operation ended, over all its attempts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End<A> {
    /// Answered.
    Ok(A),
    /// Certainly not applied, now or later.
    Failed,
    /// Anything else.
    Unknown,
}

impl From<Outcome> for End<()> {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Ok(_) => Self::Ok(()),
            Outcome::Failed => Self::Failed,
            Outcome::Unknown => Self::Unknown,
        }
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<C, A> {
    /// The client: it sends its next operation when the last one has ended.
    pub process: u64,
    /// What was asked.
    pub call: C,
    /// When, before anything was sent.
    pub invoked_us: u64,
    /// When the client knew the outcome; `None` while it does not.
    pub completed_us: Option<u64>,
    /// How it ended.
    pub end: End<A>,
}

impl<C, A> Entry<C, A> {
    /// The answer and when it was there, if there was one.
    #[must_use]
    pub fn answer(&self) -> Option<(&A, u64)> {
        match (&self.end, self.completed_us) {
            (End::Ok(answer), Some(at_us)) => Some((answer, at_us)),
            _ => None,
        }
    }
}

/// Names an operation between its invocation and its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(usize);

/// The single writer of a record. Clones write the same one.
pub struct Journal<C, A>(Arc<Mutex<Inner<C, A>>>);

impl<C, A> Clone for Journal<C, A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<C, A> {
    clock: Clock,
    last_us: u64,
    entries: Vec<Entry<C, A>>,
    sink: Box<dyn Write + Send>,
    sink_error: Option<io::Error>,
}

/// A line of the file. A line is final when it is written, so an operation has two.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Event<'a, C, A> {
    Invoke { operation: usize, process: u64, call: &'a C, at_us: u64 },
    Complete { operation: usize, end: &'a End<A>, at_us: u64 },
}

impl<C: Clone + Serialize, A: Clone + Serialize> Journal<C, A> {
    /// An empty record that writes each event to `sink`, which is flushed at the end only.
    #[must_use]
    pub fn new(clock: Clock, sink: Box<dyn Write + Send>) -> Self {
        let (entries, sink_error) = (Vec::new(), None);
        Self(Arc::new(Mutex::new(Inner { clock, last_us: 0, entries, sink, sink_error })))
    }

    /// Records that `process` is about to send `call`. Call it before anything leaves.
    #[must_use = "an operation that is never completed counts as unknown"]
    pub fn invoke(&self, process: u64, call: C) -> Ticket {
        let mut inner = self.0.lock();
        let (at_us, operation) = (inner.stamp(), inner.entries.len());
        let event: Event<'_, C, A> = Event::Invoke { operation, process, call: &call, at_us };
        inner.write(&event);
        let end = End::Unknown;
        inner.entries.push(Entry { process, call, invoked_us: at_us, completed_us: None, end });
        Ticket(operation)
    }

    /// Records how the operation ended. Call it after the answer has arrived.
    ///
    /// # Panics
    /// When the ticket is of another journal or was used before: a defect of the caller that would make
    /// the record worthless.
    pub fn complete(&self, ticket: Ticket, end: End<A>) {
        let mut inner = self.0.lock();
        let (at_us, operation) = (inner.stamp(), ticket.0);
        let event: Event<'_, C, A> = Event::Complete { operation, end: &end, at_us };
        inner.write(&event);
        let open = &mut inner.entries[operation];
        assert!(open.completed_us.is_none(), "an operation completes once");
        open.completed_us = Some(at_us);
        open.end = end;
    }

    /// The operations so far, in the order in which they were invoked; those in flight are unknown.
    /// Flushes the sink.
    ///
    /// # Errors
    /// When the sink did not take every line.
    pub fn entries(&self) -> io::Result<Vec<Entry<C, A>>> {
        let mut inner = self.0.lock();
        if let Some(error) = &inner.sink_error {
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        inner.sink.flush()?;
        Ok(inner.entries.clone())
    }
}

impl<C: Serialize, A: Serialize> Inner<C, A> {
    /// The time, later than every stamp before: two events are never concurrent by rounding.
    fn stamp(&mut self) -> u64 {
        self.last_us = self.clock.monotonic_us().max(self.last_us + 1);
        self.last_us
    }

    fn write(&mut self, event: &Event<'_, C, A>) {
        if self.sink_error.is_some() {
            return;
        }
        let line = serde_json::to_vec(event).map_err(io::Error::from);
        let written = line.and_then(|mut line| {
            line.push(b'\n');
            self.sink.write_all(&line)
        });
        self.sink_error = written.err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that the test can look into; `None` refuses every line.
    #[derive(Clone)]
    struct Shared(Option<Arc<Mutex<Vec<u8>>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match &self.0 {
                Some(file) => file.lock().write(bytes),
                None => Err(io::Error::new(io::ErrorKind::StorageFull, "no space")),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn record_some(journal: &Journal<String, u64>) {
        let first = journal.invoke(1, "first".to_owned());
        let second = journal.clone().invoke(2, "second".to_owned());
        let _in_flight = journal.invoke(3, "third".to_owned());
        journal.complete(second, End::Failed);
        journal.complete(first, End::Ok(7));
    }

    #[test]
    fn events_are_in_strict_order_in_memory_and_in_the_file() {
        let file = Arc::new(Mutex::new(Vec::new()));
        let journal = Journal::new(Clock::real(), Box::new(Shared(Some(Arc::clone(&file)))));
        record_some(&journal);
        let entries = journal.entries().unwrap();
        let mut stamps: Vec<u64> = entries.iter().map(|entry| entry.invoked_us).collect();
        stamps.extend(entries[1].completed_us);
        stamps.extend(entries[0].completed_us);
        assert_eq!(stamps.len(), 5);
        assert!(stamps.is_sorted_by(|earlier, later| earlier < later), "{stamps:?}");
        assert_eq!(entries[0].answer(), entries[0].completed_us.map(|at_us| (&7, at_us)));
        assert_eq!((entries[1].answer(), entries[2].answer()), (None, None));
        assert_eq!(entries[2].end, End::Unknown);

        let text = String::from_utf8(file.lock().clone()).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[0]["invoke"]["call"], "first");
        assert_eq!(lines[3]["complete"]["end"], "failed");
        assert_eq!(lines[4]["complete"]["end"]["ok"], 7);
    }

    #[test]
    fn a_sink_that_fails_is_reported_at_the_end() {
        let journal = Journal::new(Clock::real(), Box::new(Shared(None)));
        record_some(&journal);
        assert_eq!(journal.entries().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
