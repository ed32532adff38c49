//! Registers: reads, writes, deletes and compare-and-swaps of shared keys, judged for linearizability.
//!
//! Most reads go to the leader, as by default. Some ask one node, whichever it is, for a strict read: a
//! follower then answers from its own state, on the word of the leader (R1 d). Both must fit into the same
//! order. Values are numbers, each written once, so a version stands for one value.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use annulus_client::{Error, ErrorKind, MayHaveApplied, NodeId, Revision, Role};
use annulus_runtime::Clock;
use anyhow::{Context, Result, bail, ensure};
use futures_util::future::BoxFuture;

use super::{NO_NUMBER, Seat, Workload, end_of, seen_in};
use crate::checkers::linearizable::{self, STEP_LIMIT};
use crate::history::{Call, Outcome, Recorder, Value};
use crate::journal::End;

/// A read that asks one node gives up early: the node may be down, and nobody else is asked.
const ONE_NODE: Duration = Duration::from_secs(1);

/// See the module.
pub struct Register {
    recorder: Recorder,
    at_followers: Arc<AtomicU64>,
}

impl Register {
    /// A run whose events go to `sink`.
    #[must_use]
    pub fn new(clock: Clock, sink: Box<dyn Write + Send>) -> Self {
        Self { recorder: Recorder::with_sink(clock, sink), at_followers: Arc::default() }
    }
}

impl Workload for Register {
    fn client(&self, seat: Seat) -> BoxFuture<'static, ()> {
        let seen = vec![None; usize::try_from(seat.shape.keys).unwrap_or(0)];
        let (recorder, at_followers) = (self.recorder.clone(), Arc::clone(&self.at_followers));
        Box::pin(Hand { seat, recorder, at_followers, seen }.work())
    }

    fn judge(&self) -> Result<String> {
        judge(&self.recorder)?;
        let at_followers = self.at_followers.load(Ordering::Relaxed);
        Ok(format!("linearizable, with {at_followers} strict reads answered by followers"))
    }
}

/// Whether what was recorded is linearizable.
pub(crate) fn judge(recorder: &Recorder) -> Result<()> {
    let history = recorder.history().context("the history was not written in full")?;
    ensure!(!history.operations().is_empty(), "no operation was recorded");
    let is_rotten = |outcome: Outcome| outcome == Outcome::Ok(Value::Read(Some(NO_NUMBER)));
    if let Some(read) = history.operations().iter().find(|read| is_rotten(read.outcome)) {
        bail!("a value is no number, and nobody wrote it: {}: {read}", read.key);
    }
    linearizable::check(&history, STEP_LIMIT).into_result()
}

/// The outcome that an error stands for.
pub(crate) fn outcome_of(error: &Error) -> Outcome {
    match end_of::<()>(error) {
        End::Failed => Outcome::Failed,
        End::Ok(()) | End::Unknown => Outcome::Unknown,
    }
}

/// A client.
struct Hand {
    seat: Seat,
    recorder: Recorder,
    at_followers: Arc<AtomicU64>,
    /// What it last read of each key: value and version, for compare-and-swap.
    seen: Vec<Option<(u64, Revision)>>,
}

impl Hand {
    async fn work(mut self) {
        let random = self.seat.random.clone();
        while !self.seat.run.is_over() {
            let number = random.below(self.seat.shape.keys);
            let key = format!("register-{number}");
            let place = usize::try_from(number).unwrap_or(0);
            let outcome = match (random.below(20), self.seen[place]) {
                (0..6, _) => self.read(key, place, None).await,
                (6..8, _) => {
                    let one = u32::try_from(random.below(u64::from(self.seat.shape.nodes)));
                    self.read(key, place, Some(NodeId(one.unwrap_or(0) + 1))).await
                }
                (8..12, Some((from, version))) => self.swap(key, place, from, version).await,
                (12..14, _) => self.delete(key).await,
                _ => self.write(key).await,
            };
            self.seat.run.count(&End::from(outcome));
        }
    }

    async fn read(&mut self, key: String, place: usize, one: Option<NodeId>) -> Outcome {
        let operation = self.recorder.invoke(self.seat.process, &key, Call::Read);
        let read = self.seat.client.get(key).deadline(self.seat.shape.deadline);
        let found = match one {
            Some(node) => read.strict(true).from_node(node).deadline(ONE_NODE).await,
            None => read.await,
        };
        let outcome = match found {
            Ok(found) => {
                if one.is_some() && found.receipt.role == Role::Follower {
                    self.at_followers.fetch_add(1, Ordering::Relaxed);
                }
                let value = seen_in(&found);
                self.seen[place] = value.map(|value| (value, found.version));
                Outcome::Ok(Value::Read(value))
            }
            Err(error) => outcome_of(&error),
        };
        self.recorder.complete(operation, outcome);
        outcome
    }

    async fn swap(&mut self, key: String, place: usize, from: u64, version: Revision) -> Outcome {
        let to = self.seat.run.fresh_value();
        let operation = self.recorder.invoke(self.seat.process, &key, Call::Cas { from, to });
        let swap = self.seat.client.cas(key, Some(version), to.to_string());
        let outcome = match swap.deadline(self.seat.shape.deadline).await {
            Ok(written) => {
                self.seen[place] = Some((to, written.version));
                Outcome::Ok(Value::Swapped(true))
            }
            Err(Error {
                kind: ErrorKind::PreconditionFailed { .. },
                may_have_applied: MayHaveApplied::No,
                ..
            }) => {
                self.seen[place] = None;
                Outcome::Ok(Value::Swapped(false))
            }
            Err(error) => outcome_of(&error),
        };
        self.recorder.complete(operation, outcome);
        outcome
    }

    async fn delete(&self, key: String) -> Outcome {
        let operation = self.recorder.invoke(self.seat.process, &key, Call::Delete);
        let delete = self.seat.client.delete(key).deadline(self.seat.shape.deadline);
        let outcome = match delete.await {
            Ok(_) => Outcome::Ok(Value::Done),
            Err(error) => outcome_of(&error),
        };
        self.recorder.complete(operation, outcome);
        outcome
    }

    async fn write(&self, key: String) -> Outcome {
        let value = self.seat.run.fresh_value();
        let operation = self.recorder.invoke(self.seat.process, &key, Call::Write(value));
        let put = self.seat.client.put(key, value.to_string()).deadline(self.seat.shape.deadline);
        let outcome = match put.await {
            Ok(_) => Outcome::Ok(Value::Done),
            Err(error) => outcome_of(&error),
        };
        self.recorder.complete(operation, outcome);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_no_number_is_not_an_absent_key() {
        for (seen, is_good) in [(None, true), (Some(NO_NUMBER), false)] {
            let recorder = Recorder::new(Clock::real());
            let read = recorder.invoke(1, "register-0", Call::Read);
            recorder.complete(read, Outcome::Ok(Value::Read(seen)));
            assert_eq!(judge(&recorder).is_ok(), is_good, "{seen:?}");
        }
    }
}
