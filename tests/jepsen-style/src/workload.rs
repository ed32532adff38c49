//! What clients do during a run, written down as they do it.
//!
//! Closed loops: each client sends its next operation when the last one was answered. Values are
//! numbers that are never written twice in a run, so that a checker can tell every write apart and a
//! version stands for one value.
//!
//! A client never guesses: an error is *failed* only when it says that nothing was and will be
//! applied, everything else is *unknown* (W4).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus_client::{Client, Error, ErrorKind, MayHaveApplied, Revision};
use annulus_runtime::Random;

use crate::history::{Call, Outcome, Recorder, Value};

/// How the register workload looks.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    /// Clients, each a closed loop.
    pub clients: u64,
    /// Keys that they share.
    pub keys: u64,
    /// Deadline of one operation.
    pub deadline: Duration,
}

/// What a run of a workload counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Answered operations.
    pub answered: u64,
    /// Certainly not applied.
    pub failed: u64,
    /// Outcome not known.
    pub unknown: u64,
}

/// Shared by the clients of one run.
pub struct Run {
    /// Set to end the loops after their present operation.
    pub stop: AtomicBool,
    next_value: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    unknown: AtomicU64,
}

impl Default for Run {
    fn default() -> Self {
        Self::new()
    }
}

impl Run {
    /// A run in which nothing has happened.
    #[must_use]
    pub fn new() -> Self {
        Self {
            stop: AtomicBool::new(false),
            next_value: AtomicU64::new(1),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        }
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            answered: self.answered.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            unknown: self.unknown.load(Ordering::Relaxed),
        }
    }

    /// A value that no other operation of the run writes.
    pub fn fresh_value(&self) -> u64 {
        self.next_value.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn count(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Ok(_) => &self.answered,
            Outcome::Failed => &self.failed,
            Outcome::Unknown => &self.unknown,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The outcome that an error stands for.
#[must_use]
pub fn outcome_of(error: &Error) -> Outcome {
    match error.may_have_applied {
        MayHaveApplied::No => Outcome::Failed,
        MayHaveApplied::Yes | MayHaveApplied::Unknown => Outcome::Unknown,
    }
}

/// One client of the register workload, until `run.stop`.
pub async fn register_client(
    process: u64,
    client: Client,
    shape: Registers,
    random: Random,
    recorder: Recorder,
    run: Arc<Run>,
) {
    // What this client last read of each key: value and version, for compare-and-swap.
    let mut seen: Vec<Option<(u64, Revision)>> = vec![None; shape.keys as usize];
    while !run.stop.load(Ordering::Relaxed) {
        let place = random.below(shape.keys);
        let key = format!("register-{place}");
        let slot = &mut seen[place as usize];
        let outcome = match (random.below(10), *slot) {
            (0..4, _) => {
                let operation = recorder.invoke(process, &key, Call::Read);
                let found = client.get(key).deadline(shape.deadline).await;
                let outcome = match found {
                    Ok(found) => {
                        let value = found.value.as_deref().and_then(number);
                        *slot = value.map(|value| (value, found.version));
                        Outcome::Ok(Value::Read(value))
                    }
                    Err(error) => outcome_of(&error),
                };
                recorder.complete(operation, outcome);
                outcome
            }
            (4..6, Some((from, version))) => {
                let to = run.fresh_value();
                let operation = recorder.invoke(process, &key, Call::Cas { from, to });
                let swap = client.cas(key, Some(version), to.to_string());
                let outcome = match swap.deadline(shape.deadline).await {
                    Ok(written) => {
                        *slot = Some((to, written.version));
                        Outcome::Ok(Value::Swapped(true))
                    }
                    Err(Error {
                        kind: ErrorKind::PreconditionFailed { .. },
                        may_have_applied: MayHaveApplied::No,
                        ..
                    }) => {
                        *slot = None;
                        Outcome::Ok(Value::Swapped(false))
                    }
                    Err(error) => outcome_of(&error),
                };
                recorder.complete(operation, outcome);
                outcome
            }
            (6, _) => {
                let operation = recorder.invoke(process, &key, Call::Delete);
                let outcome = match client.delete(key).deadline(shape.deadline).await {
                    Ok(_) => Outcome::Ok(Value::Done),
                    Err(error) => outcome_of(&error),
                };
                recorder.complete(operation, outcome);
                outcome
            }
            _ => {
                let value = run.fresh_value();
                let operation = recorder.invoke(process, &key, Call::Write(value));
                let put = client.put(key, value.to_string());
                let outcome = match put.deadline(shape.deadline).await {
                    Ok(_) => Outcome::Ok(Value::Done),
                    Err(error) => outcome_of(&error),
                };
                recorder.complete(operation, outcome);
                outcome
            }
        };
        run.count(outcome);
    }
}

pub(crate) fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
