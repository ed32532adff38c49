//! What clients did and saw: the one record that every checker reads.
//!
//! A [`Recorder`] is the single writer of a run. Clients call [`Recorder::invoke`] before they send
//! and [`Recorder::complete`] after the answer; both stamp the time themselves, under one lock, so
//! that the stamps are strictly increasing and the order of the record is the real-time order of
//! the events. With a sink, each event is also one line of JSON there; [`History::read`] turns the
//! lines into the same history again.
//!
//! Invariants:
//! - An operation is on the record before it can reach the cluster.
//! - An operation that never completed is [`Outcome::Unknown`] (W4): it may take effect later.
//! - An answer fits its call (a read has a value, a compare-and-swap says whether it swapped).
//!
//! This module does not judge, and it does not decide what an error means: that is the client's
//! part. A sink that fails does not disturb the run; [`Recorder::history`] reports it at the end,
//! because a history with holes proves nothing.

use std::fmt;
use std::io::{self, BufRead, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use annulus_runtime::Clock;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// What a client asked of one key. Values are numbers so that each write can be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Sets the value.
    Write(u64),
    /// Reads the value.
    Read,
    /// Sets `to` if the value is `from`.
    Cas {
        /// The value that must be there.
        from: u64,
        /// The value that replaces it.
        to: u64,
    },
    /// Removes the key.
    Delete,
}

/// What a completed call answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// The write or delete took effect.
    Done,
    /// The value read; `None` when the key is absent.
    Read(Option<u64>),
    /// Whether the compare-and-swap found its `from`. A refusal for another value is an answer,
    /// not a failure: it says something about the register.
    Swapped(bool),
}

/// How an operation ended, over all its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Answered.
    Ok(Value),
    /// Certainly not applied, now or later: every attempt said so.
    Failed,
    /// Anything else.
    Unknown,
}

impl Outcome {
    /// Whether `call` can end like this.
    #[must_use]
    pub fn fits(self, call: Call) -> bool {
        matches!(
            (self, call),
            (Self::Failed | Self::Unknown, _)
                | (Self::Ok(Value::Done), Call::Write(_) | Call::Delete)
                | (Self::Ok(Value::Read(_)), Call::Read)
                | (Self::Ok(Value::Swapped(_)), Call::Cas { .. })
        )
    }
}

/// One operation of one client on one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// The client's thread of work; for people, no checker relies on it.
    pub process: u64,
    /// The key.
    pub key: String,
    /// What was asked.
    pub call: Call,
    /// When, before anything was sent.
    pub invoked_us: u64,
    /// When the client knew the outcome; `None` while it does not.
    pub completed_us: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let completed = self.completed_us.map_or_else(|| "...".to_owned(), |at| at.to_string());
        write!(f, "{:>12} - {completed:>12} us  process {:<3} ", self.invoked_us, self.process)?;
        match self.call {
            Call::Write(value) => write!(f, " write {value}")?,
            Call::Read => f.write_str(" read")?,
            Call::Cas { from, to } => write!(f, " cas {from} to {to}")?,
            Call::Delete => f.write_str(" delete")?,
        }
        match self.outcome {
            Outcome::Ok(Value::Done) => f.write_str(": done"),
            Outcome::Ok(Value::Read(Some(value))) => write!(f, ": {value}"),
            Outcome::Ok(Value::Read(None)) => f.write_str(": absent"),
            Outcome::Ok(Value::Swapped(true)) => f.write_str(": swapped"),
            Outcome::Ok(Value::Swapped(false)) => f.write_str(": another value"),
            Outcome::Failed => f.write_str(": failed, not applied"),
            Outcome::Unknown => f.write_str(": unknown"),
        }
    }
}

/// The operations of a run, in the order in which they were invoked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    operations: Vec<Operation>,
}

impl History {
    /// A history of these operations.
    #[must_use]
    pub fn new(operations: Vec<Operation>) -> Self {
        Self { operations }
    }

    /// The operations.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The history that a recorder's sink received.
    ///
    /// # Errors
    /// When a line is not a whole event or does not follow from the lines before it. A torn tail
    /// is an error too: the operation that it lost may have been applied.
    pub fn read(input: impl BufRead) -> Result<Self> {
        let mut history = Self::default();
        let mut last_us = None;
        for (index, line) in input.lines().enumerate() {
            let number = index + 1;
            let line = line.with_context(|| format!("reading line {number} of the history"))?;
            history
                .replay(&line, &mut last_us)
                .with_context(|| format!("line {number} of the history"))?;
        }
        Ok(history)
    }

