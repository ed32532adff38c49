//! Counters: additions to shared numbers, repeated by the client under one operation id until it knows
//! what became of them (W3), and reads in between.
//!
//! Amounts are small and positive, so a counter never falls, and what was applied twice shows as a sum
//! that nothing explains.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use annulus_runtime::Clock;
use anyhow::{Context, Result, ensure};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::{CALM, Seat, Workload, end_of, number_of};
use crate::checkers::counter::{self, Answer, Call};
use crate::journal::{End, Journal};

/// The largest amount.
const AMOUNT_MOST: u64 = 9;

/// See the module.
pub struct Counter {
    journal: Journal<Call, Answer>,
    last: Arc<Mutex<BTreeMap<String, i64>>>,
}

impl Counter {
    /// A run whose events go to `sink`.
    #[must_use]
    pub fn new(clock: Clock, sink: Box<dyn Write + Send>) -> Self {
        Self { journal: Journal::new(clock, sink), last: Arc::default() }
    }
}

impl Workload for Counter {
    fn client(&self, seat: Seat) -> BoxFuture<'static, ()> {
        Box::pin(work(seat, self.journal.clone()))
    }

    fn close(&self, seat: Seat) -> BoxFuture<'static, Result<()>> {
        let last = Arc::clone(&self.last);
        Box::pin(async move {
            for number in 0..seat.shape.keys {
                let key = key_of(number);
                let found = seat.client.get(key.clone()).deadline(CALM).await?;
                let value = value_of(&found).with_context(|| format!("{key} is no number"))?;
                last.lock().insert(key, value);
            }
            Ok(())
        })
    }

    fn judge(&self) -> Result<String> {
        let entries = self.journal.entries().context("the history was not written in full")?;
        ensure!(!entries.is_empty(), "no operation was recorded");
        let last = self.last.lock();
        counter::check(&entries, &last)?;
        let sum: i64 = last.values().sum();
        Ok(format!("every addition was made at most once: {sum} in {} counters", last.len()))
    }
}

fn key_of(number: u64) -> String {
    format!("counter-{number}")
}

/// Absent is 0.
fn value_of(found: &annulus_client::Found) -> Answer {
    if found.value.is_none() { Some(0) } else { number_of(found) }
}

async fn work(seat: Seat, journal: Journal<Call, Answer>) {
    let deadline = seat.shape.deadline;
    while !seat.run.is_over() {
        let key = key_of(seat.random.below(seat.shape.keys));
        let end = if seat.random.below(3) == 0 {
            let ticket = journal.invoke(seat.process, Call::Read { key: key.clone() });
            let end = match seat.client.get(key).deadline(deadline).await {
                Ok(found) => End::Ok(value_of(&found)),
                Err(error) => end_of(&error),
            };
            journal.complete(ticket, end.clone());
            end
        } else {
            let amount = i64::try_from(1 + seat.random.below(AMOUNT_MOST)).unwrap_or(1);
            let ticket = journal.invoke(seat.process, Call::Add { key: key.clone(), amount });
            let end = match seat.client.incr(key, amount).deadline(deadline).await {
                Ok(counted) => End::Ok(counted.sum()),
                Err(error) => end_of(&error),
            };
            journal.complete(ticket, end.clone());
            end
        };
        seat.run.count(&end);
    }
}