    fn replay(&mut self, line: &str, last_us: &mut Option<u64>) -> Result<()> {
        let event: Event = serde_json::from_str(line).context("not an event")?;
        let (Event::Invoke { at_us, .. } | Event::Complete { at_us, .. }) = &event;
        ensure!(last_us.is_none_or(|last| last < *at_us), "time does not increase");
        *last_us = Some(*at_us);
        match event {
            Event::Invoke { operation, process, key, call, at_us } => {
                ensure!(operation == self.operations.len(), "an operation is missing before it");
                self.operations.push(Operation {
                    process,
                    key,
                    call,
                    invoked_us: at_us,
                    completed_us: None,
                    outcome: Outcome::Unknown,
                });
            }
            Event::Complete { operation, outcome, at_us } => {
                let Some(open) = self.operations.get_mut(operation) else {
                    bail!("operation {operation} was never invoked");
                };
                ensure!(open.completed_us.is_none(), "operation {operation} completes twice");
                ensure!(outcome.fits(open.call), "the answer does not fit the call");
                open.completed_us = Some(at_us);
                open.outcome = outcome;
            }
        }
        Ok(())
    }
}

/// A line of a history file. Events, not operations: a line is final when it is written, and what
/// was in flight when the run was cut is visible as such.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Event {
    Invoke { operation: usize, process: u64, key: String, call: Call, at_us: u64 },
    Complete { operation: usize, outcome: Outcome, at_us: u64 },
}

/// Names an operation between its invocation and its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpId(usize);

/// The single writer of a history. Cheap to clone; clones write the same history.
#[derive(Clone)]
pub struct Recorder(Arc<Mutex<Inner>>);

struct Inner {
    clock: Clock,
    last_us: u64,
    operations: Vec<Operation>,
    sink: Option<Box<dyn Write + Send>>,
    sink_error: Option<io::Error>,
}

impl Recorder {
    /// A recorder that keeps the history in memory only.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self::start(clock, None)
    }

    /// A recorder that also writes each event to `sink` as one line. Lines are not flushed one by
    /// one: hand in a buffered writer, or an unbuffered one if the lines must survive a crash.
    #[must_use]
    pub fn with_sink(clock: Clock, sink: Box<dyn Write + Send>) -> Self {
        Self::start(clock, Some(sink))
    }

    fn start(clock: Clock, sink: Option<Box<dyn Write + Send>>) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            clock,
            last_us: 0,
            operations: Vec::new(),
            sink,
            sink_error: None,
        })))
    }

    /// Records that `process` is about to send `call`. Call it before anything leaves.
    #[must_use = "an operation that is never completed counts as unknown"]
    pub fn invoke(&self, process: u64, key: &str, call: Call) -> OpId {
        let mut inner = self.lock();
        let at_us = inner.stamp();
        let operation = inner.operations.len();
        inner.operations.push(Operation {
            process,
            key: key.to_owned(),
            call,
            invoked_us: at_us,
            completed_us: None,
            outcome: Outcome::Unknown,
        });
        inner.write(|| Event::Invoke { operation, process, key: key.to_owned(), call, at_us });
        OpId(operation)
    }

    /// Records how the operation ended. Call it after the answer has arrived.
    ///
    /// # Panics
    /// When `id` is of another recorder or has completed, or when `outcome` does not fit the call:
    /// a defect of the caller that would make the history worthless.
    pub fn complete(&self, id: OpId, outcome: Outcome) {
        let mut inner = self.lock();
        let at_us = inner.stamp();
        let open = &mut inner.operations[id.0];
        assert!(open.completed_us.is_none(), "an operation completes once: {open}");
        assert!(outcome.fits(open.call), "{outcome:?} does not answer {:?}", open.call);
        open.completed_us = Some(at_us);
        open.outcome = outcome;
        inner.write(|| Event::Complete { operation: id.0, outcome, at_us });
    }

    /// The history so far; operations in flight are in it as unknown. Flushes the sink.
    ///
    /// # Errors
    /// When the sink did not take every line.
    pub fn history(&self) -> io::Result<History> {
        let mut inner = self.lock();
        if let Some(error) = &inner.sink_error {
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        if let Some(sink) = &mut inner.sink {
            sink.flush()?;
        }
        Ok(History::new(inner.operations.clone()))
    }

    /// A panic of another client leaves the record whole: every change of it is a single push or
    /// comes after the assertions.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The time, later than every stamp before. Two events within one microsecond would otherwise
    /// look concurrent, and a checker would forgive what it should not.
    fn stamp(&mut self) -> u64 {
        self.last_us = self.clock.monotonic_us().max(self.last_us + 1);
        self.last_us
    }

    fn write(&mut self, event: impl FnOnce() -> Event) {
        let Some(sink) = &mut self.sink else { return };
        if self.sink_error.is_some() {
            return;
        }
        let line = serde_json::to_vec(&event()).map_err(io::Error::from);
        let written = line.and_then(|mut line| {
            line.push(b'\n');
            sink.write_all(&line)
        });
        self.sink_error = written.err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that the test can look into.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Shared {
        fn bytes(&self) -> Vec<u8> {
            self.0.lock().unwrap().clone()
        }
    }

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::new(io::ErrorKind::StorageFull, "no space"))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn record_some(recorder: &Recorder) {
        let other = recorder.clone();
        let write = recorder.invoke(1, "k", Call::Write(7));
        let read = other.invoke(2, "k", Call::Read);
        recorder.complete(write, Outcome::Ok(Value::Done));
        other.complete(read, Outcome::Ok(Value::Read(None)));
        let cas = recorder.invoke(1, "k", Call::Cas { from: 7, to: 8 });
        recorder.complete(cas, Outcome::Ok(Value::Swapped(false)));
        let _in_flight = recorder.invoke(3, "k \"2\"", Call::Delete);
        let lost = other.invoke(2, "k", Call::Write(9));
        other.complete(lost, Outcome::Unknown);
        let refused = other.invoke(2, "k", Call::Read);
        other.complete(refused, Outcome::Failed);
    }

    #[test]
    fn clones_write_one_history_in_strict_order() {
        let recorder = Recorder::new(Clock::real());
        record_some(&recorder);
        let history = recorder.history().unwrap();
        let mut stamps: Vec<u64> = Vec::new();
        for operation in history.operations() {
            stamps.push(operation.invoked_us);
            stamps.extend(operation.completed_us);
        }
        assert_eq!(stamps.len(), 11, "six operations, five of them completed");
        stamps.sort_unstable();
        assert!(stamps.is_sorted_by(|earlier, later| earlier < later), "no two events are equal");
        let open = &history.operations()[3];
        assert_eq!((open.completed_us, open.outcome), (None, Outcome::Unknown));
        assert_eq!(history.operations()[0].outcome, Outcome::Ok(Value::Done));
    }

    #[test]
    fn a_file_gives_the_same_history_again() {
        let file = Shared::default();
        let recorder = Recorder::with_sink(Clock::real(), Box::new(file.clone()));
        record_some(&recorder);
        let history = recorder.history().unwrap();
        assert_eq!(History::read(file.bytes().as_slice()).unwrap(), history);
        let json = serde_json::to_string(&history).unwrap();
        assert_eq!(serde_json::from_str::<History>(&json).unwrap(), history);
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let invoke = |operation: usize, at_us: u64| Event::Invoke {
            operation,
            process: 1,
            key: "k".to_owned(),
            call: Call::Read,
            at_us,
        };
        let complete =
            |operation: usize, outcome, at_us| Event::Complete { operation, outcome, at_us };
        let answer = Outcome::Ok(Value::Read(Some(3)));
        let verdict = |events: &[Event]| {
            let lines: Vec<String> =
                events.iter().map(|event| serde_json::to_string(event).unwrap()).collect();
            History::read(lines.join("\n").as_bytes()).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(verdict(&[invoke(0, 5), complete(0, answer, 6)]).unwrap().operations().len(), 1);
        for (events, complaint) in [
            (vec![invoke(1, 5)], "missing"),
            (vec![invoke(0, 5), complete(1, answer, 6)], "never invoked"),
            (vec![invoke(0, 5), complete(0, answer, 5)], "time"),
            (vec![invoke(0, 5), complete(0, Outcome::Ok(Value::Done), 6)], "fit"),
            (
                vec![invoke(0, 5), complete(0, answer, 6), complete(0, Outcome::Unknown, 7)],
                "completes twice",
            ),
        ] {
            let error = verdict(&events).unwrap_err();
            assert!(error.contains(complaint), "{error}");
        }
        let whole = serde_json::to_string(&invoke(0, 5)).unwrap();
        assert!(History::read(&whole.as_bytes()[..whole.len() - 1]).is_err());
    }

    #[test]
    fn a_sink_that_fails_is_reported_at_the_end() {
        let recorder = Recorder::with_sink(Clock::real(), Box::new(Full));
        record_some(&recorder);
        for _ in 0..2 {
            assert_eq!(recorder.history().unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
    }

    #[test]
    #[should_panic(expected = "completes once")]
    fn completing_twice_is_a_defect() {
        let recorder = Recorder::new(Clock::real());
        let id = recorder.invoke(1, "k", Call::Read);
        recorder.complete(id, Outcome::Unknown);
        recorder.complete(id, Outcome::Ok(Value::Read(None)));
    }

    #[test]
    #[should_panic(expected = "does not answer")]
    fn an_answer_of_another_call_is_a_defect() {
        let recorder = Recorder::new(Clock::real());
        let id = recorder.invoke(1, "k", Call::Read);
        recorder.complete(id, Outcome::Ok(Value::Done));
    }
}
